"""The smooth two-body embedding descriptor `se_e2_a`: its parameters and derived tables.

Zhang et al., NeurIPS 31 (2018), arXiv:1805.09003.  With the normalized environment rows R̃ = (R − davg)/dstd of
the center's type and the embedding G(s̃), s̃ = R̃₀: A = R̃ᵀG/N, N = Σ sel, and the features are Aᵀ·A[:, :axis].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.model.env_mat import environment_rows, switch
from dphpc.model.gated import GatedNetwork
from dphpc.model.networks import Array, Network
from dphpc.model.radial_table import ScalarEmbedding

USED, COUNTED = 1, 2
"""Flags of a (center type, neighbor type) pair: adds to the moments; takes a slot of `sel`."""


@dataclass
class SeE2A:
    """Parameters of a `se_e2_a` descriptor.

    Attributes
    ----------
    kind
        What the file holds where that is another descriptor, for people to read.
    sel
        Slots per neighbor type, 0 hides the type; or one number, of slots that neighbors of any type take (`mixed`).
    networks
        One per neighbor type, or per (center, neighbor) at index center + ntypes·neighbor.
    davg, dstd
        (ntypes,) mean of s, and (ntypes, 2) deviations of s and of the direction terms, by center type.
    exclude_types
        Pairs (both orders) that add nothing but keep their slot.
    """

    rcut: float
    rcut_smth: float
    sel: tuple[int, ...]
    axis_neuron: int
    networks: list[Network]
    davg: NDArray[np.float64]
    dstd: NDArray[np.float64]
    type_one_side: bool = True
    exclude_types: frozenset[tuple[int, int]] = frozenset()
    env_protection: float = 0.0
    set_davg_zero: bool = False
    resnet_dt: bool = False
    activation_function: str = "tanh"
    precision: str = "float64"
    trainable: bool = True
    kind: str = ""

    @property
    def n_types(self) -> int:
        """Number of atom types."""
        return len(self.davg)

    @property
    def mixed(self) -> bool:
        """Whether `sel` is the number of slots of all types together."""
        return len(self.sel) < self.n_types

    @property
    def n_channels(self) -> int:
        """M, width of the embedding."""
        return self.networks[0].n_out

    @property
    def n_features(self) -> int:
        """M·axis_neuron, width of the descriptor."""
        return self.n_channels * self.axis_neuron

    @property
    def scale(self) -> float:
        """1/N of the moments, N = Σ sel."""
        return 1.0 / sum(self.sel)

    @property
    def gated(self) -> bool:
        """Whether the networks have a gate (`gated.py`), which makes tables of their own kind."""
        return any(isinstance(net, GatedNetwork) and net.gate is not None for net in self.networks)

    @property
    def kinks(self) -> str:
        """What is too rough for a table, in words; empty where all is smooth."""
        if any(net.has_kinks for net in self.networks):
            return f"a network with activation '{self.activation_function}' has kinks"
        if self.gated and self.davg.any():
            return "a smooth type embedding with davg != 0 has kinks"
        return ""

    @property
    def without_kinks(self) -> str:
        """What to do about them."""
        if self.gated:
            return 'train with "set_davg_zero": true'
        return "train with tanh, gelu or silu, or compress the model with DeePMD-kit (dp compress)"

    def network_index(self) -> NDArray[np.int32]:
        """(ntypes, ntypes): which network serves (center, neighbor)."""
        n = self.n_types
        center, neighbor = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        return (neighbor if self.type_one_side else center + n * neighbor).astype(np.int32)

    def pair_flags(self, missing: frozenset[tuple[int, int]] = frozenset()) -> NDArray[np.uint8]:
        """(ntypes, ntypes) of `USED` and `COUNTED`; `missing` pairs (the model's `pair_exclude_types`) have neither."""
        flags = np.full((self.n_types, self.n_types), USED | COUNTED, np.uint8)
        for a, b in self.exclude_types:
            flags[a, b] = flags[b, a] = COUNTED
        for a, b in missing:
            flags[a, b] = flags[b, a] = 0
        if not self.mixed:
            flags[:, np.array(self.sel) == 0] = 0
        return flags

    def slots(self) -> NDArray[np.int32]:
        """(ntypes,) slots of each type.

        Mixed ones are counted as the first type's: what a missing one adds depends on the center alone, so that
        Σ_t (slots_t − n_t) is all that matters.
        """
        return np.array((*self.sel, *[0] * (self.n_types - len(self.sel))), np.int32)

    def s_range(self, r_min: float) -> tuple[float, float]:
        """Union over center types of the range of s̃ for distances from `r_min` (Å) to rcut."""
        s_max = float(switch(np.array([r_min]), self.rcut, self.rcut_smth)[0][0]) / (r_min + self.env_protection)
        low = (0.0 - self.davg) / self.dstd[:, 0]
        high = (s_max - self.davg) / self.dstd[:, 0]
        return float(low.min()), float(high.max())

    def radial(self, r: Doubles) -> tuple[Doubles, Doubles]:
        """s in 1/Å and ds/dr at distances r (n,) in Å."""
        along = np.column_stack((r, np.zeros((len(r), 2))))
        rows, slopes = environment_rows(along, self.rcut, self.rcut_smth, self.env_protection)
        return np.asarray(rows[:, 0], np.float64), np.asarray(slopes[:, 0, 0], np.float64)

    def empty_slots(self, table: ScalarEmbedding) -> NDArray[np.floating]:
        """(ntypes, ntypes, M): what a missing slot of (center c, neighbor t) adds to the first row of N·A.

        R̃⁰_c·G(s̃⁰_c) with s̃⁰_c = R̃⁰_c = −davg_c/dstd_c; zero where sel_t = 0, the same for all t where slots are mixed.
        """
        n, net = self.n_types, self.network_index()
        s0 = -self.davg / self.dstd[:, 0]
        g = table.evaluate(np.repeat(s0, n), net.ravel())[0].reshape(n, n, -1)
        taken = np.ones(n, bool) if self.mixed else np.array(self.sel) > 0
        return (s0[:, None, None] * g * taken[None, :, None]).astype(g.dtype)

    def parameters(self) -> Iterator[tuple[str, Array]]:
        """Trainable arrays by name."""
        for i, net in enumerate(self.networks):
            for name, value in net.parameters():
                yield f"descriptor.networks.{i}.{name}", value
