"""OpenMM: a Deep Potential as a force of a `System`, acting on all of its atoms or on a region (ML/MM)."""

from __future__ import annotations

import re
import threading
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import app, unit

from dphpc.core.errors import DataError, InputError
from dphpc.core.units import EV_IN_KJ_PER_MOL
from dphpc.interfaces.elements import ElementPotential, Model
from dphpc.model.model_file import model_of
from dphpc.model.model_tree import model_tree
from dphpc.potential.surroundings import KeptSurroundings

ANGSTROM_PER_NM = 10.0

FPARAM = "fparam"
"""Prefix of the names of the context's parameters that are frame parameters."""

BONDED = {
    "HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "RBTorsionForce", "CMAPTorsionForce",
    "CustomBondForce", "CustomAngleForce", "CustomTorsionForce", "CustomCompoundBondForce",
}  # fmt: skip
"""Forces that are sums of terms, each of which names its atoms."""

PAIRWISE = {"NonbondedForce", "CustomNonbondedForce"}
NO_INTERACTION = {
    "AndersenThermostat", "CMMotionRemover", "CustomExternalForce", "MonteCarloAnisotropicBarostat",
    "MonteCarloBarostat", "MonteCarloFlexibleBarostat", "MonteCarloMembraneBarostat",
}  # fmt: skip
"""Forces without interactions between atoms."""


class DPHPC:
    """A Deep Potential that creates forces and systems of OpenMM.

    The methods have the names that OpenMM and openmm-ml use.  Forces reach OpenMM in full float64 precision on its
    platforms Reference and CPU; whatever the platform, dphpc computes them, on its own threads or GPU.

    Parameters
    ----------
    model
        A model file, or a model in memory; or several with the same types: the first one gives the
        forces, and all of them `deviation`.
    type_map
        Element of each of the model's types, needed if the model's names are no element symbols; or the type of each
        element: `{"O": 0, "H": 1}`.
    precision
        `float64` (default), `mixed`, `tf32` or `float32`.
    skin
        Distance in Å by which the neighbor list reaches beyond the cutoff; 0 builds it at every step.
    fparam
        Frame parameters (numb_fparam,), if the model needs them: defaults of the context's parameters `fparam0`, …
    aparam
        Atomic parameters (natoms, numb_aparam) or (numb_aparam,), if the model needs them, for the force's atoms.
    threads
        Number of threads of this process's kernels from now on; unchanged if not given.  It also sets NumPy's BLAS to
        one thread.
    device
        `cpu` (default), `cuda`, or `auto`: a GPU if there is one.

    Attributes
    ----------
    deviation
        With several models: their deviation for the structure last evaluated, by the columns of `dphpc model-devi`
        (`max_devi_f`, … in eV/Å, `devi_e` in eV per atom); otherwise empty.

    Raises
    ------
    InputError, ModelFileError
        A file is no model, models differ in their types, or an argument is wrong.

    Examples
    --------
    >>> system = DPHPC("model.dp").createSystem(pdb.topology)
    """

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
        if not hasattr(getattr(openmm, "PythonForce", None), "setParticles"):
            version = openmm.Platform.getOpenMMVersion()
            raise InputError(f"OpenMM {version} has no PythonForce of chosen particles", expected="OpenMM 8.6 or newer")
        self.potential = ElementPotential(model, type_map, precision, threads, device)
        self.potential.surroundings(skin)  # refuses a negative skin now
        self.deviation: dict[str, float] = {}
        if fparam is None:
            fparam = self.potential.models[0].model.fitting.default_fparam
        wanted = fparam is not None and any(dp.get_dim_fparam() for dp in self.potential.models)
        self._fparam = np.array(fparam, np.float64).ravel() if wanted else None
        self._aparam = None if aparam is None else np.array(aparam, np.float64)
        self._options = {"precision": precision, "device": device, "skin": skin}

    def createForce(self, topology: app.Topology, atoms: Iterable[int] | None = None) -> openmm.PythonForce:
        """The force to add to a System whose particles are a topology's atoms.

        It is periodic if the topology has box vectors.  It can be copied and serialized, and then contains the models.

        Parameters
        ----------
        atoms
            Indices of the atoms that it acts on, as if there were no others; by default all.

        Raises
        ------
        InputError
            An atom has no element, or one that the model does not know; an index is wrong; parameters are missing.
        """
        listed = list(topology.atoms())
        chosen = _checked(range(len(listed)) if atoms is None else atoms, len(listed))
        models = self.potential.models
        arguments = {
            **self._options, "trees": [model_tree(dp.model) for dp in models], "elements": self.potential.elements,
            "types": self.potential.types_of(_numbers(listed, chosen), chosen), "aparam": self._aparam,
            "n_fparam": 0 if self._fparam is None else len(self._fparam),
        }  # fmt: skip
        for dp in models:
            dp.parameter_columns(1, len(chosen), self._fparam, self._aparam)
        fparam = [] if self._fparam is None else self._fparam.tolist()
        parameters = {f"{FPARAM}{k}": value for k, value in enumerate(fparam)}
        computation = _Computation(arguments, self.potential, self.deviation)
        force = openmm.PythonForce(computation, parameters, [] if atoms is None else chosen)
        force.setUsesPeriodicBoundaryConditions(topology.getPeriodicBoxVectors() is not None)
        force.setName("dphpc")
        return force

    def createSystem(self, topology: app.Topology, removeCMMotion: bool = True) -> openmm.System:
        """A System of a topology's atoms, with their elements' masses, in which no other force acts.

        Parameters
        ----------
        removeCMMotion
            Whether to add OpenMM's CMMotionRemover, as openmm-ml and force fields do.

        Raises
        ------
        InputError
            As in `createForce`.
        """
        force, system = self.createForce(topology), openmm.System()
        for atom in topology.atoms():
            system.addParticle(atom.element.mass)
        if topology.getPeriodicBoxVectors() is not None:
            system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
        system.addForce(force)
        if removeCMMotion:
            system.addForce(openmm.CMMotionRemover())
        return system

    def createMixedSystem(self, topology: app.Topology, system: openmm.System, atoms: Iterable[int]) -> openmm.System:
        """A copy of a force field's System in which the potential acts inside a region, mechanically embedded.

        Constraints, bonded terms and pair interactions between atoms of the region are removed.  Interactions of the
        region with the rest remain those of the force field.

        Parameters
        ----------
        system
            The force field's System, whose particles are the topology's atoms.
        atoms
            Indices of the region's atoms, which must be whole molecules.

        Raises
        ------
        InputError
            As in `createForce`; or a bond or virtual site crosses the region's boundary, or the System has a force
            whose interactions inside the region cannot be removed.
        """
        atoms = _checked(atoms, topology.getNumAtoms())
        force = self.createForce(topology, atoms)
        if topology.getNumAtoms() != system.getNumParticles():
            raise InputError(
                f"the system has {system.getNumParticles()} particles, the topology {topology.getNumAtoms()} atoms"
            )
        inside = set(atoms)
        _require_whole(topology, system, inside)
        mixed, bonds = _without_terms(system, inside)
        for other in mixed.getForces():
            if isinstance(other, openmm.NonbondedForce):
                _silence(other, inside)
            elif isinstance(other, openmm.CustomNonbondedForce):
                _exclude(other, inside)
        # Bonds without a force keep the region's molecules together for a barostat, which moves whole molecules.
        molecules = openmm.HarmonicBondForce()
        molecules.setName("dphpc molecules")
        for i, j in sorted(bonds):
            molecules.addBond(i, j, 0.0, 0.0)
        mixed.addForce(molecules)
        force.setUsesPeriodicBoundaryConditions(mixed.usesPeriodicBoundaryConditions())
        mixed.addForce(force)
        return mixed


