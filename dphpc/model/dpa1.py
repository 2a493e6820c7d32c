"""DeePMD-kit's `dpa1` (`se_atten`, `se_atten_v2`) without attention layers, as the `se_e2_a` model that it equals.

Zhang et al., npj Comput. Mater. 10 (2024), arXiv:2208.08236.  Each type has an embedding T (a vector).  For given types
of center c and neighbor t the embedding network's output is a function of s̃ alone:

    concat   N(s̃, T_t, T_c)                   T_t and T_c go into the first layer's bias
    strip    N(s̃)·(1 + M(T_t, T_c)·w)         w = sw(r) where `smooth_type_embedding`, else 1; `gated.py`

(T_c is absent where one-sided.)  The fitting net, one for all types, takes T_c behind the features: one net per center
type, again by its first layer's bias.
"""

from __future__ import annotations

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.errors import ModelFileError
from dphpc.model.container import Tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.electrons import configurations
from dphpc.model.networks import Network
from dphpc.model.shared import SharedNetworks
from dphpc.model.tree_parts import descriptor_without_networks, network_of, unsupported

KINDS = ("dpa1", "se_atten", "se_atten_v2")
"""DeePMD-kit's names."""

_WHERE = "model/descriptor"


def descriptor_of(model: Tree) -> tuple[SeE2A, SharedNetworks]:
    """The descriptor of a file's `model`, and the networks that it and the fitting follow from.

    Raises
    ------
    ModelFileError
        It has attention layers, or something else that is not supported.
    """
    node = model["descriptor"]
    _require_no_attention(node)
    inputs = type_inputs(node["type_embedding"])
    n_types = len(inputs)
    sel = sum(int(n) for n in np.atleast_1d(node["sel"]))
    descriptor = descriptor_without_networks(node, (sel,), n_types, one_side=False, set_davg_zero=True)
    second = node["type"] == "se_atten_v2"  # which is always smooth and stripped
    mode = "strip" if second else node.get("tebd_input_mode", "concat")
    if mode not in ("concat", "strip"):
        raise unsupported(f"tebd_input_mode '{mode}'", _WHERE)
    smooth = mode == "strip" and (second or bool(node["smooth_type_embedding"]))
    if descriptor.davg.any() and n_types > 1 and not smooth:
        raise ModelFileError(
            f"descriptor '{node['type']}' with davg != 0 is not supported", where=_WHERE,
            expected="davg 0: DeePMD-kit gives missing neighbors the type of the structure's first atom, so that its "
            "energy depends on the order of atoms",
            remedy="train the model with \"set_davg_zero\": true",
        )  # fmt: skip
    embedding = _single(node["embeddings"], "embeddings")
    shared = SharedNetworks(
        embedding=embedding,
        types=network_of(node["type_embedding"]["embedding"], f"{_WHERE}/type_embedding"),
        fitting=_single(model["fitting"]["nets"], "nets", "model/fitting"),
        inputs=inputs,
        at=embedding.n_out * descriptor.axis_neuron,
        output_types=bool(node.get("concat_output_tebd", True)),
        one_side=descriptor.type_one_side,
        electrons=bool(node["type_embedding"].get("use_econf_tebd")),
        strip=_single(node["embeddings_strip"], "embeddings_strip") if mode == "strip" else None,
        smooth=smooth,
    )
    _require_fit(shared)
    descriptor.kind = f"{node['type']}, {shared.kind}"
    shared.attach(descriptor)
    return descriptor, shared


def _require_no_attention(node: Tree) -> None:
    if n := int(node.get("attn_layer", 0)):
        raise ModelFileError(
            f"descriptor '{node['type']}' with {n} attention layers is not supported", where=_WHERE,
            expected="attn_layer 0: with attention the embedding is no function of one distance",
            remedy="train the model with \"attn_layer\": 0",
        )  # fmt: skip


def type_inputs(node: Tree) -> Doubles:
    """(ntypes, n_in): what the type embedding's network takes for each type."""
    if node.get("use_econf_tebd"):
        return configurations([str(name) for name in node["type_map"]])
    return np.eye(int(node["ntypes"]))


def _single(node: Tree, key: str, where: str = _WHERE) -> Network:
    nodes = node["networks"]
    if len(nodes) != 1:
        raise ModelFileError(f"{len(nodes)} networks in {key}, expected one", where=where)
    return network_of(nodes[0], f"{where}/{key}")


def _require_fit(shared: SharedNetworks) -> None:
    """Refuse networks that do not take each other's outputs."""
    embedding, strip, types, n = shared.embedding, shared.strip, shared.types, len(shared.inputs)
    if shared.inputs.shape[1] != types.n_in:
        raise ModelFileError(f"the type embedding takes {types.n_in} inputs for {n} types", where=_WHERE)
    width = types.n_out * (1 if shared.one_side else 2)
    if strip is None and embedding.n_in != 1 + width:
        raise ModelFileError(f"the embedding takes {embedding.n_in} inputs, expected {1 + width}", where=_WHERE)
    if strip is not None and (embedding.n_in, strip.n_in, strip.n_out) != (1, width, embedding.n_out):
        raise ModelFileError("the networks of distance and types do not fit together", where=_WHERE)
    if shared.output_types and shared.fitting.n_in < shared.at + types.n_out:
        raise ModelFileError(
            f"the fitting network takes {shared.fitting.n_in} inputs, expected at least {shared.at + types.n_out}",
            where="model/fitting",
        )
