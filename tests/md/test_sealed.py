"""Files that survive crashes: killed at every step of their writing, truncated, flipped byte by byte."""

import errno
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.errors import DataError
from dphpc.md import sealed
from dphpc.md.sealed import BLOCK, Draft, damage_of, last_good, previous_of
from dphpc.parallel.comm import Communicator, Serial


def write(path: Path, value: int, keep: bool = True) -> None:
    draft = Draft(path, Serial(), 800, lambda file: file.update(value=np.full(100, value)))
    draft.close()
    draft.commit(keep)


def value_of(path: str | Path) -> int:
    assert damage_of(Path(path)) is None
    with h5py.File(path) as file:
        return int(file["value"][-1])


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds 2; the one before it held 1."""
    path = tmp_path / "a.h5"
    write(path, 1)
    write(path, 2)
    return path


def test_the_file_before_is_kept(path: Path) -> None:
    assert listing(path.parent) == ["a.h5", "a.previous.h5"]
    assert (value_of(path), value_of(previous_of(path))) == (2, 1)
    write(path, 3)
    assert (value_of(path), value_of(previous_of(path))) == (3, 2)
    write(path, 4, keep=False)
    assert (value_of(path), value_of(previous_of(path))) == (4, 2)
    assert last_good(str(path)) == (str(path), None)


def test_without_links_the_file_before_is_a_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(path, 3)
    assert (value_of(path), value_of(previous_of(path))) == (3, 2)
    assert listing(path.parent) == ["a.h5", "a.previous.h5"]


def test_a_draft_that_is_discarded_leaves_nothing(path: Path) -> None:
    draft = Draft(path, Serial(), 800, lambda file: file.update(value=np.zeros(5)))
    draft.discard()
    assert listing(path.parent) == ["a.h5", "a.previous.h5"]
    assert value_of(path) == 2


@pytest.mark.parametrize("n_events", range(12))
def test_a_writer_killed_between_any_two_calls_leaves_a_good_file(path: Path, n_events: int) -> None:
    child = os.fork()
    if child == 0:
        left = n_events

        def count(event: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if event == "open" or event.startswith("os."):
                left -= 1
                if left == -1:  # killing is an event, too
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            write(path, 3)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    # Making the folder, four opened, one linked, two renamed, three removed.
    assert os.WIFSIGNALED(status) == (n_events < 11)
    assert value_of(path) in (2, 3)
    assert value_of(previous_of(path)) in (1, 2)
    write(path, 4)
    assert value_of(path) == 4
    assert value_of(previous_of(path)) in (2, 3)
    assert listing(path.parent) == ["a.h5", "a.previous.h5"], "what the killed one left is gone"


def test_every_flipped_byte_is_found(path: Path) -> None:
    content = path.read_bytes()
    for k in range(len(content)):
        flipped = bytearray(content)
        flipped[k] ^= 1 << (k % 8)
        path.write_bytes(flipped)
        assert damage_of(path) is not None, f"byte {k}"
    path.write_bytes(content)
    assert damage_of(path) is None


def test_a_seal_of_all_bytes_in_one_is_read_too(path: Path) -> None:
    content = path.read_bytes()
    digest = hashlib.blake2b(content[BLOCK:]).hexdigest()
    old = f"dphpc restart\nblake2b {digest}\n".encode().ljust(BLOCK, b"\0") + content[BLOCK:]
    path.write_bytes(old)
    assert value_of(path) == 2
    for k in (5, 20, BLOCK - 1, BLOCK, len(old) - 1):
        path.write_bytes(old[:k] + bytes([old[k] ^ 1]) + old[k + 1 :])
        assert damage_of(path) is not None, f"byte {k}"


@pytest.mark.mpi
def test_ranks_share_out_the_pieces_of_a_seal(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(comm.bcast(str(tmp_path))) / "a.h5"
    for piece, n_shares in ((100, 1), (100, 2), (100, 5), (1 << 24, 3)):
        monkeypatch.setattr(sealed, "PIECE", piece)
        monkeypatch.setattr(sealed, "n_writers", lambda comm: 1)
        draft = Draft(path, comm, 800, lambda file: file.update(value=np.full(100, 2)))
        draft.close()
        draft.commit(keep=False)
        assert value_of(path) == 2
        shares = [sealed._digests(path, k, n_shares) for k in range(n_shares)]
        n_pieces = -(-(path.stat().st_size - BLOCK) // piece)
        assert b"".join(shares) == sealed._digests(path)
        assert max(len(share) for share in shares) == -(-n_pieces // n_shares) * 64
        comm.barrier()


@pytest.mark.parametrize("length", [0, 1, 20, BLOCK - 1, BLOCK, BLOCK + 1, 2000, -8, -1])
def test_a_truncated_file_gives_way_to_the_one_before(path: Path, length: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:length])
    taken, warning = last_good(str(path))
    assert value_of(taken) == 1
    assert warning is not None
    assert "damaged" in warning
    assert str(path) in warning
    assert str(previous_of(path)) in warning


def test_a_missing_or_longer_file_gives_way_to_the_one_before(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")
    assert value_of(last_good(str(path))[0]) == 1
    path.unlink()
    taken, warning = last_good(str(path))
    assert value_of(taken) == 1
    assert "No such file" in str(warning)


def test_with_both_bad_there_is_one_clear_error(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    previous_of(path).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"(?s)neither.*checksum.*nor.*damaged at its beginning.*a\.h5.*a\.previous\.h5"
    ):
        last_good(str(path))
    previous_of(path).unlink()
    with pytest.raises(DataError, match=r"(?s)cannot be used: it is damaged.*a\.h5"):
        last_good(str(path))
