"""`se_e2_a` in torch, with the networks evaluated at every pair, so that it can be differentiated twice.

For training where no table can replace the networks, and for checking the tangent pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dphpc.model.networks import Network
from dphpc.ops.se_a.contract import Environment, SeAParameters
from dphpc.ops.se_a.reference import used_pairs


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
    center, second, _, free = (torch.from_numpy(array) for array in used_pairs(env, p))
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
