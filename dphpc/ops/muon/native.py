"""Muon on the CPU: a matrix is one thread's, and of symmetric products one half is computed."""

from __future__ import annotations

from collections.abc import Sequence

from dphpc._native import kernels_of
from dphpc.ops.muon.contract import MuonMatrix, MuonStep
from dphpc.ops.threads import get_threads


def muon_step(s: MuonStep, matrices: Sequence[MuonMatrix]) -> None:
    """See `contract.MuonOps.muon_step`; the iterations run in float32."""
    for dtype in {m.value.dtype for m in matrices}:
        kernels_of(dtype).muon_step(s, [m for m in matrices if m.value.dtype == dtype], get_threads())
