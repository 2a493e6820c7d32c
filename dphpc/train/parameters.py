"""The trainable weights of a model in flat storage: one tensor per precision, seen in three ways.

The model's layers hold NumPy views (for kernels, validation and files), `descriptor_networks` and `fitting_networks`
hold torch leaves (for graphs), and the optimizer sees one flat parameter with one flat gradient, which the backward
passes write to.  Nothing is copied between them, and summing over ranks takes one call per flat gradient.

On a GPU the flat tensors share the memory of CuPy's arrays; torch works on the default stream and CuPy on a stream
that is synchronized with it.  The model's own arrays are then copies on the host, updated by `Parameters.fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dphpc.core.device import Array, Device
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Layer, Network

ALIGNMENT = 64
"""Bytes; each array starts on a cache line."""


@dataclass(frozen=True)
class Slot:
    """The place of an array in its flat tensor: number of the tensor, first element, and shape."""

    flat: int
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def of(self, flats: list[Tensor]) -> Tensor:
        """The array as a view of the flat tensors."""
        return flats[self.flat].detach()[self.start : self.start + self.size].view(self.shape)

    def cut(self, flats: list[Array]) -> Array:
        """The same for flat NumPy or GPU arrays."""
        return flats[self.flat][self.start : self.start + self.size].reshape(self.shape)


class Parameters:
    """Trainable arrays of a model, in the order of `DPModel.parameters`.

    Parameters
    ----------
    device
        The GPU whose memory holds the parameters; None for host memory.

    Attributes
    ----------
    flats, gradients
        Flat parameters, one per precision, and their gradients, which are the parameters' `.grad`.
    ends
        Where each array ends in its flat tensor, with the padding behind it; for each flat tensor.
    gradient_arrays
        The flat gradients as NumPy or GPU arrays.
    slots
        Place of each array by name, in order.
    descriptor_networks, fitting_networks
        The model's networks, or those that its types share, with torch tensors, which are leaves that require gradients
        where trainable; on a GPU with GPU arrays.

    Raises
    ------
    InputError
        torch cannot use the GPU.
    """

    def __init__(self, model: DPModel, device: Device | None = None) -> None:
        self.model, self.device = model, device
        frozen = _frozen_names(model)
        arrays = [(name, np.asarray(value)) for name, value in model.parameters() if name not in frozen]
        dtypes = sorted({str(value.dtype) for _, value in arrays}, reverse=True)
        ends = [[0] for _ in dtypes]
        self.slots: dict[str, Slot] = {}
        for name, value in arrays:
            which = dtypes.index(str(value.dtype))
            start, step = ends[which][-1], ALIGNMENT // value.dtype.itemsize
            self.slots[name] = Slot(which, start, value.shape)
            ends[which].append(start + -(-value.size // step) * step)
        self.ends = [np.array(of_flat[1:], np.int64) for of_flat in ends]
        sizes = [(of_flat[-1], dtype) for of_flat, dtype in zip(ends, dtypes, strict=True)]
        values, gradients = ([_zeros(n, d, device) for n, d in sizes] for _ in range(2))
        self.flats, self._arrays = [t for t, _ in values], [a for _, a in values]
        self.gradients, self.gradient_arrays = [t for t, _ in gradients], [a for _, a in gradients]
        for flat, gradient in zip(self.flats, self.gradients, strict=True):
            flat.requires_grad_(True)
            flat.grad = gradient
        if device is None:
            self._leaves = {name: self._leaf(self.slots[name], value) for name, value in arrays}
        else:
            for name, value in arrays:
                device.upload(value, self.slots[name].cut(self._arrays))
        shared = model.shared.groups if model.shared is not None else {}
        own = {"descriptor.networks": model.descriptor.networks, "fitting.networks": model.fitting.networks, **shared}
        twins = {prefix: self._twins(networks, prefix) for prefix, networks in own.items()}
        self.descriptor_networks, self.fitting_networks = twins["descriptor.networks"], twins["fitting.networks"]

    def _leaf(self, slot: Slot, value: NDArray[np.floating]) -> Tensor:
        leaf = slot.of(self.flats)
        leaf.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        leaf.requires_grad_(True)
        leaf.grad = slot.of(self.gradients)
        return leaf

    def _twins(self, networks: list[Network], prefix: str) -> list[Network]:
        """The networks with torch tensors, or GPU arrays, in place of their arrays."""
        twin = self._on_host if self.device is None else self._on_gpu

        def layer_twin(layer: Layer, prefix: str) -> Layer:
            w, b, idt = (twin(layer, name, f"{prefix}.{name}") for name in ("w", "b", "idt"))
            return Layer(w, b, idt, layer.activation, layer.resnet)

        return [
            Network([layer_twin(layer, f"{prefix}.{i}.layers.{j}") for j, layer in enumerate(network.layers)])
            for i, network in enumerate(networks)
        ]

    def _on_host(self, layer: Layer, attribute: str, name: str) -> Tensor | None:
        """A layer's array as a tensor, of whose memory the layer gets a view."""
        if (value := getattr(layer, attribute)) is None:
            return None
        leaf = self._leaves.get(name)
        tensor = torch.from_numpy(np.array(value)) if leaf is None else leaf
        setattr(layer, attribute, tensor.detach().numpy())
        return tensor

    def _on_gpu(self, layer: Layer, attribute: str, name: str) -> Array | None:
        """A layer's array on the GPU; one that is not trained is copied there."""
        assert self.device is not None
        if (value := getattr(layer, attribute)) is None:
            return None
        if name in self.slots:
            return self.slots[name].cut(self._arrays)
        copy = self.device.zeros(value.size, value.dtype).reshape(value.shape)
        self.device.upload(value, copy)
        return copy

    def fetch(self) -> None:
        """Copy the parameters from the GPU, if they are there, to the model's arrays."""
        if self.device is None:
            return
        flats = [self.device.download(array) for array in self._arrays]
        for name, value in self.model.parameters():
            if name in self.slots:
                value[...] = self.slots[name].cut(flats)

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        for gradient in self.gradients:
            gradient.zero_()

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by a factor."""
        for gradient in self.gradients:
            gradient.mul_(factor)

    def gradient_parts(self, prefix: str) -> list[Tensor]:
        """The slices of the flat gradients, one per precision, for the names that begin with `prefix.`."""
        found = [slot for name, slot in self.slots.items() if name.startswith(prefix + ".")]
        parts = []
        for which, gradient in enumerate(self.gradients):
            slots = [slot for slot in found if slot.flat == which]
            if slots:
                parts.append(gradient[slots[0].start : slots[-1].start + slots[-1].size])
        return parts

    def gradients_of(self, prefix: str, flats: list[Array] | None = None) -> dict[str, Array]:
        """Gradients (NumPy or GPU arrays) of the names that begin with `prefix.`, by the rest of the name.

        `flats`, if given, stand for `gradient_arrays`.
        """
        flats = self.gradient_arrays if flats is None else flats
        found = (name for name in self.slots if name.startswith(prefix + "."))
        return {name.removeprefix(prefix + "."): self.slots[name].cut(flats) for name in found}

    def split(self, flat_values: list[Tensor]) -> dict[str, Tensor]:
        """Views by name of `flats`, or of tensors laid out like them (optimizer moments, gradients)."""
        return {name: slot.of(flat_values) for name, slot in self.slots.items()}

    @property
    def n_values(self) -> int:
        """Number of trainable values."""
        return sum(slot.size for slot in self.slots.values())


def torch_device(device: Device | None) -> torch.device:
    """torch's device for a training on this GPU; without one, the CPU.

    Raises
    ------
    InputError
        torch cannot use the GPU.
    """
    return _zeros(1, "float64", device)[0].device


def _zeros(n: int, dtype: str, device: Device | None) -> tuple[Tensor, Array]:
    """Zeros (n,) as a tensor and as a NumPy or GPU array that share their memory."""
    if device is None:
        tensor = torch.zeros(n, dtype=getattr(torch, dtype))
        return tensor, tensor.numpy()
    array = device.zeros(n, dtype)
    try:
        tensor = torch.from_dlpack(array)
        if tensor.is_cuda:
            torch.cuda.set_device(tensor.device)  # for tensors that torch allocates itself
        return tensor, array
    except (AssertionError, RuntimeError, BufferError) as error:  # of a torch without CUDA, or that sees no GPU
        what = str(error).splitlines()[0]
        raise InputError(
            f"torch {torch.__version__} cannot use {device.name}: {what}", where="dphpc/device",
            expected="a torch that is built for this GPU", remedy="pip install one (pytorch.org), or --device cpu",
        ) from None  # fmt: skip


def _frozen_names(model: DPModel) -> set[str]:
    """Names of the arrays that `trainable` excludes from training."""
    frozen = set()
    trainable = model.fitting.trainable
    for name, _ in model.parameters():
        if name.startswith("descriptor."):
            kept = model.descriptor.trainable
        else:
            kept = trainable[int(name.split(".")[4])] if isinstance(trainable, list) else trainable
        if not kept:
            frozen.add(name)
    return frozen