class _Computation:
    """The function that a PythonForce calls, with a neighbor list of its own.

    Its pickle contains the models and the arguments.  The potential is only built from them at the first call, as
    OpenMM ends the process if unpickling fails.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        potential: ElementPotential | None = None,
        deviation: dict[str, float] | None = None,
    ) -> None:
        self.arguments = arguments
        self.deviation = {} if deviation is None else deviation
        self.built = [] if potential is None else [(potential, potential.surroundings(arguments["skin"]))]
        # OpenMM never releases what it has unpickled: without this, kernels would still be in use when Python ends.
        weakref.finalize(self, self.built.clear)
        self.lock = threading.Lock()  # contexts may run in different threads

    def __getstate__(self) -> dict[str, Any]:
        return self.arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(arguments)  # type: ignore[misc]

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Energy in kJ/mol and forces (natoms, 3) in kJ/mol/nm."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer) * ANGSTROM_PER_NM
        types = self.arguments["types"]
        if len(positions) != len(types):
            raise DataError(
                f"the force acts on {len(positions)} particles, its topology has {len(types)} atoms",
                remedy="make it with the topology of the system that it is added to",
            )
        try:
            cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer) * ANGSTROM_PER_NM
        except openmm.OpenMMException:  # the force is not periodic, so the state has no box
            cell = np.zeros((3, 3))
        parameters = state.getParameters()
        fparam = [parameters[f"{FPARAM}{k}"] for k in range(self.arguments["n_fparam"])]
        with self.lock:
            potential, kept = self._parts()
            around = kept.at(positions, cell, cell.any(axis=1), types)
            out, deviation = potential.evaluate(around, fparam or None, self.arguments["aparam"])
            self.deviation.clear()
            self.deviation.update(deviation)
        return out.energy * EV_IN_KJ_PER_MOL, out.forces * (EV_IN_KJ_PER_MOL * ANGSTROM_PER_NM)

    def _parts(self) -> tuple[ElementPotential, KeptSurroundings]:
        if not self.built:
            a = self.arguments
            models = [model_of(tree) for tree in a["trees"]]
            potential = ElementPotential(models, a["elements"], a["precision"], device=a["device"])
            self.built.append((potential, potential.surroundings(a["skin"])))
        return self.built[0]


def _checked(atoms: Iterable[int], n_atoms: int) -> list[int]:
    listed = list(atoms)
    for k in listed:
        if not isinstance(k, int | np.integer) or isinstance(k, bool):
            raise InputError(f"atoms holds {k!r}", expected="indices of atoms, such as atom.index of a topology's atom")
    chosen = [int(k) for k in listed]
    if not chosen:
        raise InputError("no atoms are chosen", expected="indices of atoms, or None for all of them")
    if min(chosen) < 0 or max(chosen) >= n_atoms:
        raise InputError(f"atoms {min(chosen)} to {max(chosen)} are chosen", expected=f"some of 0 to {n_atoms - 1}")
    if len(set(chosen)) < len(chosen):
        raise InputError("an atom is chosen twice")
    return chosen


def _numbers(listed: Sequence[app.topology.Atom], chosen: Sequence[int]) -> NDArray[np.int64]:
    """(natoms,) atomic numbers of the chosen atoms.

    Raises
    ------
    InputError
        An atom has no element.
    """
    for atom in (listed[k] for k in chosen):
        if atom.element is None:
            raise InputError(
                f"'{atom.name}' of residue {atom.residue.name} has no element", where=f"atom {atom.index}",
                remedy="virtual sites and the like are left out with atoms=[…]",
            )  # fmt: skip
    return np.array([listed[k].element.atomic_number for k in chosen])


def _require_whole(topology: app.Topology, system: openmm.System, inside: set[int]) -> None:
    """Raise InputError if a bond, constraint or virtual site has atoms on both sides of a region's boundary."""
    tied = [("a bond", (bond[0].index, bond[1].index)) for bond in topology.bonds()]
    tied += [("a constraint", tuple(system.getConstraintParameters(k)[:2])) for k in range(system.getNumConstraints())]
    for k in filter(system.isVirtualSite, range(system.getNumParticles())):
        site = system.getVirtualSite(k)
        tied.append(("a virtual site", (k, *(site.getParticle(m) for m in range(site.getNumParticles())))))
    for what, members in tied:
        if 0 < len(inside.intersection(members)) < len(members):
            raise InputError(
                f"{what} of atoms {', '.join(map(str, members))} crosses the region's boundary",
                expected="a region of whole molecules, without virtual sites",
            )


