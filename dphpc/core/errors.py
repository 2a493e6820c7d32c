"""Errors that a user sees: what was wrong, where, what was expected, what to do.

Everything a user can get wrong raises a subclass of `DphpcError`; the command line prints it as one
message without a traceback.  `assert` is left for our own bugs.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

EXIT_STOPPED_ABOVE = 3
"""Exit status of `dphpc md` where the models of a committee disagreed by more than `stop_above`."""

EXIT_ASTRAY = 4
"""Exit status of a command that ends with an `AstrayError`."""


class DphpcError(Exception):
    """A problem that the user can mend.

    Parameters
    ----------
    what
        What was wrong, one sentence.
    where
        File, key, frame or atom at which it was found.
    expected
        What would have been right.
    remedy
        What to do about it.

    Attributes
    ----------
    agreed
        Whether all ranks of a parallel run raise this error together.
    speaks
        Whether this rank prints it; the others end silently.
    """

    agreed: bool = False
    speaks: bool = True

    def __init__(
        self, what: str, *, where: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        lines = [what]
        lines += [f"  where:    {where}"] if where else []
        lines += [f"  expected: {expected}"] if expected else []
        lines += [f"  remedy:   {remedy}"] if remedy else []
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between ranks: rebuild from the parts, not from the joined text.
        return _rebuild, (type(self), self.what, self.where, self.expected, self.remedy)


def _rebuild(
    kind: type[DphpcError], what: str, where: str | None, expected: str | None, remedy: str | None
) -> DphpcError:
    return kind(what, where=where, expected=expected, remedy=remedy)


class InputError(DphpcError):
    """A key or value of an input file, or a command's argument, is wrong."""


class DataError(DphpcError):
    """A data system (labels, structure) is damaged, inconsistent or unphysical."""


class ModelFileError(DphpcError):
    """A model file is damaged, too new, or holds a kind of model that is not supported."""


class RunError(DphpcError):
    """A run that had started cannot go on (NaN, lost atoms, a rank that failed)."""


class AstrayError(RunError):
    """A run whose atoms have gone astray: unbounded forces, NaN, overlapping or lost atoms."""


class DeviceError(RunError):
    """A GPU or its library refuses: its memory is full, or it fails."""


@contextlib.contextmanager
def writing(where: str | Path, what: str = "the file", last: str | None = None) -> Iterator[None]:
    """Turn an OSError inside into a RunError about `what` at `where`; `last` tells what the user can go on from."""
    try:
        yield
    except OSError as error:
        remedy = "check space and permissions" + (f"; {last}" if last else "")
        raise RunError(f"{what} cannot be written: {reason_of(error)}", where=str(where), remedy=remedy) from None


def reason_of(error: Exception) -> str:
    """Why a file cannot be read or written: in the system's words if it gave a number, as in HDF5's long messages."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error) or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or the shortest that begins or ends with it; None when nothing is near."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if len(word) > 2 and not found:
        found = sorted((k for k in known if k.lower().startswith(word.lower()) or k.endswith(word)), key=len)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy sentence for an unknown `word`: the nearest known one, or all of them."""
    known = sorted(known)
    near = nearest(word, known)
    return f"did you mean '{near}'?" if near else f"known are: {', '.join(known)}"


def counted(n: int, what: str) -> str:
    """`1 frame`, `2 frames`: a number of things, as messages name them."""
    return f"{n:,} {what}" + "s" * (n != 1)
