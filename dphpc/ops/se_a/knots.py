"""The radial table as a function of the embedding weights: forward to its coefficients, back to the weights' gradients.

Networks are evaluated with their first two derivatives at the knots only (Taylor mode, as `Network.jet`), and the
reverse pass through that is written out.  With x → z = x·W + b and (a, a′, a″, a‴) the activation's derivatives at z:

    y  = a                   z̄  = ȳ·a′ + ȳ′·a″·z′ + ȳ″·(a‴·z′² + a″·z″)
    y′ = a′·z′               z̄′ = ȳ′·a′ + 2·ȳ″·a″·z′
    y″ = a″·z′² + a′·z″      z̄″ = ȳ″·a′

Tiles of knots go through all layers, and the three rows of a knot's jet share the matrix products; compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc._native import kernels_of
from dphpc.core.arrays import Doubles
from dphpc.model.networks import Network
from dphpc.model.radial_table import Grid
from dphpc.ops.arguments import gradients_of, layers_of
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.threads import get_threads

Gradients = Mapping[str, NDArray[np.floating]]


class KnotTable:
    """Table and missing slots of networks with their present weights, and the backward pass to the weights.

    Parameters
    ----------
    networks
        Networks of equal shapes and one precision, which is also the table's; everything in between is float64.  Their
        arrays are read by each `update`.

    Attributes
    ----------
    coefficients
        (n_networks, n_intervals, 6, M), as in `RadialTable`.
    empty
        (ntypes, ntypes, M), `SeE2A.empty_slots` of that table; both arrays are updated in place.
    """

    def __init__(self, networks: Sequence[Network], p: SeAParameters, grid: Grid) -> None:
        self._networks, self._knots, self._widths = networks, grid.knots, grid.widths
        self._layers = [layers_of(net) for net in networks]
        dtype = networks[0].layers[0].w.dtype
        self._tape = kernels_of(dtype).KnotTape()
        self.coefficients = np.empty((len(networks), grid.n_intervals, 6, networks[0].n_out), dtype)
        self.empty = np.empty((*p.network.shape, networks[0].n_out), dtype)
        self._slots = EmptySlots(p, grid)
        self.update()

    def update(self) -> None:
        """Recompute table and missing slots from the networks' present weights."""
        self._tape.table(self._layers, self._knots, self._widths, get_threads(), self.coefficients)
        self.empty[...] = self._slots.of(self.coefficients)

    def backward(self, coefficients: Doubles, empty: Doubles, gradients: Sequence[Gradients]) -> None:
        """Set each network's `gradients`, given those of `coefficients` (changed in place) and `empty`.

        `gradients` holds arrays by the names of `Network.parameters`; missing names are skipped.
        """
        self._slots.add_adjoint(empty, coefficients)
        wanted = [gradients_of(net, arrays) for net, arrays in zip(self._networks, gradients, strict=True)]
        self._tape.gradient(self._knots, self._widths, coefficients, get_threads(), wanted)


class EmptySlots:
    """`SeE2A.empty_slots` of tables on one grid, as a function of their coefficients."""

    def __init__(self, p: SeAParameters, grid: Grid) -> None:
        s0 = -p.davg / p.dstd[:, 0]
        index, t = grid.locate(s0)
        self._shape = p.network.shape
        # Center and neighbor types of the slots; where s̃ is 0 a slot adds nothing.
        c, n = self._types = np.nonzero(np.logical_and.outer(s0 != 0.0, p.sel > 0))
        # A slot's value is the polynomial of one piece of the table; several slots may have the same.
        self._powers = t[c, None] ** np.arange(6) * s0[c, None]
        self._pieces = p.network[c, n], index[c]
        different, which = np.unique(np.stack(self._pieces), axis=1, return_inverse=True)
        self._different = tuple(different)
        self._to_different = np.zeros((len(different[0]), 6, len(c)))
        self._to_different[which.ravel(), :, np.arange(len(c))] = self._powers

    def of(self, coefficients: NDArray[np.floating]) -> Doubles:
        """(ntypes, ntypes, M)."""
        values = np.zeros((*self._shape, coefficients.shape[-1]))
        values[self._types] = (self._powers[:, None] @ coefficients[self._pieces])[:, 0]
        return values

    def add_adjoint(self, empty: Doubles, coefficients: Doubles) -> None:
        """Add to the gradient by the coefficients what that by the missing slots, `empty`, gives."""
        coefficients[self._different] += self._to_different @ empty[self._types]
