"""The training step of a model whose types share their networks (`model.shared`).

`TableStep` gives the gradients for the networks of pairs (t, c) and of center types c; the chain rule makes them
gradients of the shared networks.  With g_W and g_b, the gradients of a first layer's W and b, and sums over networks:

    ∂W[:1] = Σ g_W        ∂W[rows of T_t] = Σ T_t ⊗ g_b        ∂b = Σ g_b        ∂T_t = Σ W[rows of T_t]·g_b

T_c and the fitting network are treated alike, and the gradients of all other arrays are sums.  In `strip` form the
table (`ops/se_a/gated_knots.py`) gives sums over pairs for the embedding network, and gradients by the pairs' gains.
Backpropagation makes of these the gradients of M and of T, and of ∂T those of the types' embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.gated import GatedNetwork
from dphpc.model.networks import Network
from dphpc.model.radial_table import Grid
from dphpc.model.shared import EMBEDDING, FITTING, STRIP, TYPES, SharedNetworks
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.gated_knots import GatedKnotTable
from dphpc.train.parameters import Parameters
from dphpc.train.schema import TrainInput
from dphpc.train.step import LossGradient, TableStep

_W, _B = "layers.0.w", "layers.0.b"

Gradients = Mapping[str, Array]


class SharedGradients:
    """Gradients of the networks of types and pairs, and how they are summed to those of the shared networks.

    Parameters
    ----------
    gradients_of
        Gives the arrays for the gradients of a shared network, `Parameters.gradients_of`.

    Attributes
    ----------
    parts
        The gradients of the networks of types and pairs, by the prefix of their names.
    """

    def __init__(self, model: DPModel, shared: SharedNetworks, gradients_of: Callable[[str], Gradients]) -> None:
        self._shared = shared
        self._own = {prefix: gradients_of(f"{prefix}.0") for prefix in shared.groups}
        networks = {FITTING: model.fitting.networks}
        self.parts: dict[str, Gradients] = {}
        if shared.strip is None:
            networks[EMBEDDING] = model.descriptor.networks
        else:
            self._gains = np.zeros((len(shared.pairs), shared.strip.n_out))
            for i, gains in enumerate(self._gains):
                self.parts[f"{EMBEDDING}.{i}"] = {**self._own[EMBEDDING], "gains": gains}
        for prefix, members in networks.items():
            for i, network in enumerate(members):
                self.parts[f"{prefix}.{i}"] = _arrays(network, self._own[prefix])
        self._tebd_gradient = np.zeros_like(shared.tebd)

    def gradients_of(self, prefix: str) -> Gradients:
        """As `Parameters.gradients_of`, for the network of a type or a pair."""
        return self.parts[prefix]

    def clear_gains(self) -> None:
        """Set the gradients by all gains to zero."""
        self._gains[...] = 0.0

    def gather_fitting(self, centers: list[int]) -> None:
        """Set the shared fitting network's gradients from those of the center types in the batch.

        To be called before `gather_descriptor`.
        """
        s, tebd = self._shared, self._shared.tebd
        parts, own = [self.parts[f"{FITTING}.{t}"] for t in centers], self._own[FITTING]
        self._tebd_gradient[...] = 0.0
        _sum(parts, own)
        # W's rows of T_c; the others belong to features and parameters.
        rows = slice(s.at, s.at + tebd.shape[1]) if s.output_types else slice(s.at, s.at)
        if (w := own.get(_W)) is not None:
            w[...] = 0.0
            for part in parts:
                w[: rows.start] += part[_W][: rows.start]
                w[rows.stop :] += part[_W][rows.start :]
        if s.output_types and parts:
            g_b = np.array([part[_B] for part in parts], np.float64)
            self._tebd_gradient[centers] += g_b @ np.asarray(s.fitting.layers[0].w[rows], np.float64).T
            if w is not None:
                w[rows] = tebd[centers].T @ g_b

    def gather_descriptor(self) -> None:
        """Set the gradients of the shared networks of the descriptor."""
        s = self._shared
        tebd = s.tebd
        g_t = self._gather_concat(tebd) if s.strip is None else self._gather_strip(s.strip, tebd)
        neighbors, centers = np.array(s.pairs).T
        width = tebd.shape[1]
        np.add.at(self._tebd_gradient, neighbors, g_t[:, :width])
        if not s.one_side:
            np.add.at(self._tebd_gradient, centers, g_t[:, width:])
        _set(self._own[TYPES], s.types.astype(np.float64).adjoint(s.inputs, self._tebd_gradient)[0])

    def _gather_concat(self, tebd: NDArray[np.float64]) -> NDArray[np.float64]:
        """Set the gradients of the embedding network; returns those of its constant inputs, (n_networks, w or 2w)."""
        s, own = self._shared, self._own[EMBEDDING]
        parts = [self.parts[f"{EMBEDDING}.{i}"] for i in range(len(s.pairs))]
        _sum(parts, own)
        g_b = np.array([part[_B] for part in parts], np.float64)
        own[_W][:1] = np.sum([part[_W] for part in parts], axis=0)
        own[_W][1:] = s.tebd_of_pairs(tebd).T @ g_b
        return g_b @ np.asarray(s.embedding.layers[0].w[1:], np.float64).T

    def _gather_strip(self, strip: Network, tebd: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same for the network of the gains."""
        inputs = self._shared.tebd_of_pairs(tebd)
        gradients, of_inputs = strip.astype(np.float64).adjoint(inputs, self._gains)
        _set(self._own[STRIP], gradients)
        return np.asarray(of_inputs)


