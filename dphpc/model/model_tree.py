"""A model as the tree that DeePMD-kit's files hold."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

import dphpc
from dphpc.model.container import Tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.networks import Network

TABLE_VERSION = 1
"""Format of the radial table under the top-level key `dphpc`."""


def model_tree(model: DPModel) -> Tree:
    """The model as DeePMD-kit's tree, our table beside it."""
    tree: Tree = {
        "software": "dphpc",
        "version": dphpc.__version__,
        "time": str(datetime.now(UTC)),
        "backend": "dphpc",
        "model": own_tree(model) if model.origin is None else _original_tree(model, model.origin),
        "model_def_script": model.script,
        "@variables": {} if model.min_nbor_dist is None else {"min_nbor_dist": np.float64(model.min_nbor_dist)},
    }
    if model.table is not None:
        grids = [grid.numbers() for grid in model.table.grids]
        variables = {"coefficients": model.table.coefficients}
        tree["dphpc"] = {"table": {"@version": TABLE_VERSION, "grids": grids, "@variables": variables}}
    return tree


def own_tree(model: DPModel) -> Tree:
    """The model's own kind."""
    n = model.n_types
    return {
        "@class": "Model",
        "@version": 2,
        "type": "standard",
        "type_map": model.type_map,
        "atom_exclude_types": sorted(model.atom_exclude_types),
        "pair_exclude_types": [list(pair) for pair in sorted(model.pair_exclude_types)],
        "rcond": None,
        "preset_out_bias": None,
        "@variables": {"out_bias": model.out_bias.reshape(1, n, 1), "out_std": np.ones((1, n, 1))},
        "descriptor": _descriptor_tree(model),
        "fitting": _fitting_tree(model),
    }


def _original_tree(model: DPModel, origin: Tree) -> Tree:
    """A model of another kind as its file had it, with the biases, statistics and shared networks that it has now."""
    f, descriptor, fitting = model.fitting, origin["descriptor"], origin["fitting"]
    variables = {**fitting["@variables"], "bias_atom_e": f.bias_atom_e.reshape(-1, 1)}
    own = {**origin.get("@variables", {}), "out_bias": model.out_bias.reshape(1, -1, 1)}
    if (shared := model.shared) is not None:
        for name in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std"):
            variables[name] = getattr(f, name)
        types = descriptor["type_embedding"]
        networks = {"embeddings": shared.embedding, "embeddings_strip": shared.strip}
        descriptor = {
            **descriptor,
            "@variables": statistics_tree(model.descriptor),
            **{key: _collection_with(descriptor[key], net) for key, net in networks.items() if net is not None},
            "type_embedding": {**types, "embedding": _network_with(types["embedding"], shared.types)},
        }
        fitting = {**fitting, "nets": _collection_with(fitting["nets"], shared.fitting)}
    return {**origin, "@variables": own, "descriptor": descriptor, "fitting": {**fitting, "@variables": variables}}


def _collection_with(node: Tree, network: Network) -> Tree:
    """A collection of one network with another's arrays."""
    return {**node, "networks": [_network_with(node["networks"][0], network)]}


def _network_with(node: Tree, network: Network) -> Tree:
    """A network's tree with another's arrays."""
    arrays = [{"w": layer.w, "b": layer.b, "idt": layer.idt} for layer in network.layers]
    layers = [
        {**old, "@variables": {**old["@variables"], **new}} for old, new in zip(node["layers"], arrays, strict=True)
    ]
    return {**node, "layers": layers}


def statistics_tree(d: SeE2A) -> Tree:
    """davg and dstd, repeated for every slot."""
    slots = (d.n_types, sum(d.sel), 4)
    davg, dstd = np.zeros(slots, d.precision), np.ones(slots, d.precision)
    davg[:, :, 0] = d.davg[:, None]
    dstd[:, :, 0], dstd[:, :, 1:] = d.dstd[:, :1], d.dstd[:, 1:, None]
    return {"davg": davg, "dstd": dstd}


