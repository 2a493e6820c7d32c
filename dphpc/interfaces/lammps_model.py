"""Writes a model for LAMMPS' `pair_style dphpc`, as a flat file of named arrays.

    8 bytes     DPHPCLMP
    2 × uint32  version of the format, CRC-32 of everything behind the head
    uint64      number of bytes behind the head
    arrays      4 × uint32: length of the name, kind (0 text, 1 int32, 2 float32, 3 float64), number of dimensions, 0;
                the name; a uint64 for each dimension; the numbers, C-contiguous

Names and numbers are padded to 8 bytes; everything is little-endian.  `arrays_of` lists the arrays.  The file contains
the model as `DeepPotential` evaluates it: with its tables, in both precisions, and without embedding nets.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import ModelFileError, writing
from dphpc.core.files import whole
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model
from dphpc.model.networks import Network
from dphpc.model.radial_table import MAX_PARTS, Grid, RadialTable
from dphpc.model.tabulation import continued
from dphpc.ops.arguments import layers_of
from dphpc.ops.se_a.contract import SeAParameters
from dphpc.potential.deep import R_OVERLAP, DeepPotential

MAGIC, VERSION = b"DPHPCLMP", 1

HEAD = struct.Struct("<8sIIQ")

KINDS: dict[str, int] = {"uint8": 0, "int32": 1, "float32": 2, "float64": 3}
"""The kind of an array in the file, by its dtype."""


@dataclass(frozen=True)
class Exported:
    """Describes a file that was written."""

    path: Path
    type_map: tuple[str, ...]
    megabytes: float

    def __str__(self) -> str:
        types = " ".join(self.type_map)
        return (
            f"{self.path}: {self.megabytes:.1f} MB, types {types}; in LAMMPS:\n"
            f"  pair_style dphpc {self.path}\n  pair_coeff * * {types}     # the model's type of each atom type"
        )


def export_file(input: str | Path, output: str | Path) -> Exported:
    """Convert a model file to one for LAMMPS.

    Raises
    ------
    ModelFileError
        The model cannot be read, or the plugin cannot evaluate it.
    RunError
        The output cannot be written; an older file of that name is left as it was.
    """
    path, model = Path(output), read_model(input)
    content = packed(arrays_of(model, str(input)))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_bytes(content)
    return Exported(path, tuple(model.type_map), len(content) / 1e6)


def arrays_of(model: DPModel, name: str = "the model") -> dict[str, NDArray[Any]]:
    """All arrays that the plugin reads, by name; texts are arrays of bytes.

    Raises
    ------
    ModelFileError
        The model takes atomic parameters, or has networks with kinks and no table.
    """
    _require_plain(model, name)
    p, fitting = SeAParameters.of(model), model.fitting
    average, inverse = (np.zeros(0) if a is None else np.ravel(a) for a in (fitting.fparam_avg, fitting.fparam_inv_std))
    types = range(model.n_types)
    arrays: dict[str, Any] = {
        "type_map": _text(model.type_map),
        "cut": np.array([p.rcut, p.rcut_smth, p.protection]),
        "scale": np.array([p.scale]),
        "sel": p.sel,
        "davg": p.davg,
        "dstd": p.dstd,
        "network": p.network,
        "flags": p.flags.astype(np.int32),
        "axis": np.array([p.axis_neuron], np.int32),
        "energy_bias": model.energy_bias,
        "has_energy": np.array([t not in model.atom_exclude_types for t in types], np.int32),
        "subtracts_vacuum": np.array([fitting.subtracts_vacuum(t) for t in types], np.int32),
        "fparam_avg": average,
        "fparam_inv_std": inverse,
    }
    if model.descriptor.mixed:
        arrays["mixed_sel"] = np.ones(1, np.int32)
    if fitting.default_fparam is not None:
        arrays["default_fparam"] = np.array(fitting.default_fparam, np.float64)
    for key, precision, dtype in (("table64", "float64", np.float64), ("table32", "mixed", np.float32)):
        table = DeepPotential(model, precision).table
        assert isinstance(table, RadialTable)
        model = replace(model, table=table)  # so that it is made only once
        table = reaching(table, model)
        arrays[f"{key}.grids"] = np.array([_numbers_of(grid) for grid in table.grids])
        arrays[f"{key}.coefficients"] = table.coefficients.astype(dtype)
        arrays[f"{key}.empty"] = model.descriptor.empty_slots(table).astype(dtype)
    for t, network in enumerate(fitting.networks):
        arrays |= _network(f"fitting.{t}", network)
    return arrays


def reaching(table: RadialTable, model: DPModel) -> RadialTable:
    """A table that is extended, from the networks, down to overlapping atoms, as the table of a run is."""
    networks = [network.astype(np.float64) for network in model.descriptor.networks]
    return continued(table, networks, model.descriptor.s_range(R_OVERLAP)[1])


def _numbers_of(grid: Grid) -> list[float]:
    """Upper and lower end of a grid, then step and number of intervals of `MAX_PARTS` parts; 0 for missing parts."""
    numbers = [grid.upper, *grid.numbers()]
    return numbers + [0.0] * (2 + 2 * MAX_PARTS - len(numbers))


def packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The content of the file."""
    body = b"".join(_record(name, array) for name, array in arrays.items())
    return HEAD.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body


def _require_plain(model: DPModel, name: str) -> None:
    if model.fitting.numb_aparam:
        raise ModelFileError(
            f"the model takes {model.fitting.numb_aparam} parameters of each atom, which the plugin does not give",
            where=name, expected="a model without numb_aparam",
        )  # fmt: skip
    if model.table is None and model.descriptor.kinks:
        raise ModelFileError(
            f"{model.descriptor.kinks}, and the model has no table", where=name, remedy=model.descriptor.without_kinks,
        )  # fmt: skip


def _network(name: str, network: Network) -> dict[str, NDArray[Any]]:
    layers = layers_of(network.astype(np.float64))
    arrays: dict[str, NDArray[Any]] = {
        f"{name}.activations": _text([f"{layer.activation} {layer.threshold!r}" for layer in layers]),
        f"{name}.skips": np.array([layer.skip for layer in layers], np.int32),
    }
    for i, layer in enumerate(layers):
        arrays |= {f"{name}.{i}.{key}": a for key, a in zip(("w", "b", "idt"), layer, strict=False) if a is not None}
    return arrays


def _text(words: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(words).encode(), np.uint8)


def _record(name: str, array: NDArray[Any]) -> bytes:
    title = name.encode()
    head = struct.pack("<4I", len(title), KINDS[array.dtype.name], array.ndim, 0)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return head + _padded(title) + struct.pack(f"<{array.ndim}Q", *array.shape) + _padded(little.tobytes())


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
