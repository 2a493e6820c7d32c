"""Accounts of the energy that a run's thermostats and barostats exchange with the atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dphpc.core.arrays import Doubles
from dphpc.core.exact_sum import no_sum
from dphpc.md.engine import Engine
from dphpc.md.integrators import Thermostat
from dphpc.md.observables import bath_energy


@dataclass
class Ledger:
    """Energies in eV, in the parts of `core.exact_sum`.

    Attributes
    ----------
    bath
        (3,) taken from the atoms, so that total energy + bath is conserved.
    heats
        (3, n) given to each group of atoms by its thermostats, from the first group on.
    """

    bath: Doubles
    heats: Doubles

    @classmethod
    def empty(cls, n_groups: int) -> Ledger:
        """That of a run's beginning."""
        return cls(no_sum(), no_sum(n_groups))

    def closed(self, engine: Engine, baths: Sequence[Thermostat]) -> Ledger:
        """With what these thermostats have exchanged so far; collective."""
        closed = Ledger(self.bath.copy(), self.heats.copy())
        for bath in baths:
            taken = bath_energy(engine, [bath])
            closed.bath += taken
            if bath.group:
                closed.heats[:, bath.group - 1] -= taken
        return closed

    def saved(self, engine: Engine, baths: Sequence[Thermostat]) -> dict[str, Any]:
        """The accounts that `restart.Checkpoint` keeps; collective."""
        account = self.closed(engine, baths)
        # Langevin keeps its account per rank: the sum is saved with those of the earlier stages.
        before = self.closed(engine, [bath for bath in baths if bath.bath_is_local])
        kept = {"bath": before.bath, "account": account.bath, "heats": before.heats, "heat_account": account.heats}
        return {name: parts.tolist() for name, parts in kept.items()}
