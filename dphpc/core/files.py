"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place if the block ends well; else nothing is left.

    A link of that name is replaced, not followed.

    Parameters
    ----------
    sync
        Whether the bytes reach the disk before the name does: else the name may outlive a failing machine's power, and
        the bytes not.

    Raises
    ------
    OSError
        It cannot be written; what had the name before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)  # of a process that was killed and had this number
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text as `whole` has it; its folder is made where there is none.

    Raises
    ------
    OSError
        It cannot be written; what had the name before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
