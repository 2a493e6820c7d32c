"""DeePMD-kit's PyTorch files as the tree of a `.dp` file: frozen models (`.pth`) and checkpoints (`.pt`).

Both hold the weights by the names of DeePMD-kit's modules, and the training input's `model` section.  A frozen model
has the modules' settings beside the weights; a checkpoint has only weights, and a section in which nothing is left out.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import ModelFileError
from dphpc.model import dpa1
from dphpc.model.container import Tree
from dphpc.model.torch_archive import Item, read_archive
from dphpc.model.tree_parts import unsupported

SUFFIXES = (".pth", ".pt")
"""Endings of these files."""

_DESCRIPTOR = (
    "rcut", "rcut_smth", "sel", "axis_neuron", "set_davg_zero", "activation_function", "precision", "resnet_dt",
    "env_protection", "type_one_side", "trainable", "exclude_types", "spin",
)  # fmt: skip
_DPA1 = ("smooth_type_embedding", "concat_output_tebd", "use_econf_tebd", "use_tebd_bias", "attn_layer")
_FITTING = (
    "resnet_dt", "numb_fparam", "numb_aparam", "dim_case_embd", "default_fparam", "activation_function", "precision",
    "rcond", "trainable", "use_aparam_as_mask", "atom_ener", "spin",
)  # fmt: skip
_SECTION_LIMIT = 1 << 20
"""Most characters of the `model` section, of which a model has some thousand."""

_ELSE = ("use_srtab", "spin", "bridging_method", "modifier")
"""Keys of the `model` section that make it another model."""


def read_torch(path: Path) -> Tree:
    """The tree of a frozen model or a checkpoint.

    Raises
    ------
    ModelFileError
        The file is damaged, or no energy model on `se_e2_a` or `dpa1` is in it.
    """
    modules, script = _contents(read_archive(path))
    if "model_dict" in script:
        names = ", ".join(script["model_dict"])
        raise ModelFileError(
            f"the checkpoint has several models: {names}", expected="a single one",
            remedy=f"take one out with DeePMD-kit: dp --pt freeze -c {path.name} -o model.pth --head NAME",
        )  # fmt: skip
    for key in _ELSE:
        if script.get(key) not in (None, "None", [], {}):
            raise unsupported(f"a model with {key}")
    kind = script.get("type", "standard")
    if "descriptor" not in script or "fitting_net" not in script or kind != "standard":
        raise unsupported(f"a model of type '{kind}'")
    descriptor, fitting, type_map = script["descriptor"], script["fitting_net"], script["type_map"]
    if descriptor["type"] not in _MAKERS:
        raise unsupported(f"descriptor '{descriptor['type']}'", "model/descriptor")
    if fitting.get("type", "ener") != "ener":
        raise unsupported(f"fitting '{fitting['type']}'", "model/fitting")
    atomic = _Module(modules).below("atomic_model")
    distance = modules.get("min_nbor_dist")
    known = isinstance(distance, np.ndarray) and distance.size == 1 and distance > 0  # −1 otherwise
    return {
        "software": "deepmd-kit",
        "backend": "PyTorch",
        "model": {
            "type": kind,
            "type_map": type_map,
            "pair_exclude_types": script.get("pair_exclude_types"),
            "atom_exclude_types": script.get("atom_exclude_types"),
            "@variables": {"out_bias": atomic.array("out_bias")},
            "descriptor": _MAKERS[descriptor["type"]](atomic.below("descriptor"), descriptor, type_map),
            "fitting": _fitting(atomic.below("fitting_net"), fitting, len(type_map)),
        },
        "model_def_script": script,
        "@variables": {"min_nbor_dist": distance} if known else {},
    }


def _contents(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The modules, nested by name, and the `model` section."""
    if isinstance(value, Item) and "model_def_script" in value.entries:
        return value.entries, json.loads(value.entries["model_def_script"])
    state = value.get("model", value) if isinstance(value, dict) else {}
    if not isinstance(state, dict) or "_extra_state" not in state:
        raise ModelFileError("the file holds no model of DeePMD-kit", expected="what `dp --pt` freezes or saves")
    script = _copied(state["_extra_state"]["model_params"])
    nested: dict[str, Any] = {}
    for name, array in state.items():
        *folders, last = name.removeprefix("model.Default.").split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return nested, script


def _copied(section: Any) -> Any:
    """A copy as JSON has it; a forged section may hold itself, or grow when what it shares is written out."""
    text = io.StringIO()
    for part in json.JSONEncoder(default=str).iterencode(section):
        if text.write(part) and text.tell() > _SECTION_LIMIT:
            raise ValueError("its `model` section is too long")
    return json.loads(text.getvalue())


