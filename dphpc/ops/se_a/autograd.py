"""The trained side of `se_e2_a` in torch: the radial table as a function of the weights, and the plain network.

`KnotTable` is the small graph between embedding weights and table that every training step differentiates once.
`network_moments` evaluates the networks at every pair; it can be differentiated twice and judges the tangent pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dphpc.model.activations import activation
from dphpc.model.descriptor import COUNTED, USED
from dphpc.model.networks import Network
from dphpc.model.radial_table import HERMITE_LEFT, HERMITE_RIGHT, Grid
from dphpc.ops.se_a.contract import Environment, SeAParameters

Doubles = NDArray[np.float64]


class KnotTable:
    """Table and missing slots of networks as they are now, and the way back from their gradients to the weights.

    Parameters
    ----------
    networks
        Of equal widths, holding torch tensors of any one precision; everything is formed in float64.

    Attributes
    ----------
    coefficients
        (n_networks, n_intervals, 6, M), as in `RadialTable`.
    empty
        (ntypes, ntypes, M), `SeE2A.empty_slots` of that table.
    """

    def __init__(self, networks: Sequence[Network], p: SeAParameters, grid: Grid) -> None:
        self._jets = network_jets(networks, torch.from_numpy(grid.knots))
        scale = grid.steps[:, None] ** np.arange(3)
        # Local coefficients are linear in (G, hG′, h²G″) of the left and of the right knot.
        self._map = np.concatenate((HERMITE_LEFT * scale[:, None], HERMITE_RIGHT * scale[:, None]), axis=2)
        jets = self._jets.detach().numpy()
        self.coefficients = np.matmul(self._map, np.concatenate((jets[:, :-1], jets[:, 1:]), axis=2))
        s0 = -p.davg / p.dstd[:, 0]
        index, t = grid.locate(s0)
        self._slots = p.network, index[:, None]
        self._powers = t[:, None] ** np.arange(6) * s0[:, None]
        self._taken = (p.sel > 0)[None, :, None]
        self.empty = np.einsum("ctkm,ck->ctm", self.coefficients[self._slots], self._powers) * self._taken

    def backward(self, coefficients: Doubles, empty: Doubles) -> None:
        """Add to the weights' gradients, given those of `coefficients` (changed in place) and `empty`."""
        np.add.at(coefficients, self._slots, np.einsum("ctm,ck->ctkm", empty * self._taken, self._powers))
        sides = np.matmul(self._map.transpose(0, 2, 1), coefficients)
        jets = np.zeros(self._jets.shape)
        jets[:, :-1] += sides[:, :, :3]
        jets[:, 1:] += sides[:, :, 3:]
        self._jets.backward(torch.from_numpy(jets))


def network_jets(networks: Sequence[Network], s: Tensor) -> Tensor:
    """(n_networks, n, 3, M) float64 values and first two derivatives at `s` (n,); see `Network.jet`.

    All networks go through each layer together, and the three rows of a jet share one matrix product.
    """
    k, n = len(networks), len(s)
    x = torch.stack((s, torch.ones_like(s), torch.zeros_like(s)))[None, :, :, None].expand(k, 3, n, 1)
    for layers in zip(*(net.layers for net in networks), strict=True):
        w, b, idt = (_stacked([getattr(layer, name) for layer in layers]) for name in ("w", "b", "idt"))
        assert w is not None
        z, z1, z2 = torch.bmm(x.reshape(k, 3 * n, -1), w).view(k, 3, n, -1).unbind(1)
        a, a1, a2 = activation(layers[0].activation)(torch, z if b is None else z + b[:, None, :])
        y = torch.stack((a, a1 * z1, a2 * z1 * z1 + a1 * z2), 1)
        if idt is not None:
            y = y * idt[:, None, None, :]
        if layers[0].skip:
            y = y + (x if layers[0].skip == 1 else torch.cat((x, x), 3))
        x = y
    return x.transpose(1, 2)


