"""Lennard-Jones with a smooth cutoff: a cheap analytic potential with the interface of the deep one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dphpc.core.errors import RunError
from dphpc.core.exact_sum import exact_sum, round_to
from dphpc.core.state import State
from dphpc.model.env_mat import switch
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.potential.contract import Halo, Outputs

CHUNK = 1 << 20
"""Pairs handled at once."""

IMPORT = (
    f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\nfrom tests.lennard_jones import LennardJones\n"
)
"""First lines of a program that runs in a process of its own."""


class LennardJones:
    """E = ½ Σ_ij 4ε[(σ/r)¹² − (σ/r)⁶]·sw(r), sw the C² switch of `model.env_mat` from `cutoff_smooth` to `cutoff`.

    Parameters
    ----------
    type_map
        Names of the types.
    epsilon, sigma
        eV and Å: one number, or symmetric (ntypes, ntypes).
    cutoff, cutoff_smooth
        Å.
    """

    def __init__(
        self,
        type_map: Sequence[str],
        epsilon: ArrayLike = 0.0104,
        sigma: ArrayLike = 3.4,
        cutoff: float = 8.5,
        cutoff_smooth: float = 6.8,
    ) -> None:
        n = len(type_map)
        self.type_map, self.cutoff, self.cutoff_smooth = list(type_map), cutoff, cutoff_smooth
        self.epsilon, self.sigma = (np.array(np.broadcast_to(np.asarray(p, float), (n, n))) for p in (epsilon, sigma))

    def memory_per_atom(self) -> float:
        """0: pairs are handled in chunks, so that memory does not grow with the atoms."""
        return 0.0

    def pair(
        self, r: NDArray[np.float64], first: NDArray[np.integer], second: NDArray[np.integer]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energy (eV) and its derivative (eV/Å) of pairs at distances r (n,) of types `first` and `second`."""
        epsilon, sigma = self.epsilon[first, second], self.sigma[first, second]
        s6 = (sigma / r) ** 6
        energy, slope = 4 * epsilon * (s6 * s6 - s6), -24 * epsilon * (2 * s6 * s6 - s6) / r
        sw, dsw = switch(r, self.cutoff, self.cutoff_smooth)
        return energy * sw, slope * sw + energy * dsw

    def compute(
        self,
        state: State,
        neighbors: Neighbors,
        halo: Halo | None,
        outputs: Outputs,
        centers: NDArray[np.int32] | None = None,
    ) -> None:
        """See `potential.contract.Potential`; each center adds half of a pair's force to both of its atoms."""
        first = np.repeat(np.arange(state.n_local, dtype=np.int32), np.diff(neighbors.offsets))
        pairs = np.arange(neighbors.n_pairs)
        if centers is not None:
            chosen = np.zeros(state.n_local, bool)
            chosen[centers] = True
            pairs = np.flatnonzero(chosen[first])
        for start in range(0, len(pairs), CHUNK):
            part = pairs[start : start + CHUNK]
            self._add_pairs(state, first[part], neighbors.indices[part], outputs)

    def _add_pairs(self, state: State, i: NDArray[np.int32], j: NDArray[np.int32], outputs: Outputs) -> None:
        x, types = state.positions, state.types
        d = x[j] - x[i]
        r2 = np.einsum("ij,ij->i", d, d)
        near = np.flatnonzero(r2 < self.cutoff**2)
        i, j, d, r = i[near], j[near], d[near], np.sqrt(r2[near])
        with np.errstate(all="ignore"):
            energy, slope = self.pair(r, types[i], types[j])
        bad = np.flatnonzero(~(np.isfinite(slope) & (r > 0)))
        if len(bad):
            k = bad[0]
            raise RunError(
                f"atom {state.ids[i[k]]} and atom {state.ids[j[k]]} are {r[k]:.3g} Å apart", where="Lennard-Jones"
            )
        force = round_to((0.5 * slope / r)[:, None] * d, outputs.force_spacing)  # on i; −force on j
        for axis in range(3):
            outputs.forces[:, axis] += np.bincount(i, force[:, axis], state.n_all)
            outputs.forces[:, axis] -= np.bincount(j, force[:, axis], state.n_all)
        outputs.energy_parts += exact_sum(0.5 * energy)
        pair_virial = -np.einsum("ni,nj->nij", force, d)
        outputs.virial_parts += exact_sum(pair_virial)
        if outputs.atom_energy is not None:
            outputs.atom_energy += 0.5 * np.bincount(i, energy, state.n_local)
        if outputs.atom_virial is not None:
            np.add.at(outputs.atom_virial, j, pair_virial)
