"""What is said of ranks and cores, and when it is too much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dphpc.core import cores
from dphpc.parallel.comm import Communicator
from dphpc.parallel.placement import Place, Placement, placement, ranks_on_same_cores


def node(name: str, threads: int, *sets: range | set[int], quota: int | None = None) -> list[Place]:
    """Ranks of one node by the cores they may run on."""
    return [Place(name, frozenset(cores), threads, quota) for cores in sets]


ALL = range(8)
CASES = {
    "alone": (node("a", 8, ALL), "1 rank × 8 threads on 8 cores of 1 node, one process", None),
    "alone, too many": (node("a", 9, ALL), "on 8 cores", "1 rank × 9 = 9 threads share 8 cores on a"),
    "free": (node("a", 2, *[ALL] * 4), "4 ranks × 2 threads on 8 cores of 1 node, ranks not pinned", None),
    "free, too many": (node("a", 4, *[ALL] * 4), "not pinned", "4 ranks × 4 = 16 threads share 8 cores on a"),
    "pinned": (node("a", 4, range(4), range(4, 8)), "on 8 cores of 1 node, each rank pinned to 4 of its own", None),
    "pinned to one core each": (node("a", 4, {0}, {1}), "pinned to 1 of", "1 rank × 4 = 4 threads share 1 core on a"),
    # Two runs' launchers that both begin with core 0; no total over the node would show it.
    "on one core": (node("a", 1, {0}, {0}, {1, 2, 3}), "up to 2 ranks share", "2 ranks × 1 = 2 threads share 1 core"),
    "in a chain": (node("a", 1, {0, 1}, {2}, {1, 2}), "up to 3 ranks share cores", None),
    "two nodes": (node("a", 4, ALL) + node("b", 4, ALL), "2 ranks × 4 threads on 16 cores of 2 nodes", None),
    "one of two nodes": (node("a", 4, ALL) + node("b", 4, *[ALL] * 3), "of 2 nodes", "12 threads share 8 cores on b"),
    "uneven": ([*node("a", 1, {0}), *node("a", 2, {1, 2})], "2 ranks × 1 to 2 threads on 3 cores", None),
    "container": (node("a", 1, *[ALL] * 4, quota=2), "4 ranks × 1 thread on 2 cores", "4 threads share 2 cores on a"),
    "pinned, container": (node("a", 1, {0}, {1}, {2}, quota=2), "pinned to 1 of its own", "3 threads share 2 cores"),
}


@pytest.mark.parametrize("name", CASES)
def test_line_and_warning(name: str) -> None:
    places, line, warning = CASES[name]
    found = Placement(places)
    assert line in str(found)
    if warning is None:
        assert found.warning() is None
    else:
        assert warning in (found.warning() or "")


@pytest.mark.mpi
def test_the_present_ranks(comm: Communicator) -> None:
    sharing = ranks_on_same_cores(comm)
    assert 1 <= sharing <= comm.size
    found = placement(comm, 10_000)
    assert len(found.places) == comm.size
    assert found.places[comm.rank].cores == frozenset(os.sched_getaffinity(0))
    assert f"{comm.size} rank" in str(found)
    assert "= " in (found.warning() or ""), "no machine has so many cores"
    assert comm.allgather(str(found)) == [str(found)] * comm.size


@pytest.mark.mpi
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_pinning_is_seen(comm: Communicator) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, {core})
    try:
        found = placement(comm, 1)
    finally:
        os.sched_setaffinity(0, before)
    assert found.places[comm.rank].cores == {core}
    distinct = len({tuple(p.cores) for p in found.places})
    assert (found.warning() is None) == (distinct == comm.size)


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), ("", None)]
)
def test_a_containers_quota(text: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "affinity", lambda: frozenset(range(16)))
    assert cores.quota() == expected
    assert cores.n_cores() == (expected or 16)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "nothing")
    assert cores.quota() is None