class SharedTableStep(TableStep):
    """A `TableStep` for a model whose types share their networks: it trains the shared weights."""

    def __init__(self, model: DPModel, parameters: Parameters, grid: Grid, tolerance: float) -> None:
        assert model.shared is not None, "the caller has such a model"
        self._shared = model.shared
        self._shared.spread()  # before all else: `parameters` has moved the shared arrays
        self._gathered = SharedGradients(model, self._shared, parameters.gradients_of)
        super().__init__(model, self._gathered, grid, tolerance)

    def _knots(self, used: tuple[int, ...], p: SeAParameters) -> Any:
        networks = [self.model.descriptor.networks[i] for i in used]
        gated = [net for net in networks if isinstance(net, GatedNetwork)]
        return GatedKnotTable(gated, p, self._grids(used)) if gated else super()._knots(used, p)

    def weights_changed(self) -> None:
        """To be called when the shared weights have changed."""
        self._shared.spread()
        super().weights_changed()

    def backward(self, loss: LossGradient, done: Callable[[str], None] = lambda _: None) -> None:
        """See `TableStep.backward`; the groups of names are the shared networks'."""
        last = f"{FITTING}.{len(self.model.fitting.networks) - 1}"

        def gather(part: str) -> None:
            if part == last:
                self._gathered.gather_fitting([t for t, _ in self._kept.centers.blocks])
                done(f"{FITTING}.0")
            elif part == "descriptor":
                self._gathered.gather_descriptor()
                done(part)

        super().backward(loss, gather)


def require_for_shared(config: TrainInput) -> None:
    """Refuse what models of this kind are not trained with.

    Raises
    ------
    InputError
        The plain networks in place of the table.
    """
    kind = config.model.descriptor.type
    if config.dphpc.embedding == "network":
        raise InputError(
            f"models with descriptor {kind} are trained through the table only", where="dphpc/embedding",
            expected='"table"', remedy="leave the key out",
        )  # fmt: skip


def _arrays(network: Network, wanted: Gradients) -> dict[str, Array]:
    """Arrays for the gradients of a network's arrays that are wanted, and of its first bias in any case."""
    return {name: np.zeros_like(a) for name, a in network.parameters() if name in wanted or name == _B}


def _set(own: Gradients, values: Gradients) -> None:
    """Set those gradients that are wanted."""
    for name, array in own.items():
        array[...] = values[name]


def _sum(parts: Sequence[Gradients], own: Gradients) -> None:
    """Add up the gradients of all arrays but the first layer's W."""
    for name, total in own.items():
        if name != _W:
            total[...] = 0.0
            for part in parts:
                total += part[name]
