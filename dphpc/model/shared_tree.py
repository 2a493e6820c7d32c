"""The tree of a model of kind `dpa1` without attention, as DeePMD-kit 3.2 writes it, for a model made here."""

from __future__ import annotations

from dphpc.model.container import Tree
from dphpc.model.dp_model import DPModel
from dphpc.model.model_tree import collection_tree, descriptor_tree_without_networks, network_tree, own_tree
from dphpc.model.networks import Network
from dphpc.model.shared import SharedNetworks

_ATTENTION = {"scaling_factor": 1.0, "normalize": True, "temperature": None, "trainable_ln": True, "ln_eps": 1e-5}
_HIDDEN = 128
"""Width of attention layers, of which there are none: DeePMD-kit's defaults."""


def shared_tree(model: DPModel, shared: SharedNetworks) -> Tree:
    """A file's `model` for a model whose networks follow from `shared`."""
    tree = own_tree(model)
    f, width = model.fitting, shared.types.n_out if shared.output_types else 0
    nets = [network_tree(shared.fitting, "FittingNetwork", f.precision, f.resnet_dt)]
    fitting = {
        **tree["fitting"],
        "mixed_types": True,
        "dim_descrpt": model.descriptor.n_features + width,
        "nets": collection_tree(nets, 0, model.n_types, "fitting_network"),
    }
    return {**tree, "descriptor": _descriptor(model, shared), "fitting": fitting}


def _descriptor(model: DPModel, shared: SharedNetworks) -> Tree:
    d = model.descriptor

    def collection(network: Network) -> Tree:
        tree = network_tree(network, "EmbeddingNetwork", d.precision, d.resnet_dt)
        return collection_tree([tree], 0, model.n_types, "embedding_network")

    return {
        **descriptor_tree_without_networks(model, "dpa1"),
        "type_one_side": shared.one_side,
        "ntypes": model.n_types,
        "tebd_dim": shared.types.n_out,
        "tebd_input_mode": shared.form,
        "attn": _HIDDEN,
        "attn_layer": 0,
        "attn_dotr": True,
        "attn_mask": False,
        **_ATTENTION,
        "smooth_type_embedding": shared.smooth,
        "concat_output_tebd": shared.output_types,
        "use_econf_tebd": shared.electrons,
        "use_tebd_bias": shared.types.layers[0].b is not None,
        "embeddings": collection(shared.embedding),
        **({} if shared.strip is None else {"embeddings_strip": collection(shared.strip)}),
        "attention_layers": {
            "@class": "NeighborGatedAttention", "@version": 1, "layer_num": 0, "nnei": sum(d.sel),
            "embed_dim": d.n_channels, "hidden_dim": _HIDDEN, "dotr": True, "do_mask": False, **_ATTENTION,
            "precision": d.precision, "attention_layers": [],
        },
        "type_embedding": _type_embedding(model, shared),
    }  # fmt: skip


def _type_embedding(model: DPModel, shared: SharedNetworks) -> Tree:
    d = model.descriptor
    return {
        "@class": "TypeEmbedNet",
        "@version": 2,
        "ntypes": model.n_types,
        "neuron": [shared.types.n_out],
        "resnet_dt": False,
        "precision": d.precision,
        "activation_function": "Linear",
        "trainable": d.trainable,
        "padding": True,
        "use_econf_tebd": shared.electrons,
        "use_tebd_bias": shared.types.layers[0].b is not None,
        "type_map": model.type_map,
        "embedding": network_tree(shared.types, "EmbeddingNetwork", d.precision, False),
    }
