"""Where the ranks of a run are placed: nodes, cores, pinning, and whether they are oversubscribed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from dphpc.core.cores import affinity, quota
from dphpc.parallel.comm import Communicator


@dataclass(frozen=True)
class Place:
    """One rank: its node, the cores it may run on, its threads, and its container's limit on processor time (cores)."""

    node: str
    cores: frozenset[int]
    threads: int
    quota: int | None = None


class Placement:
    """The ranks of a run and their cores.

    Parameters
    ----------
    places
        One for each rank.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)
        self.nodes: dict[str, list[Place]] = {}
        for place in self.places:
            self.nodes.setdefault(place.node, []).append(place)

    def __str__(self) -> str:
        """One line: ranks × threads, cores, pinning."""
        n, cores = len(self.places), sum(available_cores(node) for node in self.nodes.values())
        nodes = f"{len(self.nodes)} nodes" if len(self.nodes) > 1 else "1 node"
        threads = _span([p.threads for p in self.places])
        ranks = f"{n} rank{'s' * (n > 1)} × {threads} thread{'s' * (threads != '1')}"
        return f"{ranks} on {_cores(cores)} of {nodes}, {self._binding()}"

    def _binding(self) -> str:
        if len(self.places) == 1:
            return "one process"
        width = _span([len(p.cores) for p in self.places])
        sharing = [len(group) for node in self.nodes.values() for group in _groups(node)]
        if max(sharing) == 1:
            return f"each rank pinned to {width} of its own"
        if all(len({p.cores for p in node}) == 1 for node in self.nodes.values()):
            return "ranks not pinned: those of a node share its cores"
        return f"ranks pinned to {width} each, up to {max(sharing)} ranks share cores"

    def warning(self) -> str | None:
        """A sentence if threads outnumber the cores they may run on, else None."""
        worst, found = 1.0, None
        for node in self.nodes.values():
            for group in [*_groups(node), node]:
                threads, cores = sum(p.threads for p in group), available_cores(group)
                if threads > worst * cores:
                    worst, found = threads / cores, (group, threads, cores)
        if found is None:
            return None
        group, threads, cores = found
        each = _span([p.threads for p in group])
        ranks = f"{len(group)} rank{'s' * (len(group) > 1)} × {each} = {threads} threads"
        return (
            f"{ranks} share {_cores(cores)} on {group[0].node} and will wait for one another; start fewer ranks, "
            "set n_threads or OMP_NUM_THREADS lower, or let the launcher give each rank more cores"
        )


def placement(comm: Communicator, threads: int) -> Placement:
    """The placement of all ranks; `threads` is the number of this rank's threads.  Collective."""
    return Placement(comm.allgather(Place(platform.node(), affinity(), threads, quota())))


def ranks_on_same_cores(comm: Communicator) -> int:
    """How many ranks share this rank's cores: those of the node, or 1 where each is pinned to its own; collective."""
    own = (platform.node(), affinity())
    return comm.allgather(own).count(own)


def available_cores(places: Sequence[Place]) -> int:
    """Cores that these ranks of one node may use."""
    together = len(frozenset().union(*(p.cores for p in places)))
    return min([together, *(p.quota for p in places if p.quota is not None)])


def _groups(places: Sequence[Place]) -> list[list[Place]]:
    """The ranks of a node, in groups that share no core with other groups."""
    groups: list[list[Place]] = []
    for place in places:
        touching = [g for g in groups if any(p.cores & place.cores for p in g)]
        groups = [g for g in groups if g not in touching] + [[place, *(p for g in touching for p in g)]]
    return groups


def _cores(n: int) -> str:
    return f"{n} core" + "s" * (n > 1)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
