"""`shared_step.SharedTableStep` on a GPU, for `concat`: the chain rule goes through the host.

The GPU holds the shared arrays.  The networks of types and pairs have views of them, and first biases of their own,
which the host computes anew when the weights have changed; it also turns their gradients into the shared networks'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import Array, Device
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Layer, Network
from dphpc.model.radial_table import Grid
from dphpc.model.shared import FITTING, SharedNetworks
from dphpc.train.gpu_step import GpuStep
from dphpc.train.parameters import ALIGNMENT, Parameters
from dphpc.train.shared_step import SharedGradients
from dphpc.train.step import LossGradient


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
        self._gathered = SharedGradients(model, shared, self._host_gradients)
        self._uploaded: list[tuple[Layer, Layer]] = []
        embedding, fitting = parameters.descriptor_networks[0], parameters.fitting_networks[0]
        self.descriptor_networks = [self._twin(net, embedding, 1) for net in shared.of_pairs]
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
        parts, end = self._gathered.parts, 0
        self._places: dict[str, dict[str, slice]] = {}
        for prefix, arrays in parts.items():
            self._places[prefix] = {}
            for name, array in arrays.items():
                self._places[prefix][name] = slice(end, end + array.size)
                step = ALIGNMENT // array.itemsize
                end += -(-array.size // step) * step
        self._flat = self.device.zeros(end, model.descriptor.networks[0].layers[0].w.dtype)

    def _host_gradients(self, prefix: str) -> dict[str, Array]:
        slots = self._parameters.slots
        found = (name for name in slots if name.startswith(prefix + "."))
        return {name[len(prefix) + 1 :]: slots[name].cut(self._on_host) for name in found}

    def gradients_of(self, prefix: str) -> Mapping[str, Array]:
        """As of `Parameters`, for the network of a type or a pair."""
        shapes = {name: array.shape for name, array in self._gathered.parts[prefix].items()}
        return {name: self._flat[place].reshape(shapes[name]) for name, place in self._places[prefix].items()}

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

    def gather(self, centers: list[int]) -> None:
        """Set the shared networks' gradients from those of the center types in the batch and of the pairs."""
        found = self.device.download(self._flat)
        for prefix, arrays in self._gathered.parts.items():
            for name, array in arrays.items():
                array[...] = found[self._places[prefix][name]].reshape(array.shape)
        self._gathered.gather_fitting(centers)
        if self._parameters.model.descriptor.trainable:
            self._gathered.gather_descriptor()
        for values, flat in zip(self._on_host, self._parameters.gradient_arrays, strict=True):
            self.device.upload(values, flat)


class SharedGpuStep(GpuStep):
    """A `GpuStep` for a model whose types share their networks: it trains the shared weights."""

    def __init__(self, model: DPModel, parameters: Parameters, grid: Grid, tolerance: float) -> None:
        assert model.shared is not None, "the caller has such a model"
        self._own = OwnNetworks(model, model.shared, parameters)
        super().__init__(model, self._own, grid, tolerance)

    def weights_changed(self) -> None:
        """To be called when the shared weights have changed."""
        self._own.refresh()
        super().weights_changed()

    def backward(self, loss: LossGradient, done: Callable[[str], None] | None = None) -> None:
        """See `TableStep.backward`; the groups of names are the shared networks'."""
        super().backward(loss)
        assert self._kept_on_gpu is not None
        self._own.gather([t for t, _ in self._kept_on_gpu.centers.blocks])
        if done is not None:
            done(f"{FITTING}.0")
            if self.model.descriptor.trainable:
                done("descriptor")
