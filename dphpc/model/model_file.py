"""Models in DeePMD-kit's files: reading every `se_e2_a` energy model (and `dpa1.py`), writing what DeePMD-kit reads.

Our radial table goes under the top-level key `dphpc`, which DeePMD-kit passes over, so that it still finds the
network.  A table that DeePMD-kit wrote (`compress`) is taken as it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import ModelFileError
from dphpc.model import dpa1, graph_tree, torch_tree
from dphpc.model.container import Tree, read_tree, write_tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.fitting import EnergyFitting
from dphpc.model.model_tree import TABLE_VERSION, model_tree
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.model.shared import SharedNetworks
from dphpc.model.shared_tree import shared_tree
from dphpc.model.tree_parts import (
    check_descriptor,
    check_version,
    descriptor_without_networks,
    network_of,
    pair_set,
    precision_of,
    unsupported,
)

log = logging.getLogger(__name__)

WRITTEN = (".dp", ".yaml", ".yml")
"""Endings of model files that are written."""

_FOREIGN = {**dict.fromkeys(torch_tree.SUFFIXES, torch_tree.read_torch), ".pb": graph_tree.read_graph}

MODEL_SUFFIXES = (*WRITTEN, *_FOREIGN)
"""Endings of model files that are read."""


def read_model(path: str | Path) -> DPModel:
    """Read a model that DeePMD-kit or dphpc wrote, compressed or not.

    Raises
    ------
    ModelFileError
        The file is damaged, too new, or holds a kind of model that is not supported; the message says which.
    """
    path = Path(path)
    foreign = path.suffix in _FOREIGN and path.is_file()
    tree = None if foreign else read_tree(path)
    try:
        model = model_of(_FOREIGN[path.suffix](path) if tree is None else tree)
        if foreign and model.shared is not None:
            model.origin = shared_tree(model, model.shared)  # as a `.dp` file would have it
        return model
    except ModelFileError as error:
        raise ModelFileError(
            error.what, where=f"{path}{', ' + error.where if error.where else ''}", expected=error.expected,
            remedy=error.remedy,
        ) from None  # fmt: skip
    except KeyError as error:
        raise ModelFileError(f"the model has no entry {error}", where=str(path), remedy="is it complete?") from error
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"the model's entries do not fit together: {error}", where=str(path)) from error


def write_model(model: DPModel, path: str | Path) -> None:
    """Write a model as `.dp` or `.yaml` (by the name's ending); DeePMD-kit opens it through its network."""
    write_tree(model_tree(model), Path(path))


def model_of(tree: Tree) -> DPModel:
    """The model of a tree, as `model_tree` makes it or `read_tree` finds it."""
    node = tree["model"]
    if "descriptor" not in node or "fitting" not in node:
        raise unsupported(f"a model of type '{node.get('type', '?')}'")
    if node.get("type", "standard") not in ("standard", "ener"):
        raise unsupported(f"a model of type '{node['type']}'")
    check_version(node, "Model")
    type_map = [str(name) for name in node["type_map"]]
    foreign = node["descriptor"]["type"] in dpa1.KINDS
    n_types = len(type_map)
    if foreign:
        descriptor, shared = dpa1.descriptor_of(node)
    else:
        descriptor, shared = _descriptor(node["descriptor"]), None
    if descriptor.n_types != n_types:
        raise ModelFileError(f"type_map names {n_types} types, sel {descriptor.n_types}")
    check_descriptor(descriptor)
    fitting = _fitting(node["fitting"], descriptor, shared)
    variables = node.get("@variables", {})
    out_bias = np.asarray(variables.get("out_bias", np.zeros(len(type_map))), np.float64).ravel()
    if len(out_bias) != len(type_map):
        raise ModelFileError(f"out_bias has {len(out_bias)} entries for {len(type_map)} types")
    min_distance = tree.get("@variables", {}).get("min_nbor_dist", tree.get("min_nbor_dist"))
    model = DPModel(
        type_map=type_map,
        descriptor=descriptor,
        fitting=fitting,
        out_bias=out_bias,
        pair_exclude_types=pair_set(node.get("pair_exclude_types")),
        atom_exclude_types=frozenset(node.get("atom_exclude_types") or ()),
        min_nbor_dist=None if min_distance is None else float(np.asarray(min_distance)),
        script=tree.get("model_def_script") or {},
        extra={k: tree[k] for k in ("software", "version", "time", "backend") if k in tree},
        origin=node if foreign else None,
        shared=shared,
    )
    model.table = _own_table(tree, model) or (None if foreign else _foreign_table(node["descriptor"], model))
    if descriptor.exclude_types and descriptor.davg.any():
        log.warning(
            "the model has exclude_types and davg != 0: as in DeePMD-kit its energy jumps where an excluded neighbor "
            "crosses the cutoff; train with set_davg_zero for dynamics"
        )
    return model


def _descriptor(node: Tree) -> SeE2A:
    if node["type"] not in ("se_e2_a", "se_a"):
        raise unsupported(f"descriptor '{node['type']}'", "model/descriptor")
    sel = tuple(int(n) for n in node["sel"])
    descriptor = descriptor_without_networks(node, sel, len(sel), one_side=True, set_davg_zero=False)
    expected = len(sel) if descriptor.type_one_side else len(sel) ** 2
    nodes = node["embeddings"]["networks"]
    if len(nodes) != expected:
        raise ModelFileError(f"{len(nodes)} embedding networks, expected {expected}", where="model/descriptor")
    descriptor.networks = [network_of(n, f"model/descriptor, network {i}") for i, n in enumerate(nodes)]
    return descriptor


def _fitting(node: Tree, descriptor: SeE2A, shared: SharedNetworks | None) -> EnergyFitting:
    """The fitting nets: the file's, or those that follow from shared ones."""
    if node.get("type", "ener") != "ener":
        raise unsupported(f"fitting '{node['type']}'", "model/fitting")
    check_version(node, "Fitting")
    for key in ("dim_case_embd", "use_aparam_as_mask", "spin", *(() if shared else ("mixed_types",))):
        if node.get(key):
            raise unsupported(f"fitting with {key}", "model/fitting")
    if shared is None:
        networks = [network_of(n, f"model/fitting, network {i}") for i, n in enumerate(node["nets"]["networks"])]
    else:
        networks = shared.of_centers
    variables = node["@variables"]
    numb_fparam, numb_aparam = int(node.get("numb_fparam", 0)), int(node.get("numb_aparam", 0))
    width = descriptor.n_features + numb_fparam + numb_aparam
    if len(networks) != descriptor.n_types or any(net.n_in != width or net.n_out != 1 for net in networks):
        raise ModelFileError(f"the fitting networks do not take {width} inputs to one energy", where="model/fitting")

    def vector(name: str, length: int) -> NDArray[np.float64] | None:
        value = variables.get(name)
        return None if value is None or not length else np.asarray(value, np.float64).reshape(length)

    atom_ener = [_scalar_or_none(e) for e in node.get("atom_ener") or []]
    if shared is not None and any(e is not None for e in atom_ener):
        # DeePMD-kit subtracts the net's value for zeros, type embedding included, from atoms of all types.
        raise unsupported("atom_ener with one fitting net for all types", "model/fitting")
    if atom_ener and any(e is not None for e in atom_ener):
        # As DeePMD-kit evaluates: types behind a short list's end are subtracted too.
        atom_ener += [0.0] * (descriptor.n_types - len(atom_ener))
    return EnergyFitting(
        networks=networks,
        bias_atom_e=np.asarray(variables["bias_atom_e"], np.float64).reshape(descriptor.n_types),
        numb_fparam=numb_fparam,
        numb_aparam=numb_aparam,
        fparam_avg=vector("fparam_avg", numb_fparam),
        fparam_inv_std=vector("fparam_inv_std", numb_fparam),
        aparam_avg=vector("aparam_avg", numb_aparam),
        aparam_inv_std=vector("aparam_inv_std", numb_aparam),
        default_fparam=node.get("default_fparam"),
        atom_ener=atom_ener,
        resnet_dt=bool(node.get("resnet_dt", True)),
        activation_function=node.get("activation_function", "tanh"),
        precision=precision_of(node),
        rcond=node.get("rcond"),
        trainable=node.get("trainable", True),
    )


def _scalar_or_none(value: Any) -> float | None:
    return None if value is None else float(np.asarray(value, np.float64).ravel()[0])


def _own_table(tree: Tree, model: DPModel) -> RadialTable | None:
    node = tree.get("dphpc", {}).get("table")
    if node is None:
        return None
    if node["@version"] > TABLE_VERSION:
        raise ModelFileError("the radial table's format is newer than this program knows", remedy="update dphpc")
    grids = tuple(Grid.from_numbers(*numbers) for numbers in node["grids"])
    return _checked_table(RadialTable(grids, np.ascontiguousarray(node["@variables"]["coefficients"])), model)


def _foreign_table(node: Tree, model: DPModel) -> RadialTable | None:
    """DeePMD-kit's table: per network (n_intervals, 6·M) in powers of s − left, and its two strides."""
    if "compress" not in node:
        return None
    variables = node["compress"]["@variables"]
    m, grids, tables = model.descriptor.n_channels, [], []
    for data, info in zip(variables["compress_data"], variables["compress_info"], strict=True):
        lower, upper, _, stride_fine, stride_coarse, *_ = (float(x) for x in np.asarray(info).ravel())
        coefficients = np.asarray(data, np.float64).reshape(-1, m, 6).transpose(0, 2, 1)
        if len(coefficients) == 0:  # the network of an excluded pair
            coefficients = np.zeros((1, 6, m))
        # The stored strides may be float32: the number of fine intervals is a whole one by construction.
        n_fine = min(round((upper - lower) / stride_fine), len(coefficients))
        grid = Grid.from_numbers(lower, stride_fine, n_fine, stride_coarse, len(coefficients) - n_fine)
        grids.append(grid)
        tables.append(coefficients * grid.widths[:, None, None] ** np.arange(6)[:, None])
    packed = np.zeros((len(tables), max(len(t) for t in tables), 6, m))
    for i, table in enumerate(tables):
        packed[i, : len(table)] = table
    return _checked_table(RadialTable(tuple(grids), packed), model)


def _checked_table(table: RadialTable, model: DPModel) -> RadialTable:
    n, intervals = len(model.descriptor.networks), max((g.n_intervals for g in table.grids), default=0)
    if len(table.grids) != n or table.coefficients.shape != (n, intervals, 6, model.descriptor.n_channels):
        raise ModelFileError("the table does not fit the embedding networks", where="table")
    if not np.isfinite(table.coefficients).all():
        raise ModelFileError("the table holds values that are not finite", where="table")
    return table