def network_tree(network: Network, kind: str, precision: str, resnet_dt: bool) -> Tree:
    """A network of kind `EmbeddingNetwork` or `FittingNetwork`."""
    layers = [
        {
            "@class": "Layer",
            "@version": 2,
            "bias": layer.b is not None,
            "use_timestep": layer.idt is not None,
            "activation_function": layer.activation,
            "resnet": layer.resnet,
            "precision": precision,
            "trainable": True,
            "@variables": {"w": layer.w, "b": layer.b, "idt": layer.idt},
        }
        for layer in network.layers
    ]
    widths = [int(layer.w.shape[1]) for layer in network.layers]
    embedding = kind == "EmbeddingNetwork"
    return {
        "@class": kind,
        "@version": 2 if embedding else 1,
        "in_dim": network.n_in,
        **({} if embedding else {"out_dim": network.n_out, "bias_out": True}),
        "neuron": widths if embedding else widths[:-1],
        "activation_function": network.layers[0].activation,
        "resnet_dt": resnet_dt,
        **({"bias": network.layers[0].b is not None} if embedding else {}),
        "precision": precision,
        "layers": layers,
    }


def collection_tree(networks: list[Tree], ndim: int, n_types: int, kind: str) -> Tree:
    """Networks for `ndim` types each: 0 for one that all types share."""
    head = {"@class": "NetworkCollection", "@version": 1, "ndim": ndim, "ntypes": n_types}
    return {**head, "network_type": kind, "networks": networks}


def descriptor_tree_without_networks(model: DPModel, kind: str) -> Tree:
    """What the trees of kinds of descriptors have in common."""
    d = model.descriptor
    return {
        "@class": "Descriptor",
        "type": kind,
        "@version": 2,
        "rcut": d.rcut,
        "rcut_smth": d.rcut_smth,
        "sel": list(d.sel),
        "neuron": [int(layer.w.shape[1]) for layer in d.networks[0].layers],
        "axis_neuron": d.axis_neuron,
        "resnet_dt": d.resnet_dt,
        "set_davg_zero": d.set_davg_zero,
        "activation_function": d.activation_function,
        "precision": d.precision,
        "env_mat": {
            "rcut": d.rcut, "rcut_smth": d.rcut_smth, "protection": d.env_protection, "use_exp_switch": False,
        },
        "exclude_types": [list(pair) for pair in sorted(d.exclude_types)],
        "env_protection": d.env_protection,
        "@variables": statistics_tree(d),
        "type_map": model.type_map,
        "trainable": d.trainable,
        "type_one_side": d.type_one_side,
        "spin": None,
    }  # fmt: skip


def _descriptor_tree(model: DPModel) -> Tree:
    d = model.descriptor
    networks = [network_tree(net, "EmbeddingNetwork", d.precision, d.resnet_dt) for net in d.networks]
    embeddings = collection_tree(networks, 1 if d.type_one_side else 2, d.n_types, "embedding_network")
    return {**descriptor_tree_without_networks(model, "se_e2_a"), "embeddings": embeddings}


def _fitting_tree(model: DPModel) -> Tree:
    f = model.fitting
    networks = [network_tree(net, "FittingNetwork", f.precision, f.resnet_dt) for net in f.networks]
    return {
        "@class": "Fitting",
        "type": "ener",
        "@version": 4,
        "var_name": "energy",
        "ntypes": model.n_types,
        "dim_descrpt": model.descriptor.n_features,
        "neuron": [int(layer.w.shape[1]) for layer in f.networks[0].layers[:-1]],
        "resnet_dt": f.resnet_dt,
        "numb_fparam": f.numb_fparam,
        "numb_aparam": f.numb_aparam,
        "dim_case_embd": 0,
        "default_fparam": f.default_fparam,
        "activation_function": f.activation_function,
        "precision": f.precision,
        "mixed_types": False,
        "nets": collection_tree(networks, 1, model.n_types, "fitting_network"),
        "rcond": f.rcond,
        "exclude_types": sorted(model.atom_exclude_types),
        "@variables": {
            "bias_atom_e": f.bias_atom_e.reshape(-1, 1),
            "case_embd": None,
            "fparam_avg": f.fparam_avg,
            "fparam_inv_std": f.fparam_inv_std,
            "aparam_avg": f.aparam_avg,
            "aparam_inv_std": f.aparam_inv_std,
        },
        "type_map": model.type_map,
        "tot_ener_zero": False,
        "trainable": f.trainable if isinstance(f.trainable, list) else [f.trainable] * len(f.networks[0].layers),
        "layer_name": None,
        "use_aparam_as_mask": False,
        "spin": None,
        "dim_out": 1,
        "atom_ener": f.atom_ener,
    }