def _stacked(arrays: list[Tensor | None]) -> Tensor | None:
    present = [a for a in arrays if a is not None]
    return torch.stack(present).to(torch.float64) if present else None


def network_moments(
    env: Environment, p: SeAParameters, networks: Sequence[Network], positions: Tensor, strain: Tensor
) -> Tensor:
    """Moments A (n_c, 4, M) by the networks themselves, with every r_ij strained by (1 + strain of its center).

    Parameters
    ----------
    networks
        Holding torch tensors.
    positions
        (n_all, 3) with the values of `env.positions`.
    strain
        (n_c, 3, 3).
    """
    center, second, free = _used_pairs(env, p)
    first = torch.from_numpy(env.centers).long()[center]
    r = positions[second] - positions[first]
    r = r + torch.einsum("nxy,ny->nx", strain[center], r)
    types = torch.from_numpy(env.types).long()
    ti, tj = types[first], types[second]
    rows = _environment_rows(r, p)
    davg, dstd = torch.from_numpy(p.davg), torch.from_numpy(p.dstd)
    rows = torch.cat((rows[:, :1] - davg[ti, None], rows[:, 1:]), 1) / dstd[ti][:, [0, 1, 1, 1]]
    rows = rows.to(networks[0].layers[0].w.dtype)
    which = torch.from_numpy(p.network).long()[ti, tj]
    result = rows.new_zeros((len(env.centers), 4, networks[0].n_out))
    for k, net in enumerate(networks):
        here = torch.nonzero(which == k).ravel()
        g = net(rows[here, :1], torch)
        result = result.index_add(0, center[here], rows[here][:, :, None] * g[:, None, :])
    center_types = types[torch.from_numpy(env.centers).long()]
    empty = _network_empty_slots(p, networks)[center_types]
    first_row = torch.einsum("ct,ctm->cm", free.to(empty.dtype), empty)
    return (result + torch.nn.functional.pad(first_row[:, None, :], (0, 0, 0, 3))) * p.scale


def _used_pairs(env: Environment, p: SeAParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Center row and neighbor of each pair that adds to the moments; free slots (n_c, ntypes)."""
    counts = np.diff(env.neighbors.offsets)[env.centers]
    center = np.repeat(np.arange(len(env.centers)), counts)
    within = np.arange(len(center)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = env.neighbors.indices[np.repeat(env.neighbors.offsets[env.centers], counts) + within].astype(np.int64)
    first = env.centers[center]
    inside = np.linalg.norm(env.positions[second] - env.positions[first], axis=1) < p.rcut
    flags = p.flags[env.types[first], env.types[second]]
    free = np.tile(p.sel.astype(np.float64), (len(env.centers), 1))
    counted = inside & (flags & COUNTED > 0)
    np.subtract.at(free, (center[counted], env.types[second[counted]]), 1.0)
    used = inside & (flags & USED > 0)
    return torch.from_numpy(center[used]), torch.from_numpy(second[used]), torch.from_numpy(free)


def _environment_rows(r: Tensor, p: SeAParameters) -> Tensor:
    distance = r.norm(dim=1, keepdim=True)
    u = ((distance - p.rcut_smth) / (p.rcut - p.rcut_smth)).clamp(0.0, 1.0)
    q = 1.0 / (distance + p.protection)
    s = (u**3 * (-6.0 * u**2 + 15.0 * u - 10.0) + 1.0) * q
    return torch.cat((s, s * q * r), 1)


def _network_empty_slots(p: SeAParameters, networks: Sequence[Network]) -> Tensor:
    n = len(p.sel)
    s0 = torch.from_numpy(-p.davg / p.dstd[:, 0]).to(networks[0].layers[0].w.dtype)
    values = torch.stack([net(s0[:, None], torch) for net in networks])  # (n_networks, ntypes, M)
    g = values[torch.from_numpy(p.network).long(), torch.arange(n)[:, None]]
    hidden = torch.from_numpy((p.sel > 0).astype(np.float64)).to(g.dtype)
    return g * s0[:, None, None] * hidden[None, :, None]
