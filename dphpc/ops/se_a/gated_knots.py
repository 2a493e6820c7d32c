"""The table of networks N·(1 + gains·w), see `model/gated.py`, as a function of the weights of N and of the gains.

A table is linear in its function, so that C[N·(1 + gains·w)] = C[N] + gains·C[N·w]: N is evaluated at the knots once
for each gate, whatever the number of networks.  The jet of N·w is the product's, and so is the way back:

    y  = n·w                         n̄  = ȳ·w + ȳ′·w′ + ȳ″·w″
    y′ = n′·w + n·w′                 n̄′ = ȳ′·w + 2·ȳ″·w′
    y″ = n″·w + 2·n′·w′ + n·w″       n̄″ = ȳ″·w
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dphpc._native import kernels_of
from dphpc.core.arrays import Doubles
from dphpc.model.gated import Gate, GatedNetwork
from dphpc.model.networks import Network
from dphpc.model.radial_table import Grid, hermite_adjoint, hermite_coefficients
from dphpc.ops.arguments import gradients_of, layers_of
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.knots import EmptySlots, Gradients
from dphpc.ops.threads import get_threads

_POWERS = np.arange(6)
_AT_END = np.stack((np.ones(6), _POWERS, _POWERS * (_POWERS - 1)))
"""(3, 6): a polynomial in t and its first two derivatives at t = 1, from its coefficients."""
_AT_START = np.eye(3, 6) * np.array([[1.0], [1.0], [2.0]])
"""The same at t = 0."""


class GatedKnotTable:
    """As `knots.KnotTable`, for networks that differ in gains and gates only; their layers are the same objects.

    Parameters
    ----------
    networks
        Their arrays are read by each `update`.
    grids
        That of each network, all of the same intervals; with equal gates they are equal.

    Attributes
    ----------
    coefficients, empty
        As of `knots.KnotTable`.
    """

    def __init__(self, networks: Sequence[GatedNetwork], p: SeAParameters, grids: Sequence[Grid]) -> None:
        self._networks = networks
        self._slots = EmptySlots(p, grids[0])
        dtype, channels = networks[0].layers[0].w.dtype, networks[0].n_out
        self.coefficients = np.empty((len(networks), grids[0].n_intervals, 6, channels), dtype)
        self.empty = np.empty((*p.network.shape, channels), dtype)
        gates = [net.gate for net in networks]
        self._bases = {gate: _Base(gate, grid, channels) for gate, grid in zip(gates, grids, strict=True)}
        self._members = {gate: [i for i, other in enumerate(gates) if other == gate] for gate in self._bases}
        self.update()

    def update(self) -> None:
        """Recompute table and missing slots from the present weights and gains."""
        network = Network(self._networks[0].layers).astype(np.float64)
        for gate, base in self._bases.items():
            base.update(network)
            for i in self._members[gate]:
                self.coefficients[i] = base.plain + base.gated * self._networks[i].gains
        self.empty[...] = self._slots.of(self.coefficients)

    def backward(self, coefficients: Doubles, empty: Doubles, gradients: Sequence[Gradients]) -> None:
        """As `KnotTable.backward`; the layers' gradients, sums over all networks, are set in the first of `gradients`.

        Each network's `gains` has an array of its own.
        """
        self._slots.add_adjoint(empty, coefficients)
        network = Network(self._networks[0].layers).astype(np.float64)
        wanted = {name: array for name, array in gradients[0].items() if name != "gains"}
        for array in wanted.values():
            array[...] = 0.0
        for gate, base in self._bases.items():
            members = self._members[gate]
            of_plain, of_gated = np.zeros_like(base.plain), np.zeros_like(base.plain)
            for i in members:
                of_plain += coefficients[i]
                of_gated += coefficients[i] * self._networks[i].gains
                gradients[i]["gains"][...] = np.einsum("ikm,ikm->m", coefficients[i], base.gated)
            sums = {name: np.empty(array.shape) for name, array in wanted.items()}
            base.backward(network, of_plain, of_gated, sums)
            for name, array in wanted.items():
                array += sums[name]


class _Base:
    """The tables `plain` of N and `gated` of N·w, (n_intervals, 6, M) float64 each, on a grid."""

    def __init__(self, gate: Gate | None, grid: Grid, channels: int) -> None:
        self._grid, self._knots, self._widths = grid, grid.knots, grid.widths
        self._gate = None if gate is None else [a[:, None] for a in gate.jet(self._knots)]
        self._tape = kernels_of(np.dtype(np.float64)).KnotTape()
        self._table = np.empty((1, grid.n_intervals, 6, channels))
        self.plain = self.gated = self._table[0]

    def update(self, network: Network) -> None:
        """Recompute both from the network's weights."""
        self._tape.table([layers_of(network)], self._knots, self._widths, get_threads(), self._table)
        if self._gate is not None:
            n, n1, n2 = _jets_of(self._grid, self.plain)
            w, w1, w2 = self._gate
            product = np.stack((n * w, n1 * w + n * w1, n2 * w + 2.0 * n1 * w1 + n * w2))
            self.gated = hermite_coefficients(self._grid, product[:, None])[0]

    def backward(self, network: Network, of_plain: Doubles, of_gated: Doubles, gradients: Gradients) -> None:
        """Set the gradients of the network of the last `update`, given those of both tables."""
        if self._gate is None:
            total = of_plain + of_gated
        else:
            y, y1, y2 = hermite_adjoint(self._grid, of_gated)
            w, w1, w2 = self._gate
            n = np.stack((y * w + y1 * w1 + y2 * w2, y1 * w + 2.0 * y2 * w1, y2 * w))
            total = of_plain + _jets_adjoint(self._grid, n)
        wanted = [gradients_of(network, gradients)]
        self._tape.gradient(self._knots, self._widths, total[None], get_threads(), wanted)


def _jets_of(grid: Grid, coefficients: Doubles) -> Doubles:
    """Jets (3, n_intervals + 1, M) at the knots of a table with `coefficients` (n_intervals, 6, M)."""
    starts = np.einsum("dk,ikm->dim", _AT_START, coefficients)
    jets = np.concatenate((starts, (_AT_END @ coefficients[-1])[:, None]), axis=1)
    return jets / _scale(grid)


def _jets_adjoint(grid: Grid, jets: Doubles) -> Doubles:
    """Gradient by the coefficients that `_jets_of` takes, given that by the jets."""
    jets = jets / _scale(grid)
    coefficients: Doubles = np.einsum("dk,dim->ikm", _AT_START, jets[:, :-1])
    coefficients[-1] += _AT_END.T @ jets[:, -1]
    return coefficients


def _scale(grid: Grid) -> Doubles:
    """(3, n_intervals + 1, 1) factors of derivatives by s in those by t: that of each knot's own interval."""
    widths = np.append(grid.widths, grid.steps[-1])
    scale: Doubles = widths ** np.arange(3)[:, None]
    return scale[:, :, None]
