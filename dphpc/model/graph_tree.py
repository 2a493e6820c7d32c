"""Models that DeePMD-kit's TensorFlow back end froze (`.pb`), as the tree that its `.dp` files hold.

Weights are constants such as `filter_type_0/matrix_1_1` and `layer_0_type_1/bias`; `train_attr/training_script` is the
training input.  What a graph computes differs from a `.dp` file of the same settings, and the tree follows the graph:

- the environment's `rcut` and `rcut_smth` are attributes of an operation, in float32, and so is their difference, by
  which the switch divides;
- a fitting layer has a skip connection only behind another of its width, never the first;
- an atom's energy is out_std·(net + bias_atom_e) + out_bias, with out_std 1 but for models converted from PyTorch;
- `descriptor/exclude_types`: the pairs' empty slots add nothing either;
- the moments are divided by Σ `original_sel`, which `dp train --init-frz-model` keeps where it changes `sel`;
- before 2.1 the bias stood in the last layer, and the energies of `atom_ener` in constants of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dphpc.core.errors import ModelFileError
from dphpc.model import dpa1
from dphpc.model.container import Tree
from dphpc.model.graph_file import Graph

log = logging.getLogger(__name__)

_SCRIPT = "train_attr/training_script"
_UNSUPPORTED = {
    "model": ("type_embedding", "spin", "use_srtab", "modifier", "fitting_net_dict"),
    "descriptor": ("env_protection", "spin"),
    "fitting_net": ("tot_ener_zero", "layer_name", "use_aparam_as_mask", "spin", "dim_case_embd", "default_fparam"),
}


def read_graph(path: Path) -> Tree:
    """The tree of a frozen graph.

    Raises
    ------
    ModelFileError
        The file is none, is damaged, or holds a kind of model that is not supported; the message says which.
    """
    graph = Graph(path)
    settings, training = _settings(graph)
    _refuse_compressed(graph)
    type_map = graph.text("model_attr/tmap").split()
    descriptor = _descriptor(graph, settings["descriptor"], len(type_map))
    fitting = _fitting(graph, settings["fitting_net"], type_map, descriptor)
    if "mixed_precision" in training:
        log.warning("the model was trained in mixed precision; here its networks are not rounded to half precision")
    nearest = "train_attr/min_nbor_dist"
    return {
        "backend": "TensorFlow",
        "model": {
            "type": "standard",
            "type_map": type_map,
            "descriptor": descriptor,
            "fitting": fitting,
            "@variables": {"out_bias": _out(graph, "bias", 0.0, len(type_map))},
        },
        "model_def_script": settings,
        "@variables": {"min_nbor_dist": graph.array(nearest)} if nearest in graph else {},
    }


def _settings(graph: Graph) -> tuple[Tree, Tree]:
    """The sections `model` and `training` of the training input, after what is not supported is refused."""
    if "model_attr/model_type" not in graph and "descrpt_attr/rcut" not in graph:
        raise ModelFileError("the graph is no Deep Potential model")
    kind = graph.text("model_attr/model_type") if "model_attr/model_type" in graph else "ener"
    if kind != "ener":
        raise _unsupported(f"a model of type '{kind}'")
    if _SCRIPT not in graph:
        raise ModelFileError(
            f"the graph has no '{_SCRIPT}', without which its settings are not known",
            expected="a model frozen by DeePMD-kit 2 or 3",
            remedy="begin a training from it with one of them, dp train input.json --init-frz-model "
            f"{graph.path.name}, and freeze that",
        )  # fmt: skip
    script = json.loads(graph.text(_SCRIPT))
    model: Tree = script["model"]
    if model.get("type", "standard") != "standard":
        raise _unsupported(f"a model of type '{model['type']}'")
    _refuse("model", model)
    for section in ("descriptor", "fitting_net"):
        if section not in model:
            raise ModelFileError(f"the training input in the graph has no model/{section}")
        _refuse(section, model[section])
    if (name := model["descriptor"].get("type")) not in ("se_e2_a", "se_a"):
        raise _unsupported(f"descriptor '{name}' in a .pb file", _converted(graph.path) if name in dpa1.KINDS else None)
    if (name := model["fitting_net"].get("type", "ener")) != "ener":
        raise _unsupported(f"fitting '{name}'")
    if script.get("nvnmd", {}).get("enable"):
        raise _unsupported("a model of NVNMD")
    return model, script.get("training", {})


def _refuse(section: str, settings: Tree) -> None:
    for key in _UNSUPPORTED[section]:
        if settings.get(key):
            raise _unsupported(f"'{key}' in section {section}")


def _refuse_compressed(graph: Graph) -> None:
    if graph.operations("TabulateFusion", "TabulateFusionSeA"):
        raise ModelFileError(
            "the model is compressed, and the file holds tables in place of the embedding networks",
            expected="the model before dp compress",
            remedy="take the file that was the input of dp compress; dphpc compress makes its own table of it",
        )  # fmt: skip


def _unsupported(what: str, remedy: str | None = None) -> ModelFileError:
    return ModelFileError(f"{what} is not supported", expected="an energy model on se_e2_a", remedy=remedy)


def _converted(path: Path) -> str:
    return f"if DeePMD-kit can convert it, read that file: dp convert-backend {path.name} {path.stem}.dp"


def _descriptor(graph: Graph, settings: Tree, n_types: int) -> Tree:
    operations = graph.operations("ProdEnvMatA")
    if len(operations) != 1:
        raise ModelFileError(f"the graph has {len(operations)} operations ProdEnvMatA", expected="one")
    sel = graph.setting(operations[0], "sel_a")
    rcut, rcut_smth = (np.float32(graph.setting(operations[0], name)) for name in ("rcut_r", "rcut_r_smth"))
    variables = {key: graph.array(f"descrpt_attr/t_{name}") for key, name in (("davg", "avg"), ("dstd", "std"))}
    excluded = {(a, b) for pair in settings.get("exclude_types") or () for a, b in (pair, pair[::-1])}
    one_side = any(name.startswith("filter_type_all/") for name in graph.operations("Const"))
    networks = _embeddings(graph, settings, n_types, one_side, excluded)
    if excluded and variables["davg"].any():
        # Their empty slots add nothing: as a network of each pair that is 0 for them, not as excluded pairs.
        if one_side:
            networks = [networks[t] for t in range(n_types) for c in range(n_types)]
        pairs = [(c, t) for t in range(n_types) for c in range(n_types)]
        networks = [_nothing(n) if pair in excluded else n for n, pair in zip(networks, pairs, strict=True)]
        one_side, excluded = False, set()
    return {
        "type": "se_e2_a",
        "rcut": float(rcut_smth) + float(rcut - rcut_smth),
        "rcut_smth": float(rcut_smth),
        "sel": sel,
        "axis_neuron": None,
        "resnet_dt": any(layer["@variables"]["idt"] is not None for n in networks for layer in n["layers"]),
        "set_davg_zero": bool(settings.get("set_davg_zero", False)),
        "activation_function": _activation(settings),
        "precision": _precision(networks),
        "exclude_types": sorted(excluded),
        "trainable": settings.get("trainable", True),
        "type_one_side": one_side,
        "embeddings": {"networks": networks},
        "@variables": variables,
    }


def _embeddings(
    graph: Graph, settings: Tree, n_types: int, one_side: bool, excluded: set[tuple[int, int]]
) -> list[Tree]:
    """One network for each neighbor type, or for each pair at index center + ntypes·neighbor; 0 for excluded pairs."""
    found: list[Tree | None] = []
    for neighbor in range(n_types):
        for center in ["all"] if one_side else range(n_types):
            if (center, neighbor) in excluded:
                found.append(None)
                continue
            names = [f"filter_type_{center}/{{}}_{layer + 1}_{neighbor}" for layer in range(_depth(settings))]
            layers = _layers(graph, names, settings, embedding=True)
            found.append({"layers": layers})
    example = next((network for network in found if network is not None), None)
    if example is None:
        raise _unsupported("a descriptor whose pairs are all excluded")
    return [_nothing(example) if network is None else network for network in found]


def _fitting(graph: Graph, settings: Tree, type_map: Sequence[str], descriptor: Tree) -> Tree:
    n_types = len(type_map)
    std = _out(graph, "std", 1.0, n_types)
    bias = np.zeros(n_types)
    if "fitting_attr/t_bias_atom_e" in graph:
        bias += graph.array("fitting_attr/t_bias_atom_e").reshape(n_types)
    atom_ener = [*(settings.get("atom_ener") or ()), *[None] * n_types][:n_types]  # a short list is of the first types
    networks = []
    for i in range(n_types):
        if (alone := f"atom_{i}_ener") in graph:
            bias[i] += float(graph.array(alone))
        names = [f"layer_{layer}_type_{i}/{{}}" for layer in range(_depth(settings))]
        layers = _layers(graph, names, settings, embedding=False)
        last = {key: graph.array(f"final_layer_type_{i}/{name}") for key, name in (("w", "matrix"), ("b", "bias"))}
        last = {key: (array * std[i]).astype(array.dtype) for key, array in last.items()}
        layers.append({"activation_function": "linear", "resnet": False, "@variables": {**last, "idt": None}})
        networks.append({"layers": layers})
    if (std != 1.0).any():
        log.warning(
            "the graph multiplies atomic energies by %s (out_std), as DeePMD-kit's TensorFlow does with models "
            "converted from PyTorch, which does not", std.tolist(),
        )  # fmt: skip
    numbers = {name: int(graph.array(f"fitting_attr/d{name}")) for name in ("fparam", "aparam")}
    channels = descriptor["embeddings"]["networks"][0]["layers"][-1]["@variables"]["w"].shape[1]
    first = [network["layers"][0]["@variables"] for network in networks]
    features = first[0]["w"].shape[0] - sum(numbers.values())
    descriptor["axis_neuron"] = features // channels
    _follow_original_sel(graph, descriptor, first, features)
    parameters = {
        f"{name}_{ours}": graph.array(f"fitting_attr/t_{name}_{theirs}") if number else None
        for name, number in numbers.items()
        for ours, theirs in (("avg", "avg"), ("inv_std", "istd"))
    }
    return {
        "type": "ener",
        "resnet_dt": any(layer["@variables"]["idt"] is not None for n in networks for layer in n["layers"]),
        "numb_fparam": numbers["fparam"],
        "numb_aparam": numbers["aparam"],
        "activation_function": _activation(settings),
        "precision": _precision(networks),
        "nets": {"networks": networks},
        "rcond": settings.get("rcond"),
        "trainable": settings.get("trainable", True),
        "atom_ener": atom_ener if any(energy is not None for energy in atom_ener) else [],
        "@variables": {"bias_atom_e": bias * std, **parameters},
    }


def _follow_original_sel(graph: Graph, descriptor: Tree, first: list[Tree], features: int) -> None:
    """Put what the moments are divided by into the fitting nets' first layers, where it is not Σ `sel`."""
    name = "descrpt_attr/original_sel"
    total, original = sum(descriptor["sel"]), int(graph.array(name).sum()) if name in graph else 0
    if original in (0, total):
        return
    if descriptor["@variables"]["davg"].any():
        raise _unsupported(f"a changed sel (the original's sum is {original}) with davg != 0")
    for variables in first:
        w = variables["w"].copy()
        w[:features] *= (total / original) ** 2
        variables["w"] = w


