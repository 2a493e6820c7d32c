"""The training step of a model whose types share their networks (`model.shared`).

`TableStep` gives the gradients for the networks of pairs (t, c) and of center types c; the chain rule makes them
gradients of the shared networks.  With g_W and g_b, the gradients of a first layer's W and b, and sums over networks:

    ∂W[:1] = Σ g_W        ∂W[rows of T_t] = Σ T_t ⊗ g_b        ∂b = Σ g_b        ∂T_t = Σ W[rows of T_t]·g_b

T_c and the fitting network are treated alike, and the gradients of all other arrays are sums.  The types' embedding,
T = X·W + b, has ∂W = Xᵀ·∂T and ∂b = Σ ∂T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Network
from dphpc.model.radial_table import Grid
from dphpc.model.shared import EMBEDDING, FITTING, TYPES, SharedNetworks
from dphpc.train.parameters import Parameters
from dphpc.train.schema import TrainInput
from dphpc.train.step import LossGradient, TableStep

_W, _B = "layers.0.w", "layers.0.b"

Gradients = Mapping[str, Array]


class SharedGradients:
    """Gradients of the networks of types and pairs, and how they are summed to those of the shared networks.

    Parameters
    ----------
    model
        The model; `parameters` holds the arrays of its shared networks.
    """

    def __init__(self, model: DPModel, shared: SharedNetworks, parameters: Parameters) -> None:
        self._shared = shared
        self._own = {prefix: parameters.gradients_of(f"{prefix}.0") for prefix in shared.groups}
        networks = {EMBEDDING: model.descriptor.networks, FITTING: model.fitting.networks}
        self._parts = {
            f"{prefix}.{i}": _arrays(network, self._own[prefix])
            for prefix, members in networks.items()
            for i, network in enumerate(members)
        }
        self._tebd_gradient = np.zeros_like(shared.tebd)

    def gradients_of(self, prefix: str) -> Gradients:
        """As `Parameters.gradients_of`, for the network of a type or a pair."""
        return self._parts[prefix]

    def gather_fitting(self, centers: list[int]) -> None:
        """Set the shared fitting network's gradients from those of the center types in the batch.

        To be called before `gather_descriptor`.
        """
        s, tebd = self._shared, self._shared.tebd
        parts, own = [self._parts[f"{FITTING}.{t}"] for t in centers], self._own[FITTING]
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
        """Set the gradients of the shared embedding network and of the types' embedding."""
        s, tebd = self._shared, self._shared.tebd
        parts, own = [self._parts[f"{EMBEDDING}.{i}"] for i in range(len(s.pairs))], self._own[EMBEDDING]
        _sum(parts, own)
        g_b = np.array([part[_B] for part in parts], np.float64)
        own[_W][:1] = np.sum([part[_W] for part in parts], axis=0)
        own[_W][1:] = s.tebd_of_pairs(tebd).T @ g_b
        g_t = g_b @ np.asarray(s.embedding.layers[0].w[1:], np.float64).T
        neighbors, centers = np.array(s.pairs).T
        width = tebd.shape[1]
        np.add.at(self._tebd_gradient, neighbors, g_t[:, :width])
        if not s.one_side:
            np.add.at(self._tebd_gradient, centers, g_t[:, width:])
        types = self._own[TYPES]
        types[_W][...] = s.inputs.T @ self._tebd_gradient
        if _B in types:
            types[_B][...] = self._tebd_gradient.sum(axis=0)


class SharedTableStep(TableStep):
    """A `TableStep` for a model whose types share their networks: it trains the shared weights."""

    def __init__(self, model: DPModel, parameters: Parameters, grid: Grid, tolerance: float) -> None:
        assert model.shared is not None, "the caller has such a model"
        self._shared = model.shared
        self._shared.spread()  # before all else: `parameters` has moved the shared arrays
        self._gathered = SharedGradients(model, self._shared, parameters)
        super().__init__(model, self._gathered, grid, tolerance)

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


def require_for_shared(config: TrainInput, device: Device | None) -> None:
    """Refuse what models of this kind are not trained with.

    Raises
    ------
    InputError
        A GPU, or the plain networks in place of the table.
    """
    kind = config.model.descriptor.type
    if device is not None:
        raise InputError(
            f"models with descriptor {kind} are trained on the CPU only", where="dphpc/device", expected="cpu",
            remedy="--device cpu",
        )  # fmt: skip
    if config.dphpc.embedding == "network":
        raise InputError(
            f"models with descriptor {kind} are trained through the table only", where="dphpc/embedding",
            expected='"table"', remedy="leave the key out",
        )  # fmt: skip


def _arrays(network: Network, wanted: Gradients) -> dict[str, Array]:
    """Arrays for the gradients of a network's arrays that are wanted, and of its first bias in any case."""
    return {name: np.zeros_like(a) for name, a in network.parameters() if name in wanted or name == _B}


def _sum(parts: Sequence[Gradients], own: Gradients) -> None:
    """Add up the gradients of all arrays but the first layer's W."""
    for name, total in own.items():
        if name != _W:
            total[...] = 0.0
            for part in parts:
                total += part[name]
