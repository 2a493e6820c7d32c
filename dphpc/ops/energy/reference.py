"""Energies and forces in plain NumPy: the references of `se_a` and of the fitting net combined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Floats
from dphpc.core.errors import InputError
from dphpc.core.exact_sum import exact_sum
from dphpc.model.networks import Network
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.fitting import reference as fitting
from dphpc.ops.se_a import reference as se_a
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters

TILE = 512
"""Number of atoms whose pairs and features are in memory at a time; networks without a table use this back end."""


def prepare(network: Network, channels: int, axis: int) -> Network:
    """See `contract.EnergyOps.prepare`."""
    return network


def not_reproducible() -> InputError:
    """The error where this back end is asked for reproducible forces."""
    return InputError(
        "a network with kinks and without a table gives forces whose last bits depend on ranks and threads",
        where="model",
        remedy="set deterministic: false, or compress the model with DeePMD-kit (dp compress)",
    )


def energy_and_forces(
    env: Environment, p: SeAParameters, e: Embedding, net: Network, columns: Floats | None, out: Accumulators
) -> tuple[NDArray[np.float64], float]:
    """See `contract.EnergyOps.energy_and_forces`.

    Raises
    ------
    InputError
        A spacing of the forces is asked for: NumPy's products depend on an atom's place in the array.
    """
    if out.force_spacing:
        raise not_reproducible()
    energies, largest = [np.zeros(0)], -np.inf
    for start in range(0, len(env.centers), TILE):
        tile = slice(start, start + TILE)
        part = replace(env, centers=env.centers[tile])
        moments, s_max = se_a.moments(part, p, e)
        features = se_a.features(moments, p.axis_neuron)
        inputs = features if columns is None else np.concatenate((features, columns[tile]), axis=1)
        found, adjoint = fitting.energy_and_adjoint(net, inputs)
        moments_adjoint = se_a.features_adjoint(moments, adjoint[:, : features.shape[1]])
        center_virial = np.empty((len(part.centers), 3, 3))
        se_a.forces_into(part, p, e, moments_adjoint, out.forces, center_virial, out.atom_virial)
        out.virial[...] += exact_sum(center_virial)
        energies.append(found.astype(np.float64))
        largest = max(largest, s_max)
    return np.concatenate(energies), largest
