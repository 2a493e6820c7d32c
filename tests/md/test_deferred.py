"""Work that waits: one at a time, in order, and none left at the end."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from dphpc.core.errors import RunError
from dphpc.md.deferred import Deferred, Work, at_once
from dphpc.md.timers import Timers
from dphpc.parallel.comm import Communicator, Serial


def pieces(done: list[str], name: str, n: int = 3) -> Work:
    for k in range(n - 1):
        done.append(f"{name}{k}")
        yield
    done.append(f"{name}{n - 1}")


def test_the_first_piece_is_done_at_once_and_the_others_on_demand() -> None:
    done: list[str] = []
    deferred = Deferred(Timers(), at_once=False)
    assert not deferred.piece(), "nothing is put off yet"
    deferred.begin(pieces(done, "a"))
    assert done == ["a0"]
    assert deferred.piece()
    assert done == ["a0", "a1"]
    assert not deferred.piece()
    assert done == ["a0", "a1", "a2"]
    assert not deferred.piece()


def test_one_work_is_finished_before_the_next_begins() -> None:
    done: list[str] = []
    deferred = Deferred(Timers(), at_once=False)
    deferred.begin(pieces(done, "a"))
    deferred.begin(pieces(done, "b"))
    assert done == ["a0", "a1", "a2", "b0"]
    deferred.finish()
    assert done[4:] == ["b1", "b2"]


def test_where_nothing_is_gained_by_waiting_nothing_waits() -> None:
    done: list[str] = []
    Deferred(Timers()).begin(pieces(done, "a"))
    assert done == ["a0", "a1", "a2"]


def fly_away(deferred: Deferred, work: Work, comm: Communicator | None = None, agreed: bool = False) -> None:
    """A phase that an error ends while a work waits."""
    with deferred.finished(comm or Serial()):
        deferred.begin(work)
        error = RunError("atom 3 flew away")
        error.agreed = agreed
        raise error


def broken(done: list[str]) -> Work:
    yield
    done.append("tried")
    raise RunError("the disk is full")


def test_a_phase_leaves_nothing_whatever_ends_it() -> None:
    done: list[str] = []
    deferred = Deferred(Timers(), at_once=False)
    with deferred.finished(Serial()):
        deferred.begin(pieces(done, "a"))
    assert done == ["a0", "a1", "a2"]
    with pytest.raises(RunError, match="flew"):
        fly_away(deferred, pieces(done, "b"))
    assert done[3:] == ["b0", "b1", "b2"]
    with pytest.raises(RunError, match="full"), deferred.finished(Serial()):
        deferred.begin(broken(done))
    with pytest.raises(RunError, match="flew"):
        fly_away(deferred, broken(done))
    assert done[6:] == ["tried", "tried"]
    deferred.finish()


def test_what_only_this_rank_knows_of_keeps_it_from_talking_to_the_others() -> None:
    class Two(Serial):
        size = 2

    for agreed in (False, True):
        done: list[str] = []
        with pytest.raises(RunError, match="flew"):
            fly_away(Deferred(Timers(), at_once=False), pieces(done, "a"), Two(), agreed)
        assert len(done) == (3 if agreed else 1)


def test_a_work_has_a_result() -> None:
    def work() -> Generator[None, None, int]:
        yield
        return 7

    assert at_once(work()) == 7
