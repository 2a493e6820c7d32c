"""Energies and forces in plain NumPy: the references of `se_a` and of the fitting net in a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Network
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.fitting import reference as fitting
from dphpc.ops.se_a import reference as se_a
from dphpc.ops.se_a.contract import Embedding, Environment, Floats, SeAParameters


def prepare(network: Network, channels: int, axis: int) -> Network:
    """See `contract.EnergyOps.prepare`."""
    return network


def energy_and_forces(
    env: Environment, p: SeAParameters, e: Embedding, net: Network, columns: Floats | None, out: Accumulators
) -> tuple[NDArray[np.float64], float]:
    """See `contract.EnergyOps.energy_and_forces`."""
    moments, largest = se_a.moments(env, p, e)
    features = se_a.features(moments, p.axis_neuron)
    inputs = features if columns is None else np.concatenate((features, columns), axis=1)
    energies, adjoint = fitting.energy_and_adjoint(net, inputs)
    moments_adjoint = se_a.features_adjoint(moments, adjoint[:, : features.shape[1]])
    center_virial = np.empty((len(env.centers), 3, 3))
    se_a.forces_into(env, p, e, moments_adjoint, out.forces, center_virial, out.atom_virial)
    out.virial[...] += center_virial.sum(axis=0)
    return energies.astype(np.float64), largest