def _without_terms(system: openmm.System, inside: set[int]) -> tuple[openmm.System, set[tuple[int, ...]]]:
    """A copy without constraints and bonded terms inside a region, and the pairs of atoms that they joined.

    Raises
    ------
    InputError
        The System has a force whose interactions inside the region cannot be removed.
    """
    for force in system.getForces():
        kind = type(force).__name__
        apart = kind == "PythonForce" and force.getParticles() and inside.isdisjoint(force.getParticles())
        if not apart and kind not in BONDED | PAIRWISE | NO_INTERACTION:
            raise InputError(
                f"the system has a {kind}, whose interactions inside a region cannot be taken out",
                remedy="remove that force first and add it to the mixed system, if it is right there",
            )
    root = ET.fromstring(openmm.XmlSerializer.serialize(system))
    forces = [force for force in root.iterfind("Forces/Force") if force.get("type") in BONDED]
    pairs: set[tuple[int, ...]] = set()
    for terms in [*root.iterfind("Constraints"), *(terms for force in forces for terms in force)]:
        left = []
        for term in terms:
            members = tuple(int(value) for name, value in term.items() if re.fullmatch(r"[pab]\d+", name))
            if not members or not inside.issuperset(members):
                left.append(term)
            elif len(members) == 2:
                pairs.add(members)
        terms[:] = left
    return openmm.XmlSerializer.deserialize(ET.tostring(root, encoding="unicode")), pairs


def _silence(force: openmm.NonbondedForce, inside: set[int]) -> None:
    """Remove the Coulomb and Lennard-Jones interactions of the pairs inside a region."""
    for i, j in combinations(sorted(inside), 2):
        force.addException(i, j, 0.0, 1.0, 0.0, True)
    for k in range(force.getNumExceptionParameterOffsets()):
        parameter, index, *_ = force.getExceptionParameterOffset(k)
        if inside.issuperset(force.getExceptionParameters(index)[:2]):
            force.setExceptionParameterOffset(k, parameter, index, 0.0, 0.0, 0.0)


def _exclude(force: openmm.CustomNonbondedForce, inside: set[int]) -> None:
    """Exclude the pairs inside a region from a custom pair interaction."""
    excluded = {frozenset(force.getExclusionParticles(k)) for k in range(force.getNumExclusions())}
    for pair in combinations(sorted(inside), 2):
        if frozenset(pair) not in excluded:
            force.addExclusion(*pair)
