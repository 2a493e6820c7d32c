"""DeePMD-kit's `dpa1` (`se_atten`, `se_atten_v2`) without attention layers, as the `se_e2_a` model that it equals.

Zhang et al., npj Comput. Mater. 10 (2024), arXiv:2208.08236.  Each type has an embedding T (a vector).  For given types
of center c and neighbor t the embedding network's output is a function of s̃ alone:

    concat   N(s̃, T_t, T_c)                   T_t and T_c go into the first layer's bias
    strip    N(s̃)·(1 + M(T_t, T_c)·w)         w = sw(r) where `smooth_type_embedding`, else 1; `gated.py`

(T_c is absent where one-sided.)  The fitting net, one for all types, takes T_c behind the features: one net per center
type, again by its first layer's bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import ModelFileError
from dphpc.model.container import Tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.electrons import configurations
from dphpc.model.gated import Gate, GatedNetwork
from dphpc.model.networks import Network
from dphpc.model.tree_parts import descriptor_without_networks, network_of, unsupported

KINDS = ("dpa1", "se_atten", "se_atten_v2")
"""DeePMD-kit's names."""

_WHERE = "model/descriptor"


def descriptor_of(node: Tree) -> tuple[SeE2A, Doubles]:
    """The descriptor of a file's tree, and what the fitting net takes of each center type beside its features.

    Raises
    ------
    ModelFileError
        It has attention layers, or something else that is not supported.
    """
    _require_no_attention(node)
    types = _type_embedding(node["type_embedding"])
    n_types = len(types)
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
    descriptor.kind = f"{node['type']}, {mode}, {'one' if descriptor.type_one_side else 'two'}-sided"
    descriptor.networks = (
        _concat(descriptor, node, types) if mode == "concat" else _strip(descriptor, node, types, smooth)
    )
    return descriptor, types if node.get("concat_output_tebd", True) else types[:, :0]


def folded(network: Network, constants: NDArray[np.floating], at: int) -> Network:
    """The network with its inputs from `at` on given, as many as `constants`: a function of the others.

    Raises
    ------
    ModelFileError
        The first layer has a skip connection, which would pass them on.
    """
    first = network.layers[0]
    if not len(constants):
        return network
    if first.skip:
        raise unsupported("a type embedding in a first layer with a skip connection (that is as wide, or twice)")
    behind = at + len(constants)
    b = np.asarray(constants, np.float64) @ np.asarray(first.w[at:behind], np.float64)
    if first.b is not None:
        b = b + first.b
    w = np.ascontiguousarray(np.delete(first.w, np.s_[at:behind], axis=0))
    # As wide as the inputs that are left, the layer still has no skip connection.
    return Network([replace(first, w=w, b=b.astype(w.dtype), resnet=False), *network.layers[1:]])


def _require_no_attention(node: Tree) -> None:
    if n := int(node.get("attn_layer", 0)):
        raise ModelFileError(
            f"descriptor '{node['type']}' with {n} attention layers is not supported", where=_WHERE,
            expected="attn_layer 0: with attention the embedding is no function of one distance",
            remedy="train the model with \"attn_layer\": 0",
        )  # fmt: skip


def _type_embedding(node: Tree) -> Doubles:
    """(ntypes, width): the embedding of each type."""
    network = network_of(node["embedding"], "model/descriptor/type_embedding").astype(np.float64)
    inputs = type_inputs(node)
    if inputs.shape[1] != network.n_in:
        raise ModelFileError(f"the type embedding takes {network.n_in} inputs for {len(inputs)} types", where=_WHERE)
    return network(inputs)


def type_inputs(node: Tree) -> Doubles:
    """(ntypes, n_in): what the type embedding's network takes for each type."""
    if node.get("use_econf_tebd"):
        return configurations([str(name) for name in node["type_map"]])
    return np.eye(int(node["ntypes"]))


def _single(node: Tree, key: str) -> Network:
    nodes = node[key]["networks"]
    if len(nodes) != 1:
        raise ModelFileError(f"{len(nodes)} networks in {key}, expected one", where=_WHERE)
    return network_of(nodes[0], f"{_WHERE}/{key}")


def _for_pairs(d: SeE2A, types: Doubles, one_side: bool, make: Callable[[Doubles, int], Network]) -> list[Network]:
    """`make(inputs, center)` for each pair of types, at its network's index."""
    centers = [0] if d.type_one_side else range(d.n_types)
    return [
        make(types[t] if one_side else np.concatenate((types[t], types[c])), c)
        for t in range(d.n_types) for c in centers
    ]  # fmt: skip


def _concat(d: SeE2A, node: Tree, types: Doubles) -> list[Network]:
    network = _single(node, "embeddings")
    width = types.shape[1] * (1 if d.type_one_side else 2)
    if network.n_in != 1 + width:
        raise ModelFileError(f"the embedding takes {network.n_in} inputs, expected {1 + width}", where=_WHERE)
    return _for_pairs(d, types, d.type_one_side, lambda inputs, _: folded(network, inputs, 1))


def _strip(d: SeE2A, node: Tree, types: Doubles, smooth: bool) -> list[Network]:
    network, of_types = _single(node, "embeddings"), _single(node, "embeddings_strip")
    one_side = d.type_one_side
    width = types.shape[1] * (1 if one_side else 2)
    if network.n_in != 1 or of_types.n_in != width or of_types.n_out != network.n_out:
        raise ModelFileError("the networks of distance and types do not fit together", where=_WHERE)
    exact, dtype = of_types.astype(np.float64), network.layers[0].w.dtype
    if smooth:
        d.type_one_side = False  # the gate is another function of s̃ for each center

    def gated(inputs: Doubles, c: int) -> Network:
        gate = Gate(d.rcut, d.rcut_smth, d.env_protection, float(d.davg[c]), float(d.dstd[c, 0])) if smooth else None
        return GatedNetwork(network.layers, exact(inputs[None])[0].astype(dtype), gate)

    return _for_pairs(d, types, one_side, gated)
