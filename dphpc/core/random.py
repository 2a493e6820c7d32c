"""Counter-based random numbers: a value depends on (seed, stream, step, atom id) and on nothing else.

So an atom draws the same numbers whichever rank owns it, and whether or not the run was restarted.
Philox4x32-10 of Salmon et al., SC'11, https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
Words = NDArray[np.uint64]

LOW32 = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


class Stream(IntEnum):
    """What a random number is for; streams are independent of each other."""

    VELOCITIES = 0
    LANGEVIN = 1
    BUSSI = 2
    BAROSTAT = 3


def philox(counter: tuple[Words, ...], key: tuple[int, int]) -> tuple[Words, ...]:
    """Philox4x32-10: four counter words and two key words of 32 bits to four random words of 32 bits.

    The counter's arrays (n,) broadcast against each other; words are kept in uint64.
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> HALF) ^ c1 ^ np.uint64(k0), p1 & LOW32, (p0 >> HALF) ^ c3 ^ np.uint64(k1), p0 & LOW32
        )  # fmt: skip
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def normals(seed: int, stream: Stream, step: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard normal numbers (len(ids), 3), each row a function of seed, stream, step and id alone.

    `seed` and `step` are below 2⁶⁰, `ids` below 2⁶³; pairs by Box–Muller from 53-bit uniforms.
    """
    unsigned: Words = np.ascontiguousarray(ids, np.int64).view(np.uint64)
    low, high = unsigned & LOW32, unsigned >> HALF
    mixed = (seed << 4) | int(stream)
    key = (mixed & 0xFFFFFFFF, mixed >> 32)
    result = np.empty((len(ids), 3))
    for pair in range(2):
        when = np.array([[step & 0xFFFFFFFF], [(step >> 32) << 4 | pair]], np.uint64)
        words = philox((low, high, when[0], when[1]), key)
        radius = np.sqrt(-2.0 * np.log(1.0 - _uniform(words[0], words[1])))
        angle = 2.0 * np.pi * _uniform(words[2], words[3])
        result[:, 2 * pair] = radius * np.cos(angle)
        if pair == 0:
            result[:, 1] = radius * np.sin(angle)
    return result


def generator(seed: int, stream: Stream, step: int, group: int = 0) -> np.random.Generator:
    """A NumPy generator for the few numbers that a whole step, or a group of atoms, needs; the same on every rank."""
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, group, step]))


def _uniform(a: Words, b: Words) -> NDArray[np.float64]:
    """Two random words as a number of 53 bits in [0, 1)."""
    return ((a << np.uint64(21)) ^ (b >> np.uint64(11))) * 2.0**-53
