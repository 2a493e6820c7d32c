"""`shared_step.SharedTableStep` on a GPU: the chain rule goes through the host.

The GPU holds the shared arrays.  The networks of types and pairs have views of them, and first biases of their own,
which the host computes anew when the weights have changed; it also turns their gradients into the shared networks'.  In
`strip` form the host makes the table, too, and takes its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.model.dp_model import DPModel
from dphpc.model.gated import GatedNetwork
from dphpc.model.networks import Layer, Network
from dphpc.model.radial_table import Grid
from dphpc.model.shared import EMBEDDING, FITTING, SharedNetworks
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.ops.se_a.gated_knots import GatedKnotTable
from dphpc.train.gpu_step import GpuStep
from dphpc.train.parameters import ALIGNMENT, Parameters
from dphpc.train.shared_step import SharedGradients
from dphpc.train.step import LossGradient, Table


class OwnNetworks:
    """The networks of types and pairs, and their gradients, on the GPU that holds the shared ones; as `Parameters`.

    Attributes
    ----------
    device, descriptor_networks, fitting_networks
        As of `Parameters`.
    """

    def __init__(self, model: DPModel, shared: SharedNetworks, parameters: Parameters) -> None:
        assert parameters.device is not None
        self.device: Device = parameters.device
        self._shared, self._parameters = shared, parameters
        self._on_host = [np.zeros(flat.shape[0], str(flat.dtype).removeprefix("torch.")) for flat in parameters.flats]
        self._gathered = SharedGradients(model, shared, partial(parameters.gradients_of, flats=self._on_host))
        self._uploaded: list[tuple[Layer, Layer]] = []
        embedding, fitting = parameters.descriptor_networks[0], parameters.fitting_networks[0]
        of_pairs = [] if shared.strip else shared.of_pairs
        self.descriptor_networks = [self._twin(net, embedding, 1) for net in of_pairs]
        at = shared.at if shared.at + shared.types.n_out == fitting.n_in else None
        self.fitting_networks = [
            self._twin(net, fitting, at) if shared.output_types else fitting for net in shared.of_centers
        ]
        self._take_gradients(model)
        self.refresh()

    def _twin(self, own: Network, shared: Network, rows: int | None) -> Network:
        """A network on the GPU; its first weights are the first rows of the shared ones, unless `rows` is None."""
        first, host = shared.layers[0], own.layers[0]
        assert host.b is not None
        w = self._zeros(host.w) if rows is None else first.w[:rows]
        layer = Layer(w, self._zeros(host.b), first.idt, first.activation, False)
        self._uploaded.append((host, replace(layer, w=w if rows is None else None)))
        return Network([layer, *shared.layers[1:]])

    def _zeros(self, like: NDArray[np.floating]) -> Array:
        return self.device.zeros(like.size, like.dtype).reshape(like.shape)

    def _take_gradients(self, model: DPModel) -> None:
        """Memory for gradients, side by side."""
        end, stripped = 0, self._shared.strip is not None
        self._places: dict[str, dict[str, slice]] = {}
        for prefix, arrays in self._gathered.parts.items():
            if stripped and prefix.startswith(EMBEDDING):
                continue
            self._places[prefix] = {}
            for name, array in arrays.items():
                self._places[prefix][name] = slice(end, end + array.size)
                step = ALIGNMENT // array.itemsize
                end += -(-array.size // step) * step
        self._flat = self.device.zeros(end, model.descriptor.networks[0].layers[0].w.dtype)

    def gradients_of(self, prefix: str) -> Mapping[str, Array]:
        """As of `Parameters`, for the network of a type or a pair; of a `strip` pair the host has them."""
        arrays, places = self._gathered.parts[prefix], self._places.get(prefix, {})
        return {name: self._flat[place].reshape(arrays[name].shape) for name, place in places.items()}

    def fetch(self) -> None:
        """Copy the shared arrays to the host, and update there what follows from them."""
        self._parameters.fetch()
        self._shared.spread()

    def refresh(self) -> None:
        """Update the networks of types and pairs to the shared weights as they are now."""
        self.fetch()
        for host, layer in self._uploaded:
            for name, array in layer.parameters():
                if name != "idt":
                    self.device.upload(np.ascontiguousarray(getattr(host, name)), array)

    def gather(self, centers: list[int], table: Table) -> None:
        """Set the shared networks' gradients from those of the center types in the batch and of the table's pairs."""
        found, parts = self.device.download(self._flat), self._gathered.parts
        for prefix, places in self._places.items():
            for name, place in places.items():
                parts[prefix][name][...] = found[place].reshape(parts[prefix][name].shape)
        self._gathered.gather_fitting(centers)
        if self._parameters.model.descriptor.trainable:
            if isinstance(table.knots, HostKnots):
                self._gathered.clear_gains()
                table.knots.set_gradients([parts[f"{EMBEDDING}.{i}"] for i in table.used])
            self._gathered.gather_descriptor()
        for values, flat in zip(self._on_host, self._parameters.gradient_arrays, strict=True):
            self.device.upload(values, flat)


class HostKnots:
    """A table of the host with its arrays on the GPU; used like `CudaKnotTable`."""

    growths = 0

    def __init__(self, device: Device, table: GatedKnotTable) -> None:
        self._device, self._table = device, table
        self.coefficients, self.empty = (
            device.zeros(a.size, a.dtype).reshape(a.shape) for a in (table.coefficients, table.empty)
        )
        self._upload()

    def _upload(self) -> None:
        self._device.upload(self._table.coefficients, self.coefficients)
        self._device.upload(self._table.empty, self.empty)

    def update(self) -> None:
        """Recompute table and missing slots from the networks' present weights."""
        self._table.update()
        self._upload()

    def backward(self, coefficients: Array, empty: Array, _: Sequence[Mapping[str, Array]]) -> None:
        """Remember where the GPU puts the gradients by table and missing slots."""
        self._found = coefficients, empty

    def set_gradients(self, gradients: Sequence[Mapping[str, NDArray[np.floating]]]) -> None:
        """Set the networks' gradients on the host."""
        coefficients, empty = (self._device.download(array) for array in self._found)
        self._table.backward(coefficients, empty, gradients)


class SharedGpuStep(GpuStep):
    """A `GpuStep` for a model whose types share their networks: it trains the shared weights."""

    def __init__(self, model: DPModel, parameters: Parameters, grid: Grid, tolerance: float) -> None:
        assert model.shared is not None, "the caller has such a model"
        self._own = OwnNetworks(model, model.shared, parameters)
        super().__init__(model, self._own, grid, tolerance)

    def _knots(self, used: tuple[int, ...], p: SeAParameters) -> Any:
        networks = [self.model.descriptor.networks[i] for i in used]
        if gated := [net for net in networks if isinstance(net, GatedNetwork)]:
            return HostKnots(self._own.device, GatedKnotTable(gated, p, self._grids(used)))
        return super()._knots(used, p)

    def _update(self, table: Table) -> None:
        if isinstance(table.knots, HostKnots):
            table.knots.update()  # in no graph
        else:
            super()._update(table)

    def weights_changed(self) -> None:
        """To be called when the shared weights have changed."""
        self._own.refresh()
        super().weights_changed()

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """See `TableStep.backward`; the groups of names are the shared networks'."""
        super().backward(loss)
        k = self._kept_on_gpu
        assert k is not None, "forward comes first"
        self._own.gather([t for t, _ in k.centers.blocks], k.table)
        if done is not None:
            done(f"{FITTING}.0")
            if self.model.descriptor.trainable:
                done("descriptor")
