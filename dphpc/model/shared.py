"""The networks of a `dpa1` model, which all types share, and the networks of types and pairs that follow from them.

    T(X)                        embeddings of the types (ntypes, w); X are one-hot rows or electron configurations
    concat  N(s̃, T_t, T_c)      embedding network; for a pair (t, c) its first layer has W[:1] and b + (T_t, T_c)·W[1:]
    strip   N(s̃)·(1 + M·w)      embedding network; a pair (t, c) has the gains M(T_t, T_c) (`gated.py`)
    F(D, T_c, parameters)       fitting network; for a center type c its first layer lacks the rows of T_c and has
                                b + T_c·W[rows]

The other layers are the same objects.  The shared arrays are trained and kept in files; `spread` updates the arrays
that follow from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.model.descriptor import SeE2A
from dphpc.model.gated import Gate, GatedNetwork
from dphpc.model.networks import Layer, Network
from dphpc.model.tree_parts import unsupported

EMBEDDING, STRIP, TYPES, FITTING = (
    "descriptor.networks", "descriptor.networks_strip", "descriptor.type_embedding", "fitting.networks",
)  # fmt: skip
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
        Whether N, or M, takes T_t only.
    electrons
        Whether X are electron configurations.
    strip
        The network M; None for `concat`.
    smooth
        Whether w is the switch, so that the networks of pairs have gates; else it is 1.
    of_pairs, of_centers
        The networks that follow, of a descriptor and of a fitting.

    Raises
    ------
    ModelFileError
        A first layer would pass on its inputs, type embedding included, through a skip connection.
    """

    embedding: Network
    types: Network
    fitting: Network
    inputs: Doubles
    at: int
    output_types: bool
    one_side: bool
    electrons: bool = False
    strip: Network | None = None
    smooth: bool = False
    of_pairs: list[Network] = field(init=False)
    of_centers: list[Network] = field(init=False)
    _gated: list[GatedNetwork] = field(init=False)

    def __post_init__(self) -> None:
        n, (e, f) = len(self.inputs), (self.embedding.layers, self.fitting.layers)
        if (self.strip is None and e[0].skip) or (self.output_types and f[0].skip):
            raise unsupported("a type embedding in a first layer with a skip connection (that is as wide, or twice)")
        # resnet: a first layer that is as wide as the inputs that are left must not get a skip connection.
        centers = [replace(f[0], b=_bias(f[0].w), resnet=False) if self.output_types else f[0] for _ in range(n)]
        self.of_centers = [Network([first, *f[1:]]) for first in centers]
        if self.strip is None:
            pairs = [replace(e[0], b=_bias(e[0].w), resnet=False) for _ in self.pairs]
            self.of_pairs, self._gated = [Network([first, *e[1:]]) for first in pairs], []
        else:
            self._gated = [GatedNetwork(e, _bias(e[-1].w)) for _ in self.pairs]
            self.of_pairs = [*self._gated]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Types (neighbor, center) of each network; center is 0 where one serves all centers."""
        n = len(self.inputs)
        # A gate is another function of s̃ for each center.
        return [(t, c) for t in range(n) for c in range(1 if self.one_side and not self.smooth else n)]

    @property
    def form(self) -> str:
        """`tebd_input_mode`."""
        return "concat" if self.strip is None else "strip"

    @property
    def kind(self) -> str:
        """What a descriptor is beside its name, for people to read."""
        return f"{self.form}, {'one' if self.one_side else 'two'}-sided"

    @property
    def trained(self) -> bool:
        """Whether the types' embedding is one linear layer, as in every model that training makes."""
        first = self.types.layers[0]
        return len(self.types.layers) == 1 and first.activation.lower() in ("linear", "none") and first.idt is None

    @property
    def groups(self) -> dict[str, list[Network]]:
        """The shared networks by the prefix of their arrays' names."""
        strip = {} if self.strip is None else {STRIP: [self.strip]}
        return {EMBEDDING: [self.embedding], **strip, TYPES: [self.types], FITTING: [self.fitting]}

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
        """Constant inputs (n_networks, w or 2w) of N or M for each pair: T_t, and T_c unless `one_side`."""
        neighbors, centers = np.array(self.pairs).T
        return tebd[neighbors] if self.one_side else np.concatenate((tebd[neighbors], tebd[centers]), axis=1)

    def attach(self, d: SeE2A) -> None:
        """Make the networks that follow those of a descriptor, whose statistics the gates take."""
        if self.smooth:
            d.type_one_side = False
            for network, (_, c) in zip(self._gated, self.pairs, strict=True):
                davg, dstd = float(d.davg[c]), float(d.dstd[c, 0])
                network.gate = Gate(d.rcut, d.rcut_smth, d.env_protection, davg, dstd)
        d.networks = self.of_pairs
        self.spread()

    def spread(self) -> None:
        """Update what follows from the present shared weights.

        Arrays keep their memory, except those that are views of shared arrays.
        """
        tebd = self.tebd
        inputs = self.tebd_of_pairs(tebd)
        if self.strip is None:
            _fold([net.layers[0] for net in self.of_pairs], self.embedding.layers[0], inputs, 1)
        else:
            for network, gains in zip(self._gated, self.strip.astype(np.float64)(inputs), strict=True):
                network.gains[...] = gains
        if self.output_types:
            _fold([net.layers[0] for net in self.of_centers], self.fitting.layers[0], tebd, self.at)


def _fold(layers: list[Layer], shared: Layer, inputs: Doubles, at: int) -> None:
    """Make each layer the shared one with its inputs from `at` on given, by the rows of `inputs`."""
    behind = at + inputs.shape[1]
    w, last = np.asarray(shared.w[at:behind], np.float64), behind == len(shared.w)
    rest = shared.w[:at] if last else np.delete(shared.w, np.s_[at:behind], axis=0)
    for own, constants in zip(layers, inputs, strict=True):
        if last or own.w.shape != rest.shape:
            own.w = rest
        else:
            own.w[...] = rest
        own.idt, by = shared.idt, constants @ w
        assert own.b is not None
        own.b[...] = by if shared.b is None else by + shared.b


def _bias(w: Any) -> Any:
    return np.zeros(w.shape[1], w.dtype)
