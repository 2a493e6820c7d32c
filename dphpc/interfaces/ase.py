"""ASE calculator: `atoms.calc = DPHPC("model.dp")`, for ASE and all packages that build on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import ArrayLike

from dphpc.core.errors import DataError, InputError
from dphpc.interfaces.elements import ElementPotential, Model
from dphpc.potential.contract import Outputs
from dphpc.potential.deep_pot import as_numbers

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of ASE's six stress components xx, yy, zz, yz, xz, xy."""


class DPHPC(Calculator):
    """A Deep Potential as an ASE calculator.

    It gives `energy` = `free_energy` (eV), `forces` (natoms, 3) eV/Å, `energies` (natoms,) eV and, if the cell has
    three vectors and is periodic in some direction, `stress` (6,) eV/Å³ in ASE's order xx, yy, zz, yz, xz, xy and with
    its sign (positive under tension, dE/dε / V).  Any of the three directions may be open.

    The neighbor list is kept from one call to the next until an atom has moved half the skin, or the cell, its
    periodicity or the species have changed.  Copies and pickles contain the models, and have lists of their own.

    Parameters
    ----------
    model
        A model file, or a model in memory; or several with the same types: the first one gives the
        results, and all of them `deviation`.
    type_map
        Element of each of the model's types, needed if the model's names are no element symbols; or the type of each
        element, like `type_dict` of DeePMD-kit's calculator: `{"O": 0, "H": 1}`.
    precision
        `float64` (default), `mixed`, `tf32` or `float32`.
    skin
        Distance in Å by which the neighbor list reaches beyond the cutoff; 0 builds it at every call.
    fparam, aparam
        Frame parameters (numb_fparam,), and atomic parameters (natoms, numb_aparam) or (numb_aparam,), if the model
        needs them; `set(fparam=…)` changes them.
    threads
        Number of threads of this process's kernels from now on; unchanged if not given.  It also sets NumPy's BLAS to
        one thread in the whole process, as its idle threads would keep cores from the kernels.
    device
        `cpu` (default), `cuda`, or `auto`: a GPU if there is one.

    Attributes
    ----------
    deviation
        With several models: their deviation for the last structure, by the columns of `dphpc model-devi`
        (`max_devi_f`, … in eV/Å, `devi_e` in eV per atom); otherwise empty.
    surroundings
        The kept neighbor list; `surroundings.builds` counts how often it was built.

    Raises
    ------
    InputError, ModelFileError
        A file is no model, models differ in their types, or an argument is wrong; in a calculation: the model does
        not know an element, parameters are missing, or the model does not take them.
    DataError
        Parameters are not numbers; in a calculation: positions are not finite or too far away, or the cell has no
        vector in a periodic direction, or is too thin there.

    Examples
    --------
    >>> atoms.calc = DPHPC("model.dp")
    >>> atoms.get_potential_energy()
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress", "energies"]  # noqa: RUF012 (ASE's convention)
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
        self.potential = ElementPotential(model, type_map, precision, threads, device)
        self.surroundings = self.potential.surroundings(skin)
        self.deviation: dict[str, float] = {}
        super().__init__(**_own({"fparam": fparam, "aparam": aparam}))

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change `fparam` or `aparam`.

        Raises
        ------
        InputError
            Another name is given: all other arguments are fixed when the calculator is made.
        """
        for name in kwargs:
            if name not in self.default_parameters:
                remedy = "make a new calculator with it"
                raise InputError(f"'{name}' cannot be set", expected="fparam or aparam", remedy=remedy)
        return super().set(**_own(kwargs))

    def reset(self) -> None:
        """Discard the results; the neighbor list is kept, as it depends on the structure alone."""
        super().reset()
        self.deviation = {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute all properties of a structure, whichever are asked for."""
        super().calculate(atoms, properties, system_changes)
        self.results, self.deviation = {}, {}
        atoms = self.atoms
        if atoms is None or not len(atoms):
            raise DataError("the structure has no atoms")
        types = self.potential.types_of(atoms.numbers)
        around = self.surroundings.at(atoms.positions, atoms.cell.array, atoms.pbc, types)
        out, self.deviation = self.potential.evaluate(around, self.parameters["fparam"], self.parameters["aparam"])
        self.results = _results(out, atoms, around.state.box.volume)


def _own(parameters: Mapping[str, ArrayLike | None]) -> dict[str, Any]:
    """Copies of the parameters: ASE compares them with later ones, so they must not change with the caller's array."""
    return {name: None if value is None else as_numbers(name, value).copy() for name, value in parameters.items()}


def _results(out: Outputs, atoms: Atoms, volume: float) -> dict[str, Any]:
    results = {"energy": out.energy, "free_energy": out.energy, "forces": out.forces, "energies": out.atom_energy}
    if atoms.pbc.any() and atoms.cell.array.any(axis=1).all():  # for a missing vector there is a box, but no volume
        stress = -0.5 * (out.virial + out.virial.T) / volume  # the virial is −dE/dε
        results["stress"] = stress[VOIGT]
    return results
