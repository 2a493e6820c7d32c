"""C structs that kernels take by value: how they are described to NumPy, and those that several kernels share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dphpc.model.radial_table import MAX_PARTS, Grid
from dphpc.ops.arguments import KernelLayer
from dphpc.ops.se_a.contract import SeAParameters

ACTIVATIONS = ("linear", "tanh", "sigmoid", "softplus", "relu", "relu6", "gelu", "silu", "silut")
"""Activations, in the order of their numbers in `kernels/cuda/layer.h`."""

_SAME = {"none": "linear", "gelu_tf": "gelu", "custom_silu": "silut"}


def struct(*fields: str) -> np.dtype:
    """The NumPy type of a C struct, from fields `type name`; the type `p` is a pointer, `3f8` an array of three."""
    pairs = [field.split() for field in fields]
    return np.dtype([(name, {"p": "u8"}.get(kind, kind)) for kind, name in pairs], align=True)


SYSTEM = struct("p positions", "p types", "p offsets", "p indices", "p centers")
DESCRIPTOR = struct(
    "f8 rcut", "f8 rcut_smth", "f8 protection", "f8 inverse_width", "f8 scale", "p sel", "p davg", "p inverse_std",
    "p network", "p flags", "p grids", "p coefficients", "p empty", "i4 n_intervals", "i4 round_displacements",
)  # fmt: skip
GRID = struct(*(f"{MAX_PARTS}{field}" for field in ("f8 starts", "f8 inverse_steps", "i4 first", "i4 last")))
EXERTED = struct(
    "p moments", "p inputs_adjoint", "p forces", "p virial", "p atom_virial", "p too_large", "f8 per_spacing",
    "f8 limit", "i4 n_columns", "i4 n_slots",
)  # fmt: skip
LAYER = struct(
    "p bias", "p idt", "i4 n_in", "i4 n_out", "i4 skip", "i4 activation", "f8 threshold", "f8 value", "f8 slope"
)  # fmt: skip


def grid_structs(grids: Sequence[Grid]) -> NDArray:
    """Structs `GRID` of tables' grids, as bytes."""
    rows = np.zeros(len(grids), GRID)
    rows["starts"] = np.inf  # of parts that are not there
    for row, g in zip(rows, grids, strict=True):
        n, counts = len(g.counts), np.array(g.counts)
        row["starts"][:n], row["inverse_steps"][:n] = g.starts, 1.0 / np.array(g.steps)
        row["first"][:n], row["last"][:n] = np.cumsum(counts) - counts, counts - 1
    return rows.view(np.uint8)


def descriptor_struct(p: SeAParameters, pointers: Iterable[int], n_intervals: int) -> NDArray:
    """A struct `DESCRIPTOR`; `pointers` are the GPU addresses of `sel` to `empty`, in the struct's order."""
    scalars = p.rcut, p.rcut_smth, p.protection, 1.0 / (p.rcut - p.rcut_smth), p.scale
    return np.array([(*scalars, *pointers, n_intervals, int(p.round_displacements))], DESCRIPTOR)


def layer_struct(layer: KernelLayer, bias: int, idt: int) -> NDArray:
    """A struct `LAYER`; bias and idt are GPU addresses, or 0."""
    g = 1.0 / (1.0 + np.exp(-layer.threshold))
    silut = layer.threshold, layer.threshold * g, g + layer.threshold * g * (1.0 - g)
    activation = ACTIVATIONS.index(_SAME.get(layer.activation, layer.activation))
    return np.array([(bias, idt, *layer.w.shape, layer.skip, activation, *silut)], LAYER)
