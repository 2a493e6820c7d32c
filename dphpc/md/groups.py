"""Groups of atoms: which atoms they are, how hot they are, and the heat that their thermostats gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import InputError
from dphpc.core.exact_sum import total
from dphpc.core.fixing import held_in
from dphpc.core.state import State
from dphpc.md.config import MdConfig
from dphpc.md.engine import Engine
from dphpc.md.integrators import Integrator
from dphpc.md.ledger import Ledger
from dphpc.md.observables import COLUMNS, temperature
from dphpc.md.selection import Choice, Selection
from dphpc.parallel.comm import Communicator, together


@dataclass(frozen=True)
class Groups:
    """The groups of a run by their numbers, 1 for the first.

    Attributes
    ----------
    names
        Their names in the run file.
    n_atoms, dof
        How many atoms each has, and how many degrees of freedom: 3 for an atom, less the directions in which it is
        fixed.  None is left out for the center of mass, which moves with the group's surroundings.
    """

    names: tuple[str, ...] = ()
    n_atoms: tuple[int, ...] = ()
    dof: tuple[int, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], state: State, comm: Communicator) -> Groups:
        """Count the atoms of all ranks' states; collective."""
        if not names:
            return cls()
        group, free = state.group[: state.n_local], 3 - held_in(state.fixed[: state.n_local]).sum(axis=1)
        counts = [np.bincount(group, weights, len(names) + 1) for weights in (None, free)]
        n_atoms, dof = comm.allreduce(np.array(counts, np.int64))[:, 1:].tolist()
        return cls(tuple(names), tuple(n_atoms), tuple(dof))

    def number(self, name: str) -> int:
        """The number of a group."""
        return 1 + self.names.index(name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of thermo's columns: those of all atoms, and those of `values`."""
        own = ((f"temperature_{name}_K", f"heat_{name}_eV") for name in self.names)
        return (*COLUMNS, *chain.from_iterable(own))

    @property
    def header(self) -> str:
        """The first line of thermo's file."""
        return ",".join(self.columns) + "\n"

    def values(self, engine: Engine, integrator: Integrator, ledger: Ledger) -> list[float]:
        """Temperature (K) of each group, and the heat (eV) that its thermostats gave so far, in turn; collective."""
        if not self.names:
            return []
        parts = [engine.moves.kinetic_energy(1 + k) for k in range(len(self.names))]
        kinetic = total(engine.comm.allreduce(np.stack(parts, axis=1))) * integrator.dynamic
        heats = total(ledger.closed(engine, integrator.baths).heats)
        pairs = zip(kinetic.tolist(), self.dof, heats.tolist(), strict=True)
        return [value for k, dof, heat in pairs for value in (temperature(k, dof), heat)]


class GroupChoice(Choice):
    """The run file's groups, applied to the atoms of one rank."""

    def __init__(self, groups: Mapping[str, Selection], type_map: Sequence[str]) -> None:
        super().__init__([(f"group '{name}'", selection) for name, selection in groups.items()], type_map)
        self._names = list(groups)
        self._shared = np.zeros((len(groups), len(groups)), np.int64)  # atoms of two groups

    def mark_(self, rows: NDArray, coordinates: NDArray[np.float64]) -> None:
        """Give a structure's rows the numbers of their groups; a `structures.Mark`."""
        rows["group"] = 0
        for place, atoms in self.find(rows, coordinates):
            before = rows["group"][atoms]
            others = before[(before != 0) & (before != place + 1)]
            self._shared[:, place] += np.bincount(others - 1, minlength=len(self._names))
            rows["group"][atoms] = place + 1

    def require_all(self, comm: Communicator) -> None:
        """See `Choice.require_all`; it also refuses groups that share atoms."""
        super().require_all(comm)
        shared = comm.allreduce(self._shared)
        with together(comm):
            for a, b in np.argwhere(shared):
                raise InputError(
                    f"groups '{self._names[a]}' and '{self._names[b]}' share {shared[a, b]:,} atoms",
                    where="run file", expected="groups without a common atom",
                    remedy="for a layer between two planes: between_A: {z: [10, 20]}",
                )  # fmt: skip


def group_lines(settings: MdConfig, n_atoms: int, groups: Groups) -> list[str]:
    """The header's line about groups, if there are any.

    Raises
    ------
    InputError
        A stage has a thermostat for a group that has all atoms, or none that moves.
    """
    sizes = dict(zip(groups.names, zip(groups.n_atoms, groups.dof, strict=True), strict=True))
    for n, stage in enumerate(settings.stages, 1):
        for name in stage.groups or ():
            size, dof = sizes[name]
            if not dof:
                raise InputError(
                    f"group '{name}' has a thermostat, and all its {size:,} atoms are fixed",
                    where=f"run file; stage {n}", expected="atoms that move", remedy="fix fewer, or choose others",
                )  # fmt: skip
            if size == n_atoms:
                raise InputError(
                    f"group '{name}' has all {n_atoms:,} atoms", where=f"run file; stage {n}",
                    expected="a part of them", remedy="for all atoms write thermostat and temperature_K without groups",
                )  # fmt: skip
    named = ", ".join(f"{name} {size:,}" for name, (size, _) in sizes.items())
    return [f"groups:    {named} of {n_atoms:,} atoms"] if named else []
