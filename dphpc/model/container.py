"""DeePMD-kit's model containers: a tree of plain values and arrays in a `.dp` (HDF5) or `.yaml` file.

`.dp`: root datasets `variable_0000`, … and one root attribute `json`; below a key `@variables` every text is the
path of a dataset.  `.yaml`: the same tree with arrays written in place.  Files come from strangers: nothing in
them is executed, only datasets stored in the file itself are read, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from dphpc.core.errors import ModelFileError, reason_of
from dphpc.core.files import new_hdf5, whole

Tree = dict[str, Any]

_SUFFIXES = (".dp", ".hlo", ".yaml", ".yml")
_DEFLATE_LIMIT = 1100  # deflate packs at most 1032 to 1: more than that is a forged shape


def read_tree(path: Path) -> Tree:
    """The tree of a model file, arrays in their places.

    Raises
    ------
    ModelFileError
        No such file, another format, or a damaged one.
    """
    if not path.is_file():
        raise ModelFileError("no such model file", where=str(path))
    if path.suffix not in _SUFFIXES:
        raise ModelFileError(
            f"'{path.suffix}' files are not read",
            where=str(path),
            expected=".dp, .yaml, .pth, .pt or .pb",
            remedy=conversion(path),
        )
    try:
        return _read_hdf5(path) if path.suffix in (".dp", ".hlo") else _read_yaml(path)
    except ModelFileError:
        raise
    except Exception as error:  # a damaged file makes h5py and the parsers raise whatever they come across
        raise ModelFileError(
            f"the file is damaged or no model file: {error}", where=str(path), expected="a DeePMD-kit or dphpc model"
        ) from error


def conversion(path: Path) -> str | None:
    """The command that makes a model of a checkpoint or of another back end's file, by its ending; None for others."""
    match path.suffix:
        case ".safetensors":
            return f"make a model of the checkpoint: dphpc freeze -c {path.name} -o model.dp"
        case ".pt2":
            return f"convert it with DeePMD-kit: dp convert-backend {path.name} {path.stem}.dp"
    return None


def write_tree(tree: Tree, path: Path) -> None:
    """Write a tree as `.dp` or `.yaml`, under a temporary name that is renamed when complete."""
    if path.suffix not in _SUFFIXES:
        raise ModelFileError(
            f"'{path.suffix}' files are not written", where=str(path), expected="a name ending in .dp or .yaml",
            remedy=f"let DeePMD-kit make it of a .dp file: dp convert-backend {path.stem}.dp {path.name}"
            if path.suffix in (".pth", ".pt2", ".pb")
            else None,
        )  # fmt: skip
    try:
        with whole(path) as partial:
            if path.suffix in (".yaml", ".yml"):
                partial.write_text(yaml.safe_dump(_map_variables(tree, _array_to_yaml), sort_keys=False))
            else:
                _write_hdf5(tree, partial)
    except OSError as error:
        raise ModelFileError(
            f"the file cannot be written: {reason_of(error)}", where=str(path), remedy="check space and permissions"
        ) from error


def _map_variables(node: Any, convert: Callable[[Any], Any], inside: bool = False) -> Any:
    """The tree with `convert` applied to every non-null leaf below an `@variables` key."""
    if isinstance(node, dict) and not (inside and node.get("@is_variable")):
        return {k: _map_variables(v, convert, inside or k == "@variables") for k, v in node.items()}
    if isinstance(node, list):
        return [_map_variables(v, convert, inside) for v in node]
    return convert(node) if inside and node is not None else node


def _read_hdf5(path: Path) -> Tree:
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        if "json" not in file.attrs:
            raise ModelFileError("the file has no attribute 'json'", where=str(path), expected="a model in .dp format")
        tree = json.loads(file.attrs["json"])
        return _map_variables(tree, lambda name: _read_dataset(file, name, size, path))


def _read_dataset(file: h5py.File, name: Any, file_size: int, path: Path) -> np.ndarray:
    where = f"{path}, dataset {name!r}"
    if not isinstance(name, str) or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ModelFileError("a variable does not stand in the file", where=where)
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        raise ModelFileError("a variable is not a numeric dataset", where=where)
    if dataset.external or dataset.is_virtual or dataset.nbytes > _DEFLATE_LIMIT * file_size:
        raise ModelFileError("a variable claims more data than the file holds", where=where)
    return np.asarray(dataset[()])


def _write_hdf5(tree: Tree, path: Path) -> None:
    with new_hdf5(path) as file:
        count = 0

        def store(array: Any) -> str:
            nonlocal count
            name = f"/variable_{count:04d}"
            file.create_dataset(name, data=np.asarray(array))
            count += 1
            return name

        file.attrs["json"] = json.dumps(_map_variables(tree, store), separators=(",", ":"))


def _read_yaml(path: Path) -> Tree:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open() as file:
        tree = yaml.load(file, Loader=loader)  # a safe loader: plain values only
    if not isinstance(tree, dict):
        raise ModelFileError("the file holds no mapping", where=str(path))
    return _map_variables(tree, _array_from_yaml)


def _array_from_yaml(node: Any) -> np.ndarray:
    if not isinstance(node, dict):
        return np.asarray(node, np.float64)
    dtype = np.dtype(str(node["dtype"]))
    if dtype.kind not in "fiu":
        raise ValueError(f"an array of type {dtype}")
    return np.asarray(node["value"], dtype)


def _array_to_yaml(array: Any) -> Tree:
    array = np.asarray(array)
    head = {"@class": "np.ndarray", "@is_variable": True, "@version": 1}
    return {**head, "dtype": str(array.dtype), "value": array.tolist()}
