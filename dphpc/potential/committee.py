"""Model deviation: how far the models of a committee disagree, in DeePMD-kit's columns.

Zhang et al., Phys. Rev. Mater. 3, 023804 (2019), Eq. (4): the deviation of a force is the norm over x, y, z of
its standard deviation over the models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.device import find_device
from dphpc.core.errors import InputError, writing
from dphpc.core.tables import OF_EACH_ATOM
from dphpc.model.dp_model import DPModel
from dphpc.potential.contract import Outputs
from dphpc.potential.deep_pot import DeepPot

COLUMNS = ("max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f", "devi_e")


@dataclass(frozen=True)
class Measure:
    """What `dphpc model-devi` measures.

    Attributes
    ----------
    atomic
        Append the deviation of each atom's force to the columns.
    relative, relative_v
        eV/Å and eV per atom: deviations of forces and virials are divided by their magnitude plus this level,
        as in Zeng et al., J. Chem. Phys. 159, 054801 (2023), Eqs. (71) and (72).
    real_error
        Take deviations from the data's labels instead of the models' mean.

    Raises
    ------
    InputError
        A level is negative or not finite.
    """

    atomic: bool = False
    relative: float | None = None
    relative_v: float | None = None
    real_error: bool = False

    def __post_init__(self) -> None:
        for name, level in (("--relative", self.relative), ("--relative_v", self.relative_v)):
            if level is not None and not 0 <= level < math.inf:
                raise InputError(f"a level of {level:g}", where=name, expected="a number, 0 or above")


PLAIN = Measure()


@dataclass(frozen=True)
class Reference:
    """Labels of a frame: eV, (natoms, 3) eV/Å, (9,) eV.  If the virial is NaN, so are its columns."""

    energy: float
    forces: Doubles
    virial: Doubles


def force_deviation(forces: Doubles, reference: Doubles | None = None, level: float | None = None) -> Doubles:
    """Deviation (natoms,), eV/Å, of forces (n_models, natoms, 3); `reference` (natoms, 3), `level` as in `Measure`."""
    f = np.linalg.norm(_spread(forces, reference), axis=-1)
    return f if level is None else f / (_magnitude(forces, reference) + level)


def virial_deviation(
    virials: Doubles, n_atoms: int, reference: Doubles | None = None, level: float | None = None
) -> tuple[float, float, float]:
    """Largest, smallest and average (norm/3) deviation, eV per atom, of virials (n_models, 9); `reference` (9,)."""
    virials, reference = virials / n_atoms, None if reference is None else reference / n_atoms
    v = _spread(virials, reference)
    if level is not None:
        v /= _magnitude(virials, reference) + level
    return float(v.max()), float(v.min()), float(np.linalg.norm(v)) / 3.0


def _spread(values: Doubles, reference: Doubles | float | None) -> Doubles:
    """Root mean square deviation over the models (first axis) from their mean, or from a reference."""
    return np.std(values, axis=0) if reference is None else np.sqrt(np.mean((values - reference) ** 2, axis=0))


def _magnitude(values: Doubles, reference: Doubles | None) -> Doubles:
    """Norm of the models' mean, or of the reference."""
    return np.linalg.norm(np.mean(values, axis=0) if reference is None else reference, axis=-1)


def deviation_of(outputs: Sequence[Outputs], measure: Measure = PLAIN, reference: Reference | None = None) -> Doubles:
    """The `COLUMNS` of one frame from the outputs of each model (forces without ghosts).

    Parameters
    ----------
    reference
        Labels from which deviations are taken instead of the models' mean.

    Returns
    -------
    (7,), or (7 + natoms,) if `measure.atomic`; virials and energy per atom.
    """
    energies, forces = np.array([out.energy for out in outputs]), np.array([out.forces for out in outputs])
    virials, n = np.array([out.virial.ravel() for out in outputs]), forces.shape[1]
    energy, of_atoms, virial = (
        (None, None, None) if reference is None else (reference.energy / n, reference.forces, reference.virial)
    )
    e = _spread(energies / n, energy)
    f = force_deviation(forces, of_atoms, measure.relative)
    v = virial_deviation(virials, n, virial, measure.relative_v)
    return np.array([*v, f.max(), f.min(), f.mean(), e, *(f if measure.atomic else ())])


def load_committee(
    models: Sequence[str | Path | DPModel], precision: str = "float64", device: str = "cpu"
) -> list[DeepPot]:
    """Models with one type map, so that they can share a neighbor list; their cutoffs may differ.

    Raises
    ------
    InputError
        The type maps differ, a file is given twice, or a GPU is asked for and there is none.
    """
    files = [Path(m).resolve() for m in models if isinstance(m, (str, Path))]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise InputError(f"'{twice.name}' is given twice", expected="models of different trainings")
    gpu = find_device(device)
    potentials = [DeepPot(model, precision, gpu) for model in models]
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


def append_model_devi(path: Path, system: str, steps: NDArray[np.int64], rows: Doubles) -> None:
    """Append the frames of one system, rows (n, 7) or (n, 7 + natoms), to a `model_devi.out` file."""
    columns = COLUMNS if rows.shape[1] == len(COLUMNS) else (*COLUMNS, OF_EACH_ATOM)
    with writing(path), path.open("a") as file:
        file.write(f"# {system}\n" + table_header(columns))
        for step, row in zip(steps, rows, strict=True):
            file.write(table_line(step, row))


def table_header(columns: Sequence[str]) -> str:
    """The line of a `model_devi.out` file that names its columns."""
    return f"#{'step':>11}" + "".join(f"{name:>19}" for name in columns) + "\n"


def table_line(step: int, row: Doubles) -> str:
    """A line of a `model_devi.out` file."""
    return f"{step:12d}" + "".join(f"{x:19.6e}" for x in row) + "\n"
