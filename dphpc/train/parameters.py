"""The trained weights of a model in flat storage: one tensor per precision, seen under three names.

The model's layers hold NumPy views (kernels, validation, files), `Parameters.networks` holds torch leaves for
the graphs, and the optimizer sees one flat parameter whose flat gradient the passes write into.  Nothing is
copied between them, and a sum over ranks is one call per flat gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Layer, Network

_ALIGNMENT = 64
"""Bytes; each array starts on a cache line."""


@dataclass(frozen=True)
class Slot:
    """Where one named array lives in its flat tensor."""

    name: str
    flat: int
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def of(self, flats: list[Tensor]) -> Tensor:
        """The array as a view."""
        return flats[self.flat].detach()[self.start : self.start + self.size].view(self.shape)


class Parameters:
    """Trainable arrays of a model, in the order of `DPModel.parameters`.

    Attributes
    ----------
    flats
        Flat parameters, one per precision, each with a flat `.grad`.
    slots
        Name to place, in order.
    descriptor_networks, fitting_networks
        The model's networks with torch tensors: leaves that require gradients where trainable.
    """

    def __init__(self, model: DPModel) -> None:
        frozen = _frozen_names(model)
        arrays = [(name, np.asarray(value)) for name, value in model.parameters() if name not in frozen]
        dtypes = sorted({str(value.dtype) for _, value in arrays}, reverse=True)
        ends = [0] * len(dtypes)
        self.slots: dict[str, Slot] = {}
        for name, value in arrays:
            which = dtypes.index(str(value.dtype))
            self.slots[name] = Slot(name, which, ends[which], value.shape)
            step = _ALIGNMENT // value.dtype.itemsize
            ends[which] += -(-value.size // step) * step
        self.flats = [torch.zeros(n, dtype=getattr(torch, d)) for n, d in zip(ends, dtypes, strict=True)]
        for flat in self.flats:
            flat.requires_grad_(True)
            flat.grad = torch.zeros_like(flat)
        self._gradients = [flat.grad for flat in self.flats if flat.grad is not None]
        self._leaves = {name: self._leaf(self.slots[name], value) for name, value in arrays}
        self.descriptor_networks = self._adopt(model.descriptor.networks, "descriptor.networks")
        self.fitting_networks = self._adopt(model.fitting.networks, "fitting.networks")

    def _leaf(self, slot: Slot, value: NDArray[np.floating]) -> Tensor:
        leaf = slot.of(self.flats)
        leaf.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        leaf.requires_grad_(True)
        leaf.grad = slot.of(self._gradients)
        return leaf

    def _adopt(self, networks: list[Network], prefix: str) -> list[Network]:
        """Torch twins of the networks; the networks' own arrays become views of the same storage."""
        twins = []
        for i, net in enumerate(networks):
            layers = []
            for j, layer in enumerate(net.layers):
                tensors: dict[str, Tensor] = {}
                for name, value in list(layer.parameters()):
                    leaf = self._leaves.get(f"{prefix}.{i}.layers.{j}.{name}")
                    tensors[name] = torch.from_numpy(np.array(value)) if leaf is None else leaf
                    setattr(layer, name, tensors[name].detach().numpy())
                w, b, idt = tensors["w"], tensors.get("b"), tensors.get("idt")
                layers.append(Layer(w, b, idt, layer.activation, layer.resnet))
            twins.append(Network(layers))
        return twins

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        for gradient in self._gradients:
            gradient.zero_()

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients."""
        for gradient in self._gradients:
            gradient.mul_(factor)

    def gradient_parts(self, prefix: str) -> list[Tensor]:
        """The stretches of the flat gradients, one per precision, that hold the names beginning with `prefix.`."""
        found = [slot for name, slot in self.slots.items() if name.startswith(prefix + ".")]
        parts = []
        for which, gradient in enumerate(self._gradients):
            slots = [slot for slot in found if slot.flat == which]
            if slots:
                parts.append(gradient[slots[0].start : slots[-1].start + slots[-1].size])
        return parts

    def gradients_of(self, prefix: str) -> dict[str, NDArray[np.floating]]:
        """NumPy views of the gradients whose names begin with `prefix.`, by the rest of the name."""
        found = (name for name in self.slots if name.startswith(prefix + "."))
        return {name[len(prefix) + 1 :]: self.slots[name].of(self._gradients).numpy() for name in found}

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The arrays by name, as views."""
        for name, slot in self.slots.items():
            yield name, slot.of(self.flats)

    def split(self, flat_values: list[Tensor]) -> dict[str, Tensor]:
        """Views by name of tensors laid out like `flats` (optimizer moments, gradients)."""
        return {name: slot.of(flat_values) for name, slot in self.slots.items()}

    @property
    def n_values(self) -> int:
        """Number of trainable values."""
        return sum(slot.size for slot in self.slots.values())


def _frozen_names(model: DPModel) -> set[str]:
    """Names of the arrays that `trainable` takes out of training."""
    frozen = set()
    if not model.descriptor.trainable:
        frozen |= {name for name, _ in model.descriptor.parameters()}
    trainable = model.fitting.trainable
    for name, _ in model.fitting.parameters():
        layer = int(name.split(".")[4])
        if not (trainable[layer] if isinstance(trainable, list) else trainable):
            frozen.add(name)
    return frozen
