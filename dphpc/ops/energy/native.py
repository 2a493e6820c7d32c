"""Energies and forces on the CPU: one compiled pass over tiles of atoms, which are shared among threads.

Energies, virial, and forces with a spacing do not depend on the number of threads; forces without a spacing are the
same in every run with the same number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.ops.energy.contract import Accumulators
from dphpc.ops.fitting.native import packed
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters
from dphpc.ops.threads import get_threads

prepare = packed
"""See `contract.EnergyOps.prepare`."""


def energy_and_forces(
    env: Environment, p: SeAParameters, e: Embedding, net: Any, columns: Floats | None, out: Accumulators
) -> tuple[NDArray[np.float64], float]:
    """See `contract.EnergyOps.energy_and_forces`."""
    energies = np.empty(len(env.centers))
    ops = kernels_of(e.table.coefficients.dtype)
    largest = ops.energy_and_forces(env, p, e, net, columns, get_threads(), energies, *out)
    return energies, largest
