"""Muon in plain NumPy, in the parameters' precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dphpc.core.arrays import Floats
from dphpc.ops.muon.contract import COEFFICIENTS, ITERATIONS, TINY, MuonMatrix, MuonStep


def muon_step(s: MuonStep, matrices: Sequence[MuonMatrix]) -> None:
    """See `contract.MuonOps.muon_step`."""
    for m in matrices:
        m.momentum[...] += (1.0 - s.momentum) * (m.gradient - m.momentum)
        step = orthogonalized(m.gradient + s.momentum * (m.momentum - m.gradient))
        m.value[...] = (1.0 - s.rate * s.decay) * m.value - s.rate * m.scale * step


def orthogonalized(matrix: Floats) -> Floats:
    """O(M) of a matrix (m, n)."""
    if matrix.shape[0] < matrix.shape[1]:
        return orthogonalized(matrix.T).T
    a, b, c = COEFFICIENTS
    x = matrix / (np.linalg.norm(matrix) + TINY)
    for _ in range(ITERATIONS):
        gram = x.T @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x