class _Module:
    """A module of DeePMD-kit: settings, arrays and modules by name."""

    def __init__(self, entries: dict[str, Any], name: str = "") -> None:
        self.entries, self.name = entries, name

    def below(self, *path: str) -> _Module:
        """A module within this one."""
        module = self
        for key in path:
            entry = module.entries.get(key)
            entry = entry.entries if isinstance(entry, Item) else entry
            if not isinstance(entry, dict):
                raise ModelFileError(f"the model has no part '{module.name}{key}'")
            module = _Module(entry, f"{module.name}{key}.")
        return module

    def array(self, key: str) -> Any:
        """An array of this module, or None if it has none of this name."""
        value = self.entries.get(key)
        return value if isinstance(value, np.ndarray) else None

    def settings(self, keys: tuple[str, ...], given: dict[str, Any]) -> Tree:
        """The module's settings, or as the input gave them."""
        found = {key: self.entries.get(key, given.get(key)) for key in keys}
        return {key: value for key, value in found.items() if value is not None}


def _se_a(module: _Module, given: dict[str, Any], type_map: list[str]) -> Tree:
    block = module.below("sea")
    settings = block.settings(_DESCRIPTOR, given)
    n_types = len(type_map)
    n_networks = n_types if settings.get("type_one_side") else n_types**2
    node = {
        **settings,
        "type": given["type"],
        "@variables": {"davg": block.array("mean"), "dstd": block.array("stddev")},
        "embeddings": _collection(block, "filter_layers", n_networks, len(given["neuron"]), settings),
    }
    tables = {}
    for key in ("compress_data", "compress_info"):
        if key in block.entries:
            parts = block.below(key)
            tables[key] = [parts.array(str(i)) for i in range(n_networks)]
    if all(part is not None and part.size for part in tables.get("compress_info", [None])):
        node["compress"] = {"@variables": tables}
    return node


def _dpa1(module: _Module, given: dict[str, Any], type_map: list[str]) -> Tree:
    block = module.below("se_atten")
    settings = block.settings(_DESCRIPTOR, given) | module.settings(_DPA1, given)
    depth, linear = len(given["neuron"]), {"activation_function": "Linear"}
    form: Tree = {"tebd_input_mode": "concat"}  # of which the input has several words
    if block.entries.get("filter_layers_strip") is not None:
        strip = _collection(block, "filter_layers_strip", 1, depth, settings)
        form = {"tebd_input_mode": "strip", "embeddings_strip": strip}
    return {
        **settings,
        **form,
        "type": "se_atten_v2" if given["type"] == "se_atten_v2" else "dpa1",
        "@variables": {"davg": block.array("mean"), "dstd": block.array("stddev")},
        "embeddings": _collection(block, "filter_layers", 1, depth, settings),
        "type_embedding": {
            "ntypes": len(type_map),
            "type_map": type_map,
            "use_econf_tebd": settings.get("use_econf_tebd", False),
            "embedding": _network(module.below("type_embedding", "embedding", "embedding_net"), 1, linear),
        },
    }


_MAKERS = {"se_e2_a": _se_a, "se_a": _se_a, **dict.fromkeys(dpa1.KINDS, _dpa1)}
"""By the descriptor's name."""


def _fitting(module: _Module, given: dict[str, Any], n_types: int) -> Tree:
    settings = module.settings(_FITTING, given)
    networks = module.below("filter_layers", "networks").entries
    mixed = sum(key.isdigit() for key in networks) < n_types
    names = ("bias_atom_e", "fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
    nets = _collection(module, "filter_layers", 1 if mixed else n_types, len(given["neuron"]) + 1, settings)
    for network in nets["networks"]:
        network["layers"][-1] |= {"activation_function": "none", "resnet": False}
    return {
        **settings,
        "mixed_types": mixed,
        "nets": nets,
        "@variables": {name: module.array(name) for name in names},
    }


def _collection(module: _Module, name: str, n: int, depth: int, settings: Tree) -> Tree:
    networks = module.below(name, "networks")
    return {"networks": [_network(networks.below(str(i)), depth, settings) for i in range(n)]}


def _network(module: _Module, depth: int, settings: Tree) -> Tree:
    layers = []
    for k in range(depth):
        layer = module.below("layers", str(k))
        values = {"w": layer.array("matrix"), "b": layer.array("bias"), "idt": layer.array("idt")}
        activation = settings.get("activation_function", "tanh")
        layers.append({"activation_function": activation, "resnet": True, "@variables": values})
    return {"layers": layers}
