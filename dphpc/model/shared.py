"""The networks of a `dpa1` model, which all types share, and the networks of types and pairs that follow from them.

    T = X·W + b (+ X)        embeddings of the types (ntypes, w); X are one-hot rows or electron configurations
    N(s̃, T_t, T_c)           embedding network; for a pair (t, c) its first layer has W[:1] and b + (T_t, T_c)·W[1:]
    F(D, T_c, parameters)    fitting network; for a center type c its first layer lacks the rows of T_c and has
                             b + T_c·W[rows]

The layers behind the first are the same objects.  The shared arrays are trained and kept in files; `spread` updates the
arrays that follow from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.model.container import Tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.dpa1 import type_inputs
from dphpc.model.fitting import EnergyFitting
from dphpc.model.networks import Network
from dphpc.model.tree_parts import network_of

EMBEDDING, TYPES, FITTING = "descriptor.networks", "descriptor.type_embedding", "fitting.networks"
"""Prefixes of the names of shared arrays."""


@dataclass
class SharedNetworks:
    """The shared networks, and the networks of a model that follow from them.

    Attributes
    ----------
    embedding, types, fitting
        The networks N, T and F.
    inputs
        X (ntypes, n_in).
    at
        Place of T_c among the fitting network's inputs.
    output_types
        Whether F takes T_c.
    one_side
        Whether N takes T_t only.
    electrons
        Whether X are electron configurations.
    """

    embedding: Network
    types: Network
    fitting: Network
    inputs: Doubles
    at: int
    output_types: bool
    one_side: bool
    electrons: bool = False
    _pairs: list[Network] = field(init=False)
    _centers: list[Network] = field(init=False)

    def __post_init__(self) -> None:
        n, (e, f) = len(self.inputs), (self.embedding.layers, self.fitting.layers)
        # resnet: a first layer that is as wide as the inputs that are left must not get a skip connection.
        pairs = [replace(e[0], w=e[0].w[:1].copy(), b=_bias(e[0].w), resnet=False) for _ in self.pairs]
        centers = [replace(f[0], b=_bias(f[0].w), resnet=False) if self.output_types else f[0] for _ in range(n)]
        self._pairs = [Network([first, *e[1:]]) for first in pairs]
        self._centers = [Network([first, *f[1:]]) for first in centers]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Types (neighbor, center) of each embedding network; center is 0 where `one_side`."""
        n = len(self.inputs)
        return [(t, c) for t in range(n) for c in range(1 if self.one_side else n)]

    @property
    def groups(self) -> dict[str, list[Network]]:
        """The shared networks by the prefix of their arrays' names."""
        return {EMBEDDING: [self.embedding], TYPES: [self.types], FITTING: [self.fitting]}

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """Trainable arrays by name."""
        for prefix, networks in self.groups.items():
            for i, network in enumerate(networks):
                for name, value in network.parameters():
                    yield f"{prefix}.{i}.{name}", value

    @property
    def tebd(self) -> Doubles:
        """Embeddings T (ntypes, w) of the types, by the present weights."""
        result: Doubles = self.types.astype(np.float64)(self.inputs)
        return result

    def tebd_of_pairs(self, tebd: Doubles) -> Doubles:
        """Constant inputs (n_networks, w or 2w) of the embedding networks: T_t, and T_c unless `one_side`."""
        neighbors, centers = np.array(self.pairs).T
        return tebd[neighbors] if self.one_side else np.concatenate((tebd[neighbors], tebd[centers]), axis=1)

    def attach(self, descriptor: SeE2A, fitting: EnergyFitting) -> None:
        """Make the networks that follow from the shared ones those of a descriptor and a fitting."""
        self.spread()
        descriptor.networks, fitting.networks = self._pairs, self._centers

    def spread(self) -> None:
        """Update first layers from the present shared weights.

        Their arrays keep their memory, except those that are views of shared arrays.
        """
        tebd, first = self.tebd, self.embedding.layers[0]
        w = np.asarray(first.w[1:], np.float64)
        for network, constants in zip(self._pairs, self.tebd_of_pairs(tebd), strict=True):
            own = network.layers[0]
            own.w[...], own.idt = first.w[:1], first.idt
            _shift(own.b, first.b, constants @ w)
        if not self.output_types:
            return
        first, behind = self.fitting.layers[0], self.at + tebd.shape[1]
        w, last = np.asarray(first.w[self.at : behind], np.float64), behind == len(first.w)
        rest = first.w[: self.at] if last else np.delete(first.w, np.s_[self.at : behind], axis=0)
        for network, constants in zip(self._centers, tebd, strict=True):
            own = network.layers[0]
            if last or own.w.shape != rest.shape:
                own.w = rest
            else:
                own.w[...] = rest
            own.idt = first.idt
            _shift(own.b, first.b, constants @ w)


def shared_networks(node: Tree, descriptor: SeE2A) -> SharedNetworks | None:
    """The shared networks of a file's `model`; None if it is not a `concat` model with a linear type embedding."""
    d = node["descriptor"]
    types = network_of(d["type_embedding"]["embedding"], "type embedding")
    concat = d["type"] != "se_atten_v2" and d.get("tebd_input_mode", "concat") == "concat"
    linear = len(types.layers) == 1 and types.layers[0].activation.lower() in ("linear", "none")
    if not (concat and linear and types.layers[0].idt is None):
        return None
    return SharedNetworks(
        embedding=network_of(d["embeddings"]["networks"][0], "embedding"),
        types=types,
        fitting=network_of(node["fitting"]["nets"]["networks"][0], "fitting"),
        inputs=type_inputs(d["type_embedding"]),
        at=descriptor.n_features,
        output_types=bool(d.get("concat_output_tebd", True)),
        one_side=descriptor.type_one_side,
        electrons=bool(d["type_embedding"].get("use_econf_tebd")),
    )


def _bias(w: Any) -> Any:
    return np.zeros(w.shape[1], w.dtype)


def _shift(own: Any, b: Any, by: Doubles) -> None:
    """Set a bias to b + `by`, or to `by` where b is None."""
    own[...] = by if b is None else by + b
