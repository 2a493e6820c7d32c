"""ASE calculator: `atoms.calc = DPHPC("model.dp")`, for all that ASE and the packages around it do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike, NDArray

from dphpc.core.errors import DataError, InputError
from dphpc.model.dp_model import DPModel
from dphpc.ops.threads import set_threads
from dphpc.potential.committee import COLUMNS, deviation_of, load_committee
from dphpc.potential.contract import Outputs
from dphpc.potential.surroundings import KeptSurroundings

Model = str | Path | DPModel

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of ASE's six stress components xx, yy, zz, yz, xz, xy."""

UNKNOWN = -1
"""Type of an element that the model does not know."""


class DPHPC(Calculator):
    """A Deep Potential as a calculator of ASE.

    Gives `energy` = `free_energy` (eV), `forces` (natoms, 3) eV/Å, `energies` (natoms,) eV and, where a cell with
    three vectors repeats in some direction, `stress` (6,) eV/Å³ in ASE's order xx, yy, zz, yz, xz, xy and sign
    (positive under tension, as dE/dε / V).  Any of the three directions may be open.

    The neighbor list is kept from one call to the next until an atom has moved half the skin, or the cell, its
    boundaries or the species have changed.

    Parameters
    ----------
    model
        A `.dp` or `.yaml` file, or a model in memory; or several with the same types: the first one gives the
        results, and all of them `deviation`.
    type_map
        Element of each of the model's types, where the names in the model are no element symbols; or the type of each
        element, as `type_dict` of DeePMD-kit's calculator: `{"O": 0, "H": 1}`.
    precision
        `float64` (default), `mixed`, `tf32` or `float32`.
    skin
        Å that the neighbor list reaches beyond the cutoff; 0 builds it at every call.
    fparam, aparam
        (numb_fparam,) and (natoms, numb_aparam) or (numb_aparam,), where the model wants them; `set(fparam=…)`
        changes them.
    threads
        Threads of this process's kernels from now on, as they are if not given.  NumPy's BLAS then has one, in the
        whole process, as threads of its own that wait for work would keep cores from the kernels.
    device
        `cpu` (default), `cuda`, or `auto`: a card where there is one.

    Attributes
    ----------
    deviation
        With several models: how far they disagree on the last structure, by the columns of `dphpc model-devi`
        (`max_devi_f`, … eV/Å, `devi_e` eV an atom); otherwise empty.
    surroundings
        The kept neighbor list; `surroundings.builds` counts how often it was built.

    Raises
    ------
    InputError, ModelFileError
        A file is no model, models differ in their types, or an argument is wrong; in a calculation: an element
        that the model does not know, or parameters that are missing.
    DataError
        In a calculation: positions that are not finite, or a cell without a vector in a direction that repeats.

    Examples
    --------
    >>> atoms.calc = DPHPC("model.dp")
    >>> atoms.get_potential_energy()
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress", "energies"]  # noqa: RUF012 (ASE's way)
    default_parameters: dict[str, Any] = {"fparam": None, "aparam": None}  # noqa: RUF012
    discard_results_on_any_change = True
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: Model | Sequence[Model],
        *,
        type_map: Sequence[str] | Mapping[str, int] | None = None,
        precision: str = "float64",
        skin: float = 1.0,
        fparam: ArrayLike | None = None,
        aparam: ArrayLike | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        models = [model] if isinstance(model, (str, Path, DPModel)) else list(model)
        if not models:
            raise InputError("no model is given", expected="a model file, or several")
        if threads is not None:
            set_threads(threads)
        self.models = load_committee(models, precision, device)
        self.elements = self.models[0].get_type_map() if type_map is None else _by_type(type_map)
        self._type_of = _type_of(self.elements, self.models[0].get_ntypes())
        self.surroundings = KeptSurroundings(max(dp.get_rcut() for dp in self.models), skin)
        self.deviation: dict[str, float] = {}
        super().__init__(**_own({"fparam": fparam, "aparam": aparam}))

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change `fparam` or `aparam`.

        Raises
        ------
        InputError
            Another name: what else there is is given when the calculator is made.
        """
        for name in kwargs:
            if name not in self.default_parameters:
                remedy = "make a new calculator with it"
                raise InputError(f"'{name}' cannot be set", expected="fparam or aparam", remedy=remedy)
        return super().set(**_own(kwargs))

    def reset(self) -> None:
        """Forget the results; the neighbor list is kept, as it depends on the structure alone."""
        super().reset()
        self.deviation = {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """All properties of a structure, whichever are asked for."""
        super().calculate(atoms, properties, system_changes)
        self.results, self.deviation = {}, {}
        atoms = self.atoms
        if atoms is None or not len(atoms):
            raise DataError("the structure has no atoms")
        around = self.surroundings.at(atoms.positions, atoms.cell.array, atoms.pbc, self._types(atoms))
        outputs = []
        for dp in self.models:
            columns = dp.parameter_columns(1, len(atoms), self.parameters["fparam"], self.parameters["aparam"])
            outputs.append(dp.evaluate(around, None if columns is None else columns[0]))
        if len(outputs) > 1:
            self.deviation = dict(zip(COLUMNS, deviation_of(outputs).tolist(), strict=True))
        self.results = _results(outputs[0], atoms, around.state.box.volume)

    def _types(self, atoms: Atoms) -> NDArray[np.int32]:
        types = self._type_of[atoms.numbers]
        if types.min() == UNKNOWN:
            name = chemical_symbols[atoms.numbers[int(types.argmin())]]
            raise InputError(
                f"the structure has element {name}, which the model does not know",
                where=f"atom {int(types.argmin())}", expected=f"elements of the model: {', '.join(self.elements)}",
                remedy="where the model has other names for its types, say type_map=[element of each type]",
            )  # fmt: skip
        return types


def _own(parameters: Mapping[str, ArrayLike | None]) -> dict[str, Any]:
    """Copies: ASE asks whether parameters have changed, which an array that the caller changes would hide."""
    return {name: None if value is None else np.array(value, np.float64) for name, value in parameters.items()}


def _by_type(type_map: Sequence[str] | Mapping[str, int]) -> list[str]:
    """The element of each type."""
    if not isinstance(type_map, Mapping):
        return list(type_map)
    elements = sorted(type_map, key=type_map.__getitem__)
    if [type_map[name] for name in elements] != list(range(len(elements))):
        raise InputError(
            f"type_map is {dict(type_map)}", expected=f"types 0 to {len(elements) - 1}, each of one element"
        )
    return elements


def _type_of(elements: Sequence[str], n_types: int) -> NDArray[np.int32]:
    """(n_elements,) the model's type of each atomic number, or `UNKNOWN`."""
    if len(elements) != n_types:
        raise InputError(f"type_map names {len(elements)} elements", expected=f"{n_types}, one for each of the model's")
    if len(set(elements)) != n_types:
        raise InputError(f"type_map {' '.join(elements)} names an element twice")
    type_of = np.full(len(chemical_symbols), UNKNOWN, np.int32)
    for number, name in enumerate(elements):
        if name in atomic_numbers:  # a name that is no element's can stand in the model as long as no atom needs it
            type_of[atomic_numbers[name]] = number
    return type_of


def _results(out: Outputs, atoms: Atoms, volume: float) -> dict[str, Any]:
    results = {"energy": out.energy, "free_energy": out.energy, "forces": out.forces, "energies": out.atom_energy}
    if atoms.pbc.any() and atoms.cell.array.any(axis=1).all():  # a box stands in for a missing vector, not a volume
        stress = -0.5 * (out.virial + out.virial.T) / volume  # the virial is −dE/dε
        results["stress"] = stress[VOIGT]
    return results
