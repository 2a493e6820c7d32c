"""The fitting network on the CPU: the compiled kernels, with weights packed once for many products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dphpc._native import kernels_of
from dphpc.core.arrays import Floats
from dphpc.model.networks import Network
from dphpc.ops.arguments import gradients_of, layers_of
from dphpc.ops.threads import get_threads


def packed(network: Network, channels: int = 0, axis: int = 0) -> Any:
    """The network as the kernels hold it; its weights are copied.

    Parameters
    ----------
    channels, axis
        The first channels·axis inputs are features in the order of `se_a.contract.SeAOps.features`.
    """
    dtype = network.layers[0].w.dtype
    return kernels_of(dtype).PackedNet(layers_of(network), channels, axis)


def energy_and_adjoint(network: Network, inputs: Floats) -> tuple[Floats, Floats]:
    """See `contract.FittingOps.energy_and_adjoint`."""
    inputs = np.ascontiguousarray(inputs)
    energies, adjoint = np.empty(len(inputs), inputs.dtype), np.empty_like(inputs)
    packed(network).evaluate(inputs, energies, adjoint)
    return energies, adjoint


class FittingTape:
    """One network in training, between moments and energies; `reference.gradient` has the formulas.

    Use in this order: `repack` when weights have changed, `energy_and_adjoint`, `gradient`.

    Parameters
    ----------
    network
        Its arrays, C-contiguous, are read where they are.
    channels, axis
        Of the descriptor: the first channels·axis inputs are its features.
    """

    def __init__(self, network: Network, channels: int, axis: int) -> None:
        self.network = network
        self.dtype = network.layers[0].w.dtype
        assert all(a.flags.c_contiguous and a.dtype == self.dtype for _, a in network.parameters()), "else copied"
        self._tape = kernels_of(self.dtype).FittingTape(layers_of(network), channels, axis)

    def repack(self) -> None:
        """Take the network's present weights."""
        self._tape.weights_changed()

    def energy_and_adjoint(
        self, moments: Floats, columns: Floats | None = None, out: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """E (n,) and ∂E/∂A (n, 4, M) for moments A (n, 4, M) and inputs beside the features (n, n_columns).

        ∂E/∂A is written to `out`, a C-contiguous array, where one is given.
        """
        moments = np.ascontiguousarray(moments, self.dtype)
        columns = None if columns is None else np.ascontiguousarray(columns, self.dtype)
        energies, adjoint = np.empty(len(moments), self.dtype), np.empty_like(moments) if out is None else out
        self._tape.energy_and_adjoint(moments, columns, get_threads(), energies, adjoint)
        self._inputs = moments, columns  # the tape reads them again
        return energies, adjoint

    def gradient(
        self,
        seeds: Floats,
        tangent: Floats,
        gradients: Mapping[str, Floats],
        *,
        add: bool = False,
        out: Floats | None = None,
    ) -> Floats:
        """Gradient of Σ ē·E + Ė, with Ė along Ȧ.

        Parameters
        ----------
        seeds, tangent
            ē (n,) and Ȧ (n, 4, M).
        gradients
            C-contiguous arrays to be set, or added to, by the names of `Network.parameters`; names that are left out
            are not computed.

        Returns
        -------
        (n, 4, M) gradient by the moments; `out`, a C-contiguous array, where one is given.
        """
        seeds, tangent = (np.ascontiguousarray(a, self.dtype) for a in (seeds, tangent))
        wanted = gradients_of(self.network, gradients)
        result = np.empty_like(tangent) if out is None else out
        self._tape.gradient(seeds, tangent, get_threads(), wanted, add, result)
        return result
