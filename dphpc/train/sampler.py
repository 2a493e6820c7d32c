"""Sampling: which system and which frames a training step takes, a pure function of seed and step.

As in DeePMD-kit a step draws one system by its probability and takes the next batch of that system's frames, which
are reshuffled each time all have been taken.  From LMDB a round takes every batch once, in a shuffled order; blocks of
`auto_prob` repeat frames there.  Random numbers are counter-based (Philox), so that a restart needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import InputError
from dphpc.train.data.dataset import Dataset
from dphpc.train.schema.training import DataConfig, batch_rule, prob_blocks

BLOCK = 1024
"""Number of steps whose systems are drawn together."""

_SYSTEMS, _FRAMES = 0, 1
"""Independent streams of random numbers."""


@dataclass(frozen=True)
class Share:
    """Frames of a system of which `count` are taken in each round; a frame may be taken several times, or never."""

    frames: NDArray[np.int64]
    count: int

    def draw(self, random: np.random.Generator) -> NDArray[np.int64]:
        """(count,) frames, each taken equally often or once more than others."""
        times, rest = divmod(self.count, len(self.frames))
        return np.concatenate((np.tile(self.frames, times), random.permutation(self.frames)[:rest]))


class Sampler:
    """Draws batches.

    Parameters
    ----------
    in_turn
        Take every batch once in each round, instead of drawing a system for each step.
    shares
        For each system the frames of a round; None if each frame is taken once.

    Attributes
    ----------
    batch_sizes, n_batches, probabilities
        Per system: frames of a batch, batches that take all frames once, probability of being drawn.
    """

    def __init__(
        self,
        names: Sequence[str],
        n_frames: Sequence[int],
        n_atoms: Sequence[int],
        data: DataConfig,
        seed: int | None,
        *,
        in_turn: bool = False,
        shares: Sequence[Sequence[Share]] | None = None,
    ) -> None:
        self._names, self._n_atoms = list(names), list(n_atoms)
        self._n_frames = np.array(n_frames, np.int64)
        self._seed = 0 if seed is None else seed
        self.batch_sizes = _batch_sizes(data, n_atoms)
        self._shares = shares
        taken = self._n_frames if shares is None else np.array([sum(s.count for s in of) for of in shares], np.int64)
        self.n_batches = -(-taken // self.batch_sizes)
        self.probabilities = _probabilities(data, self.n_batches)
        self._edges = np.cumsum(self.probabilities) / self.probabilities.sum()
        self._last = int(np.flatnonzero(self.probabilities)[-1])  # rounding must not draw a system of probability 0
        self._block = -1
        self._systems = np.zeros(0, np.int64)
        self._visits = np.zeros((1, len(self._names)), np.int64)
        self._in_turn, self._round = in_turn, (-1, np.zeros(0, np.int64))
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    @classmethod
    def of(cls, dataset: Dataset, data: DataConfig, seed: int | None) -> Sampler:
        """A sampler of a data set's frames; without a seed the seed is 0.

        Raises
        ------
        InputError
            `batch_size`, `sys_probs` or `auto_prob` do not fit the number of systems.
        """
        s = dataset.systems
        in_turn = data.sys_probs is None and all(x.sources is not None for x in s)
        blocks, shares = prob_blocks(data.auto_prob), None
        if in_turn and blocks and len(data.systems) == 1:
            # Blocks count the systems that the database was written from.
            sources, n = [x.sources for x in s if x.sources is not None], max(x.n_sources for x in s)
            shares = _shares(sources, n, blocks, f"{data.section}/auto_prob")
            data = data.updated(auto_prob="prob_sys_size")
        elif blocks:
            in_turn = False
        names, n_frames, n_atoms = ([getattr(x, of) for x in s] for of in ("name", "n_frames", "n_atoms"))
        return cls(names, n_frames, n_atoms, data, seed, in_turn=in_turn, shares=shares)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every system is expected to give all its frames (DeePMD-kit's meaning of `numb_epoch`)."""
        if self._in_turn:
            return int(self.n_batches.sum())
        drawn = self.probabilities > 0
        steps = float((self.n_batches[drawn] / self.probabilities[drawn]).max())
        return math.ceil(steps * (1.0 - 1e-12))  # 470.00000000000006 means 470

    def draw(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """System and frames of a step, counted from 0; the result does not depend on the order of calls."""
        block, i = divmod(step, BLOCK)
        if block != self._block:
            self._enter(block)
        system = int(self._systems[i])
        visit = int(self._visits[i, system])
        epoch, batch = divmod(visit, int(self.n_batches[system]))
        first = batch * int(self.batch_sizes[system])
        return system, self._order(system, epoch)[first : first + int(self.batch_sizes[system])]

    def summary(self) -> list[str]:
        """A table of the systems, as `dp train` prints it."""
        lines = [f"{'system':>42}  {'natoms':>6}  {'bch_sz':>6}  {'n_bch':>6}  {'prob':>9}"]
        for row in zip(self._names, self._n_atoms, self.batch_sizes, self.n_batches, self.probabilities, strict=True):
            name = row[0] if len(row[0]) <= 42 else "-- " + row[0][-39:]
            lines.append(f"{name:>42}  {row[1]:6d}  {row[2]:6d}  {row[3]:6d}  {row[4]:9.3e}")
        return lines

    def _enter(self, block: int) -> None:
        """Draw the systems of a block's steps, and count how often each was drawn before each step."""
        if block == self._block + 1:
            counts = self._visits[-1]
        elif self._in_turn:
            rounds, steps = divmod(block * BLOCK, int(self.n_batches.sum()))
            counts = rounds * self.n_batches + np.bincount(
                self._order_of_round(rounds)[:steps], minlength=len(self._names)
            )
        else:
            counts = np.zeros(len(self._names), np.int64)
            for earlier in range(block):
                counts += np.bincount(self._draw_systems(earlier), minlength=len(counts))
        self._systems = self._draw_systems(block)
        taken = self._systems[:, None] == np.arange(len(counts))
        self._visits = np.concatenate((counts[None], counts + np.cumsum(taken, axis=0)))
        self._block = block

    def _draw_systems(self, block: int) -> NDArray[np.int64]:
        if self._in_turn:
            rounds, steps = np.divmod(np.arange(block * BLOCK, (block + 1) * BLOCK), self.n_batches.sum())
            return np.concatenate([self._order_of_round(r)[steps[rounds == r]] for r in np.unique(rounds).tolist()])
        uniform = self._random(_SYSTEMS, 0, block).random(BLOCK)
        return np.minimum(np.searchsorted(self._edges, uniform, side="right"), self._last)

    def _order_of_round(self, number: int) -> NDArray[np.int64]:
        """The system of each step of a round, in which every system gives all its batches."""
        if self._round[0] != number:
            batches = np.repeat(np.arange(len(self._names)), self.n_batches)
            self._round = number, self._random(_SYSTEMS, 0, number).permutation(batches)
        return self._round[1]

    def _order(self, system: int, epoch: int) -> NDArray[np.int64]:
        """The shuffled frames of a system in one of its epochs."""
        known = self._orders.get(system)
        if known is None or known[0] != epoch:
            random = self._random(_FRAMES, system, epoch)
            frames = None if self._shares is None else [share.draw(random) for share in self._shares[system]]
            order = random.permutation(int(self._n_frames[system]) if frames is None else np.concatenate(frames))
            self._orders[system] = known = (epoch, order)
        return known[1]

    def _random(self, stream: int, a: int, b: int) -> np.random.Generator:
        # The lowest word of the counter counts the numbers that this generator draws.
        return np.random.Generator(np.random.Philox(key=[self._seed, 0], counter=[0, b, a, stream]))


def _batch_sizes(data: DataConfig, n_atoms: Sequence[int]) -> NDArray[np.int64]:
    rule = data.batch_size
    if isinstance(rule, int):
        return np.full(len(n_atoms), rule, np.int64)
    if isinstance(rule, list):
        if len(rule) != len(n_atoms):
            raise InputError(
                f"batch_size has {len(rule)} entries, but there are {len(n_atoms)} systems",
                where=f"{data.section}/batch_size",
                expected="one number for all, or one for each system found",
            )
        return np.array(rule, np.int64)
    kind, atoms = batch_rule(rule)
    sizes = [-(-atoms // n) if kind == "auto" else max(1, atoms // n) for n in n_atoms]
    return np.array(sizes, np.int64)


def _probabilities(data: DataConfig, n_batches: NDArray[np.int64]) -> NDArray[np.float64]:
    n = len(n_batches)
    if data.sys_probs is not None:
        return _given_probabilities(data.sys_probs, n_batches, f"{data.section}/sys_probs")
    blocks = prob_blocks(data.auto_prob)
    if blocks is None:
        return np.full(n, 1.0 / n)
    if not blocks:
        return n_batches / n_batches.sum()
    result = np.zeros(n)
    total = sum(weight for *_, weight in blocks)
    for first, end, weight in blocks:
        if end > n or result[first:end].any():
            raise InputError(
                f"block {first}:{end} of auto_prob overlaps another one or goes beyond the {n} systems",
                where=f"{data.section}/auto_prob",
            )
        result[first:end] = n_batches[first:end] / n_batches[first:end].sum() * weight / total
    return result


def _shares(
    sources: Sequence[NDArray[np.int64]], n: int, blocks: Sequence[tuple[int, int, float]], where: str
) -> list[list[Share]]:
    """For each system its share of each block, such that the blocks' numbers of frames are as their weights.

    `sources` holds, for each system's frames, the numbers that blocks count, from 0 to n − 1; `filter:N` may have left
    out all frames of some.  Frames in no block are taken once, as in DeePMD-kit.
    """
    rest = np.ones(n, bool)
    for first, end, _ in blocks:
        if end > n or not rest[first:end].all():
            raise InputError(
                f"block {first}:{end} of auto_prob overlaps another one or goes beyond the {n} systems of the database",
                where=where,
            )
        rest[first:end] = False
    parts = [([np.flatnonzero((of >= a) & (of < b)) for of in sources], weight) for a, b, weight in blocks]
    sizes = [sum(map(len, frames)) for frames, _ in parts]
    # So many frames of all blocks together that the largest block for its weight takes each of its frames once.
    scale = sum(weight for *_, weight in blocks)
    total = math.ceil(max(size / weight * scale for size, (_, weight) in zip(sizes, parts, strict=True) if weight))
    shares = [
        [Share(frames, len(frames))] if len(frames) else [] for frames in (np.flatnonzero(rest[of]) for of in sources)
    ]
    for (frames, weight), size in zip(parts, sizes, strict=True):
        ideal = np.array([len(of) for of in frames]) * (round(total * weight / scale) / max(size, 1))
        counts = np.diff(np.round(np.cumsum(ideal)).astype(np.int64), prepend=0)  # whole numbers with the ideal's sum
        for system, of, count in zip(shares, frames, counts.tolist(), strict=True):
            if count:
                system.append(Share(of, count))
    if not any(shares):
        raise InputError("the blocks of auto_prob leave no frame", where=where, expected="a block that has frames")
    return shares


def _given_probabilities(given: Sequence[float], n_batches: NDArray[np.int64], where: str) -> NDArray[np.float64]:
    """`sys_probs`; systems with negative entries share the rest by their numbers of batches."""
    if len(given) != len(n_batches):
        raise InputError(f"sys_probs has {len(given)} entries, but there are {len(n_batches)} systems", where=where)
    result = np.array(given, np.float64)
    free = result < 0
    rest = 1.0 - result[~free].sum()
    if rest < -1e-8 or (not free.any() and abs(rest) > 1e-5):
        raise InputError(f"sys_probs sum to {1.0 - rest:g}", where=where, expected="a sum of 1")
    if free.any():
        result[free] = max(rest, 0.0) * n_batches[free] / n_batches[free].sum()
    return result