def _layers(graph: Graph, names: list[str], settings: Tree, *, embedding: bool) -> list[Tree]:
    """The hidden layers of a network; each name has a place for what it names."""
    layers = []
    for i, name in enumerate(names):
        w = graph.array(name.format("matrix"))
        n_in, n_out = w.shape
        skip = n_out in (n_in, 2 * n_in) if embedding else i > 0 and n_out == n_in
        idt = name.format("idt")  # an embedding has one in each layer, and uses it with a skip connection
        timed = skip and (idt in graph or settings.get("resnet_dt", False))
        variables = {"w": w, "b": graph.array(name.format("bias")), "idt": graph.array(idt) if timed else None}
        layers.append({"activation_function": _activation(settings), "resnet": skip, "@variables": variables})
    return layers


def _nothing(network: Tree) -> Tree:
    """A network of the same widths that is 0."""
    layers = []
    for layer in network["layers"]:
        variables = {k: None if v is None else np.zeros_like(v) for k, v in layer["@variables"].items()}
        layers.append({"activation_function": "linear", "resnet": False, "@variables": variables})
    return {"layers": layers}


def _out(graph: Graph, kind: str, default: float, n_types: int) -> np.ndarray:
    """`out_bias` or `out_std` (ntypes,), which 3.2 stores in a scope that stands in another of its name."""
    for scope in ("model_attr/model_attr", "model_attr"):
        if (name := f"{scope}/t_out_{kind}") in graph:
            return np.asarray(graph.array(name).reshape(n_types), np.float64)
    return np.full(n_types, default)


def _activation(settings: Tree) -> str:
    return str(settings.get("activation_function", "tanh") or "none").lower()


def _depth(settings: Tree) -> int:
    return len(settings.get("neuron", (0, 0, 0)))


def _precision(networks: list[Tree]) -> str:
    """The type of the weights, which the script may leave to how DeePMD-kit was built."""
    return str(networks[0]["layers"][0]["@variables"]["w"].dtype)
