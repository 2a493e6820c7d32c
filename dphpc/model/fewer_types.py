"""A `dpa1` model restricted to some of its types, so that tables are needed for their pairs only.

Nothing else changes, as `sel` counts neighbors of all types together and the networks are shared by all types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dphpc.core.errors import InputError, did_you_mean
from dphpc.model.container import Tree
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import model_of
from dphpc.model.model_tree import model_tree


def with_types(model: DPModel, names: Sequence[str]) -> DPModel:
    """The model of these types, in this order, without a table.

    Raises
    ------
    InputError
        Types that the model does not know, one named twice, or a model whose types do not share networks and `sel`.
    """
    if model.origin is None:
        raise InputError(
            "types cannot be taken out of this model", where="--types", expected="a dpa1 model: in others sel, which "
            "moments are divided by, belongs to the types",
        )  # fmt: skip
    for i, name in enumerate(names):
        if name not in model.type_map:
            raise InputError(
                f"the model has no type '{name}'", where="--types", remedy=did_you_mean(name, model.type_map)
            )
        if name in names[:i]:
            raise InputError(f"type '{name}' is named twice", where="--types")
    kept = [model.type_map.index(name) for name in names]
    tree: Tree = {"model": _cut(model_tree(model)["model"], list(names), kept), "model_def_script": {**model.script}}
    if "type_map" in model.script:
        tree["model_def_script"]["type_map"] = list(names)
    cut = model_of(tree)
    return replace(cut, min_nbor_dist=model.min_nbor_dist, extra=model.extra)


def _cut(node: Tree, names: list[str], kept: list[int]) -> Tree:
    descriptor, fitting = node["descriptor"], node["fitting"]
    own, of_atoms, of_slots = node.get("@variables", {}), fitting["@variables"], descriptor["@variables"]
    common = {"ntypes": len(kept), "type_map": names}
    place = {old: new for new, old in enumerate(kept)}

    def excluded(pairs: Any) -> list[list[int]]:
        return [[place[a], place[b]] for a, b in pairs or () if a in place and b in place]

    def types(single: Any) -> list[int]:
        return [place[t] for t in single or () if t in place]

    def collection(part: Tree, *keys: str) -> Tree:
        return {key: {**part[key], "ntypes": len(kept)} for key in keys if key in part}

    return {
        **node,
        "type_map": names,
        "pair_exclude_types": excluded(node.get("pair_exclude_types")),
        "atom_exclude_types": types(node.get("atom_exclude_types")),
        "@variables": {**own, **{key: np.asarray(own[key])[:, kept] for key in ("out_bias", "out_std") if key in own}},
        "descriptor": {
            **{key: value for key, value in descriptor.items() if key != "compress"},
            **common,
            **collection(descriptor, "embeddings", "embeddings_strip"),
            "type_embedding": _cut_embedding(descriptor["type_embedding"], common, kept),
            "exclude_types": excluded(descriptor.get("exclude_types")),
            "@variables": {**of_slots, **{key: np.asarray(of_slots[key])[kept] for key in ("davg", "dstd")}},
        },
        "fitting": {
            **fitting,
            **common,
            **collection(fitting, "nets"),
            "exclude_types": types(fitting.get("exclude_types")),
            "@variables": {**of_atoms, "bias_atom_e": np.asarray(of_atoms["bias_atom_e"])[kept]},
        },
    }


def _cut_embedding(node: Tree, common: dict[str, Any], kept: list[int]) -> Tree:
    """The types' embedding with the kept types' rows of its first layer; electron configurations need no change."""
    if node.get("use_econf_tebd"):
        return {**node, **common}
    network = node["embedding"]
    first, *rest = network["layers"]
    w = np.asarray(first["@variables"]["w"])
    if first["resnet"] and not w.shape[1] % len(w):
        # A skip connection, which belongs to the number of types; of a linear layer it can go into the weights.
        if first["activation_function"].lower() not in ("linear", "none") or first["@variables"].get("idt") is not None:
            raise InputError("types cannot be taken out of a type embedding with a skip connection", where="--types")
        copies = w.shape[1] // len(w)
        w = w + np.tile(np.eye(len(w)), copies) if copies <= 2 else w
    layer = {**first, "resnet": False, "@variables": {**first["@variables"], "w": w[kept]}}
    return {**node, **common, "embedding": {**network, "in_dim": len(kept), "layers": [layer, *rest]}}
