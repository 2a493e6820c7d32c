"""How far several models disagree: the committee's deviation, in DeePMD-kit's columns.

Zhang et al., Phys. Rev. Mater. 3, 023804 (2019), Eq. (4): the deviation of a force is the norm over x, y, z of
its standard deviation over the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dphpc.core.device import find_device
from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.potential.contract import Outputs
from dphpc.potential.deep_pot import DeepPot

COLUMNS = ("max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f", "devi_e")

Floats = NDArray[np.float64]


def deviation(energies: Floats, forces: Floats, virials: Floats) -> Floats:
    """The seven `COLUMNS` of one frame.

    Parameters
    ----------
    energies, forces, virials
        Of each model: (n_models,) eV, (n_models, natoms, 3) eV/Å, (n_models, 9) eV.

    Returns
    -------
    (7,): virials and energy per atom; max and min of the virial over components, avg its norm/3.
    """
    n = forces.shape[1]
    f = force_deviation(forces)
    return np.array([*virial_deviation(virials, n), f.max(), f.min(), f.mean(), np.std(energies / n)])


def force_deviation(forces: Floats) -> Floats:
    """(natoms,) eV/Å, of each model's forces (n_models, natoms, 3)."""
    return np.linalg.norm(np.std(forces, axis=0), axis=-1)


def virial_deviation(virials: Floats, n_atoms: int) -> tuple[float, float, float]:
    """Max, min and avg in eV per atom, of each model's virial (n_models, 9)."""
    v = np.std(virials / n_atoms, axis=0)
    return float(v.max()), float(v.min()), float(np.linalg.norm(v)) / 3.0


def deviation_of(outputs: Sequence[Outputs]) -> Floats:
    """The seven `COLUMNS` of one frame from what each model gave for it (forces of the atoms, no ghosts)."""
    energies = np.array([out.energy for out in outputs])
    return deviation(energies, np.array([o.forces for o in outputs]), np.array([o.virial.ravel() for o in outputs]))


def load_committee(
    models: Sequence[str | Path | DPModel], precision: str = "float64", device: str = "cpu"
) -> list[DeepPot]:
    """Models that can be evaluated on one list: same types, cutoffs as they are.

    Raises
    ------
    InputError
        Models with different type maps, or no card where one is asked for.
    """
    card = find_device(device)
    potentials = [DeepPot(model, precision, card) for model in models]
    names = [str(m) if isinstance(m, (str, Path)) else f"model {i + 1}" for i, m in enumerate(models)]
    for name, dp in zip(names, potentials, strict=True):
        require_types(dp.get_type_map(), name, potentials[0].get_type_map(), names[0])
    return potentials


def require_types(type_map: Sequence[str], name: str, first: Sequence[str], name_of_first: str) -> None:
    """Raise InputError unless a model has the types of the committee's first."""
    if list(type_map) != list(first):
        raise InputError(
            f"type map {' '.join(type_map)}", where=name, expected=f"{' '.join(first)}, as in {name_of_first}"
        )


def append_model_devi(path: Path, system: str, steps: NDArray[np.int64], rows: Floats) -> None:
    """Append the frames of one system, rows (n, 7), to a `model_devi.out` file."""
    with path.open("a") as file:
        file.write(f"# {system}\n" + table_header(COLUMNS))
        for step, row in zip(steps, rows, strict=True):
            file.write(table_line(step, row))


def table_header(columns: Sequence[str]) -> str:
    """The line of a `model_devi.out` file that names its columns."""
    return f"#{'step':>11}" + "".join(f"{name:>19}" for name in columns) + "\n"


def table_line(step: int, row: Floats) -> str:
    """A line of a `model_devi.out` file."""
    return f"{step:12d}" + "".join(f"{x:19.6e}" for x in row) + "\n"
