"""The fitting networks: from an atom's features to its energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dphpc.model.networks import Array, Network


@dataclass
class EnergyFitting:
    """One network per atom type, with its inputs' normalization and the energy bias.

    The input is (features, (fparam − avg)·inv_std, (aparam − avg)·inv_std); the atomic energy is
    net(input) + bias_atom_e[type].  Where `atom_ener` names a type's energy, the net's value for an atom
    without neighbors (zero features) is subtracted.

    Attributes
    ----------
    atom_ener
        Per type the energy (eV) of the atom alone, or None; empty when not used.
    bias_atom_e
        (ntypes,) eV.
    """

    networks: list[Network]
    bias_atom_e: NDArray[np.float64]
    numb_fparam: int = 0
    numb_aparam: int = 0
    fparam_avg: NDArray[np.float64] | None = None
    fparam_inv_std: NDArray[np.float64] | None = None
    aparam_avg: NDArray[np.float64] | None = None
    aparam_inv_std: NDArray[np.float64] | None = None
    default_fparam: list[float] | None = None
    atom_ener: list[float | None] = field(default_factory=list)
    resnet_dt: bool = True
    activation_function: str = "tanh"
    precision: str = "float64"
    rcond: float | None = None
    trainable: list[bool] | bool = True

    def parameters(self) -> Iterator[tuple[str, Array]]:
        """Trainable arrays by name."""
        for i, net in enumerate(self.networks):
            for name, value in net.parameters():
                yield f"fitting.networks.{i}.{name}", value

    def subtracts_vacuum(self, type_index: int) -> bool:
        """Whether `atom_ener` gives this type's energy without neighbors."""
        return type_index < len(self.atom_ener) and self.atom_ener[type_index] is not None

    def parameter_columns(
        self, fparam: NDArray[np.float64] | None, aparam: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        """Normalized (n, numb_fparam + numb_aparam) input columns of n atoms, or None if the model has none.

        `fparam` (n, numb_fparam) is the frame's parameters repeated for its atoms, `aparam` (n, numb_aparam).
        """
        columns = []
        if self.numb_fparam:
            assert fparam is not None and self.fparam_avg is not None and self.fparam_inv_std is not None
            columns.append((fparam - self.fparam_avg) * self.fparam_inv_std)
        if self.numb_aparam:
            assert aparam is not None and self.aparam_avg is not None and self.aparam_inv_std is not None
            columns.append((aparam - self.aparam_avg) * self.aparam_inv_std)
        return np.concatenate(columns, axis=1) if columns else None
