"""A Deep Potential model: descriptor, fitting nets, biases, exclusions, and its radial table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.model.descriptor import SeE2A
from dphpc.model.fitting import EnergyFitting
from dphpc.model.radial_table import RadialTable
from dphpc.model.shared import SharedNetworks


@dataclass
class DPModel:
    """Everything a model file holds.

    Attributes
    ----------
    out_bias
        (ntypes,) eV, added to each atom's energy beside the fitting's own bias.
    pair_exclude_types
        Pairs of types that do not see each other at all (their slots count as missing).
    atom_exclude_types
        Types whose atoms get no energy.
    table
        The compressed embedding; None while only the networks are known.
    origin
        The file's own `model` where it holds another kind that equals this one; to be written as it is, but for biases
        and `shared`.
    shared
        The networks that those of descriptor and fitting follow from, where types share them.
    script
        The training input's `model` section, kept in the file (`model_def_script`).
    """

    type_map: list[str]
    descriptor: SeE2A
    fitting: EnergyFitting
    out_bias: NDArray[np.float64]
    pair_exclude_types: frozenset[tuple[int, int]] = frozenset()
    atom_exclude_types: frozenset[int] = frozenset()
    table: RadialTable | None = None
    min_nbor_dist: float | None = None
    origin: dict[str, Any] | None = None
    shared: SharedNetworks | None = None
    script: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def n_types(self) -> int:
        """Number of atom types."""
        return len(self.type_map)

    @property
    def energy_bias(self) -> NDArray[np.float64]:
        """(ntypes,) eV: everything added to an atom's energy behind the networks."""
        return self.fitting.bias_atom_e + self.out_bias

    def pair_flags(self) -> NDArray[np.uint8]:
        """The descriptor's flags with the model's excluded pairs taken out."""
        return self.descriptor.pair_flags(self.pair_exclude_types)

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """Trainable arrays by name."""
        if self.shared is not None:
            yield from self.shared.parameters()
            return
        yield from self.descriptor.parameters()
        yield from self.fitting.parameters()
