"""What the fitting operation takes and returns: one network, many atoms of one type."""

from __future__ import annotations

from typing import Protocol

from dphpc.core.arrays import Floats
from dphpc.model.networks import Network


class FittingOps(Protocol):
    """A back end.  Inputs, weights and results share one precision."""

    def energy_and_adjoint(self, network: Network, inputs: Floats) -> tuple[Floats, Floats]:
        """Net output (n,) and its derivative by the inputs (n, n_in), for inputs (n, n_in)."""
