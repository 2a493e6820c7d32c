"""Forces and systems of OpenMM against DeepPot, finite differences, force fields without their region, and files."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import make_supercell
from ase.io import read

from dphpc.core.errors import DphpcError, InputError
from dphpc.core.units import EV_IN_KJ_PER_MOL
from dphpc.model.compress import compress
from dphpc.potential.committee import COLUMNS
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'dphpc[openmm]' (90 MB)")

from openmm import app, unit  # noqa: E402

from dphpc.interfaces.openmm import DPHPC  # noqa: E402

MODEL = compress(random_model(1))[0]
"""With its table, so that a potential is made in no time."""
ROOT = Path(__file__).parents[2]
SILICON = ROOT / "examples" / "silicon"
KJ_NM = EV_IN_KJ_PER_MOL * 10.0
"""eV/Å in kJ/mol/nm."""


def topology_of(symbols: Sequence[str], cell: np.ndarray | None = None) -> app.Topology:
    """One residue for each atom; cell (3, 3) Å."""
    topology = app.Topology()
    chain = topology.addChain()
    for symbol in symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), topology.addResidue("X", chain))
    if cell is not None:
        topology.setPeriodicBoxVectors(cell * 0.1 * unit.nanometer)
    return topology


def water(periodic: bool = True, seed: int = 0) -> tuple[app.Topology, np.ndarray, np.ndarray | None, np.ndarray]:
    """Oxygen and hydrogen in a skewed cell, or in none: topology, positions in Å, cell, types."""
    x, cell, types = random_structure(seed=seed)
    box = cell if periodic else None
    return topology_of([("O", "H")[t] for t in types], box), x, box, types


def context_of(system: Any, positions: np.ndarray, platform: str = "Reference", timestep: float = 0.001) -> Any:
    """A context at positions in Å."""
    context = openmm.Context(system, openmm.VerletIntegrator(timestep), openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions * 0.1)
    return context


def evaluated(context: Any) -> tuple[float, np.ndarray]:
    """Energy in eV and forces in eV/Å."""
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return energy / EV_IN_KJ_PER_MOL, state.getForces(asNumpy=True)._value / KJ_NM


def silicon(n: int = 2) -> tuple[app.Topology, np.ndarray]:
    """The bundled silicon, n³ cells: topology, positions in Å."""
    atoms = make_supercell(read(SILICON / "si8.poscar"), np.eye(3) * n)  # type: ignore[arg-type]
    return topology_of(atoms.get_chemical_symbols(), atoms.cell.array), atoms.positions


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
def test_the_numbers_are_those_of_deep_pot(platform: str, periodic: bool) -> None:
    topology, x, cell, types = water(periodic)
    context = context_of(DPHPC(MODEL).createSystem(topology), x, platform)
    for shift in (0.0, 0.3, 5.0):  # Å: by the kept list, and by a new one
        x = x + np.random.default_rng(1).normal(size=x.shape) * 0.01
        x[3] += shift
        context.setPositions(x * 0.1)
        energy, force, _ = DeepPot(MODEL).eval(x, cell, types)
        found = evaluated(context)
        assert found[0] == pytest.approx(energy[0, 0], abs=1e-10)
        np.testing.assert_allclose(found[1], force[0], atol=1e-10)


def test_forces_are_the_energy_gradient() -> None:
    topology, x, _, _ = water()
    context, h = context_of(DPHPC(MODEL).createSystem(topology), x), 1e-5
    force = evaluated(context)[1]
    for atom, axis in ((0, 0), (7, 1), (16, 2)):
        energies = []
        for step in (h, -h):
            moved = x.copy()
            moved[atom, axis] += step
            context.setPositions(moved * 0.1)
            energies.append(evaluated(context)[0])
        assert -(energies[0] - energies[1]) / (2 * h) == pytest.approx(force[atom, axis], abs=1e-7)


def test_dynamics_conserve_energy() -> None:
    """64 atoms of silicon near 300 K for 0.4 ps: what the total energy varies by goes as the step squared."""
    topology, x = silicon()
    system = DPHPC(SILICON / "silicon.dp").createSystem(topology)
    spread = []
    for timestep, n_steps in ((0.001, 20), (0.0005, 40)):
        context = context_of(system, x, "CPU", timestep)
        context.setVelocitiesToTemperature(600.0, 1)
        totals = []
        for _ in range(20):
            context.getIntegrator().step(n_steps)
            state = context.getState(energy=True)
            total = state.getPotentialEnergy() + state.getKineticEnergy()
            totals.append(total.value_in_unit(unit.kilojoule_per_mole) / EV_IN_KJ_PER_MOL)
        spread.append(np.ptp(totals))
    # Measured: 3.5 meV and a 4.001th of it.
    assert spread[0] < 0.01
    assert spread[1] == pytest.approx(spread[0] / 4, rel=0.1)


def test_a_barostat_changes_the_box_and_the_energy_follows() -> None:
    topology, x = silicon()
    system = DPHPC(SILICON / "silicon.dp").createSystem(topology)
    system.addForce(openmm.MonteCarloBarostat(50000.0, 300.0, 2))
    context = context_of(system, x, "CPU")
    context.setVelocitiesToTemperature(300.0, 1)
    context.getIntegrator().step(100)
    state = context.getState(positions=True, energy=True)
    cell = state.getPeriodicBoxVectors(asNumpy=True)._value * 10
    assert abs(cell[0, 0] - 10.86) > 0.05, "the pressure has moved the box"
    positions = state.getPositions(asNumpy=True)._value * 10
    expected = DeepPot(SILICON / "silicon.dp").eval(positions, cell, np.zeros(len(x), int))[0][0, 0]
    assert evaluated(context)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("remove", [True, False])
def test_the_center_of_mass_is_kept_at_rest(remove: bool) -> None:
    topology, x, _, _ = water()
    system = DPHPC(MODEL).createSystem(topology, removeCMMotion=remove)
    context = context_of(system, x)
    context.setVelocities(np.full((len(x), 3), 0.1))
    context.getIntegrator().step(2)
    velocities = context.getState(velocities=True).getVelocities(asNumpy=True)._value
    masses = np.array([system.getParticleMass(k)._value for k in range(len(x))])
    assert np.average(velocities[:, 0], weights=masses) == pytest.approx(0.0 if remove else 0.1, abs=1e-6)


def test_a_region_is_as_if_alone() -> None:
    topology, x, cell, types = water()
    region = [5, 2, 17, 11, 3, 20]  # in an order of the caller's
    system = DPHPC(MODEL).createSystem(topology)
    system.removeForce(0)
    system.addForce(DPHPC(MODEL).createForce(topology, atoms=region))
    energy, force = evaluated(context_of(system, x))
    expected = DeepPot(MODEL).eval(x[region], cell, types[region])
    assert energy == pytest.approx(expected[0][0, 0], abs=1e-10)
    np.testing.assert_allclose(force[region], expected[1][0], atol=1e-10)
    assert not np.delete(force, region, axis=0).any()


def test_systems_are_copied_and_written() -> None:
    topology, x, _, _ = water()
    fitting = {"numb_aparam": 1, "aparam_avg": np.zeros(1), "aparam_inv_std": np.ones(1)}
    potential = DPHPC(random_model(5, fitting=fitting), aparam=[0.3], type_map=["O", "H"], skin=0.5)
    region = list(range(12))
    system = potential.createSystem(topology)
    system.removeForce(0)
    system.addForce(potential.createForce(topology, region))
    expected = evaluated(context_of(system, x))
    text = openmm.XmlSerializer.serialize(system)
    again = openmm.XmlSerializer.deserialize(text)
    for other in (
        again,
        openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(again)),
        copy.deepcopy(system),
    ):
        assert other.usesPeriodicBoundaryConditions()
        found = evaluated(context_of(other, x))
        assert found[0] == pytest.approx(expected[0], abs=1e-12)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


def test_a_program_with_a_copy_ends_in_silence() -> None:
    """OpenMM never frees the function of a copied force, which must not hold kernels to the end."""
    program = """
import copy
import openmm
from tests.interfaces.test_openmm import DPHPC, SILICON, context_of, evaluated, silicon
topology, x = silicon(1)
system = copy.deepcopy(DPHPC(SILICON / "silicon.dp").createSystem(topology))
evaluated(context_of(system, x))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def text_with_an_unknown_precision(topology: app.Topology) -> str:
    """A system's file that this program cannot follow, as that of a machine with a GPU would be elsewhere."""
    potential = DPHPC(MODEL)
    potential._options["precision"] = "half"
    return openmm.XmlSerializer.serialize(potential.createSystem(topology))


def test_what_a_file_asks_for_in_vain_is_said() -> None:
    topology, x, _, _ = water()
    system = openmm.XmlSerializer.deserialize(text_with_an_unknown_precision(topology))
    with pytest.raises(openmm.OpenMMException, match="precision 'half'"):
        evaluated(context_of(system, x))


def test_frame_parameters_are_those_of_the_context() -> None:
    fitting = {"numb_fparam": 2, "fparam_avg": np.zeros(2), "fparam_inv_std": np.ones(2)}
    model = random_model(5, fitting=fitting)
    topology, x, cell, types = water()
    with pytest.raises(InputError, match="2 'fparam' and none"):
        DPHPC(model).createSystem(topology)
    context = context_of(DPHPC(model, fparam=[0.1, 0.2]).createSystem(topology), x)
    for values in ([0.1, 0.2], [0.1, -0.4]):
        context.setParameter("fparam1", values[1])
        energy = DeepPot(model).eval(x, cell, types, fparam=values)[0][0, 0]
        assert evaluated(context)[0] == pytest.approx(energy, abs=1e-10)


def test_several_models_give_their_deviation() -> None:
    topology, x, cell, types = water()
    models = [MODEL, random_model(2), random_model(3, rcut=4.0)]
    potential = DPHPC(models)
    energy, force = evaluated(context_of(potential.createSystem(topology), x))
    outputs = [DeepPot(model).eval(x, cell, types) for model in models]
    assert energy == pytest.approx(outputs[0][0][0, 0], abs=1e-10)
    np.testing.assert_allclose(force, outputs[0][1][0], atol=1e-10)
    assert list(potential.deviation) == list(COLUMNS)
    spread = np.linalg.norm(np.std([out[1][0] for out in outputs], axis=0), axis=1)
    assert potential.deviation["max_devi_f"] == pytest.approx(spread.max(), rel=1e-10)


@pytest.mark.parametrize(
    ("symbols", "atoms", "message"),
    [
        (["O", "H", "Xe"], None, "(?s)element Xe.*atom 2.*O, H"),
        (["O", "Xe", "H"], [0, 2], None),
        (["O", "H", "Xe"], [2, 0], "(?s)element Xe.*atom 2"),
        (["O", "H"], [0, 2], "atoms 0 to 2 are chosen"),
        (["O", "H"], [-1], "atoms -1 to -1"),
        (["O", "H"], [1, 1], "twice"),
        (["O", "H"], [], "no atoms"),
        (["O", "H"], "OH", "atoms holds 'O'"),
        (["O", "H"], [True, False], "atoms holds True"),
        ([], None, "no atoms"),
    ],
)
def test_wrong_atoms(symbols: list[str], atoms: list[int] | None, message: str | None) -> None:
    potential, topology = DPHPC(MODEL), topology_of(symbols)
    if message is None:
        assert list(potential.createForce(topology, atoms).getParticles()) == atoms
    else:
        with pytest.raises(InputError, match=message):
            potential.createForce(topology, atoms)


def test_a_site_without_element_and_a_topology_of_another_system_are_refused() -> None:
    topology = topology_of(["O", "H"])
    topology.addAtom("M", None, list(topology.residues())[-1])
    with pytest.raises(InputError, match=r"(?s)'M' of residue X has no element.*atom 2"):
        DPHPC(MODEL).createForce(topology)
    system = DPHPC(MODEL).createSystem(topology_of(["O", "H"]))
    system.addParticle(1.0)
    with pytest.raises(openmm.OpenMMException, match="acts on 3 particles, its topology has 2 atoms"):
        evaluated(context_of(system, np.eye(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skin": -1.0}, "skin"),
        ({"type_map": ["O"]}, "names 1 elements"),
        ({"precision": "half"}, "precision"),
        ({"threads": 0}, "threads"),
        ({"model": []}, "no model"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DphpcError, match=message):
        DPHPC(**{"model": MODEL, **options})


# ML/MM


def everything(region: Sequence[int] | None = None) -> tuple[Any, app.Topology, np.ndarray]:
    """Two molecules of six atoms under every kind of force that a region is taken out of, or some of their atoms.

    Terms join each molecule's atoms, and some the two; a particle's parameters depend on its number.
    """
    kept = list(range(12)) if region is None else list(region)
    place = {atom: k for k, atom in enumerate(kept)}
    topology, system = app.Topology(), openmm.System()
    chain, residues = topology.addChain(), {}
    for atom in kept:
        residue = residues.get(atom // 6) or residues.setdefault(atom // 6, topology.addResidue("X", chain))
        topology.addAtom(f"X{atom}", app.Element.getBySymbol("OH"[atom % 2]), residue)
        system.addParticle(1.0)
    listed = list(topology.atoms())

    def joined(*first: int) -> list[tuple[list[int], float]]:
        """The same term of either molecule, and one that takes its last atom from the other one."""
        terms = [first, [k + 6 for k in first], [*first[:-1], first[-1] + 6]]
        return [([place[k] for k in t], 0.1 * (1 + sum(t))) for t in terms if all(k in place for k in t)]

    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    rb, cmap = openmm.RBTorsionForce(), openmm.CMAPTorsionForce()
    custom = (
        openmm.CustomBondForce("s*k*r^2"),
        openmm.CustomAngleForce("k*theta^2"),
        openmm.CustomTorsionForce("k*theta"),
    )
    compound = openmm.CustomCompoundBondForce(3, "k*distance(p1,p2)*angle(p1,p2,p3)")
    custom[0].addGlobalParameter("s", 1.5)
    custom[0].addPerBondParameter("k")
    custom[1].addPerAngleParameter("k")
    custom[2].addPerTorsionParameter("k")
    compound.addPerBondParameter("k")
    cmap.addMap(4, np.random.default_rng(3).normal(size=16))
    for k in range(5):
        for members, value in joined(k, k + 1):
            bond.addBond(*members, 0.1 * value, 50.0)
            custom[0].addBond(*members, [value])
        topology_bond = [place.get(k), place.get(k + 1)], [place.get(k + 6), place.get(k + 7)]
        for i, j in topology_bond:
            if i is not None and j is not None:
                topology.addBond(listed[i], listed[j])
    for members, value in joined(0, 1, 2) + joined(3, 4, 5):
        angle.addAngle(*members, value, 20.0)
        custom[1].addAngle(*members, [value])
        compound.addBond(members, [value])
    for members, value in joined(0, 1, 2, 3) + joined(2, 3, 4, 5):
        torsion.addTorsion(*members, 2, 0.3, value)
        custom[2].addTorsion(*members, [value])
        rb.addTorsion(*members, *(value * m for m in range(6)))
    for members, _ in joined(0, 1, 2, 3, 4, 5):
        cmap.addTorsion(0, *members[:4], *members[2:])
    charges, pairs = openmm.NonbondedForce(), openmm.CustomNonbondedForce("q1*q2*exp(-r)")
    charges.setNonbondedMethod(openmm.NonbondedForce.NoCutoff)
    charges.addGlobalParameter("lambda", 0.7)
    pairs.addPerParticleParameter("q")
    for atom in kept:
        charges.addParticle(0.1 * (atom % 5 - 2), 0.1, 0.5)
        pairs.addParticle([0.3 + 0.1 * atom])
    for k in range(4):
        for members, value in [*joined(k, k + 1)[:2], *joined(k, k + 2)[:2]]:
            index = charges.addException(*members, 0.02 * value, 0.1, 0.1)
            charges.addExceptionParameterOffset("lambda", index, 0.05 * value, 0.0, 0.01)
            pairs.addExclusion(*members)
    for force in (bond, angle, torsion, rb, cmap, *custom, compound, charges, pairs, openmm.CMMotionRemover()):
        system.addForce(force)
    return system, topology, np.array(kept)


@pytest.mark.parametrize("region", [range(6), range(6, 12)], ids=["first", "second"])
def test_a_mixed_system_lacks_what_the_force_field_says_of_the_region(region: range) -> None:
    x = random_structure(12, 6.0, seed=4)[0]
    system, topology, _ = everything()
    without, _, kept = everything(region)
    mixed = DPHPC(MODEL).createMixedSystem(topology, system, region)
    whole, alone = evaluated(context_of(system, x)), evaluated(context_of(without, x[kept]))
    types = np.array([k % 2 for k in region])
    energy, force, _ = DeepPot(MODEL).eval(x[kept], None, types)
    expected = whole[1].copy()
    expected[kept] += force[0] - alone[1]
    found = evaluated(context_of(mixed, x))
    assert abs(alone[0]) > 1e-3
    assert found[0] == pytest.approx(whole[0] - alone[0] + energy[0, 0], abs=1e-9)
    np.testing.assert_allclose(found[1], expected, atol=1e-9)
    assert evaluated(context_of(system, x))[0] == whole[0], "the given system is as it was"


def dipeptide(water: bool) -> tuple[app.Topology, np.ndarray]:
    """ACE-ALA-NME, and two molecules of water, with positions (natoms, 3) in Å that a force field can evaluate."""
    names = {"ACE": "H1 CH3 H2 H3 C O", "ALA": "N H CA HA CB HB1 HB2 HB3 C O", "NME": "N H C H1 H2 H3"}
    topology = app.Topology()
    chain = topology.addChain()
    for residue, atoms in [*names.items(), *([("HOH", "O H1 H2")] * 2 if water else [])]:
        added = topology.addResidue(residue, chain if residue != "HOH" else topology.addChain())
        for name in atoms.split():
            topology.addAtom(name, app.Element.getBySymbol(name[0]), added)
    topology.createStandardBonds()
    return topology, random_structure(28, 9.0, seed=2)[0][: topology.getNumAtoms()]


def test_a_mixed_system_of_a_force_field() -> None:
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    (topology, x), (alone, _) = dipeptide(True), dipeptide(False)
    system = field.createSystem(topology, constraints=app.HBonds)
    region = range(22)
    potential = DPHPC(random_model(4, n_types=4), type_map=["O", "H", "C", "N"])
    mixed = potential.createMixedSystem(topology, system, region)
    types = [["O", "H", "C", "N"].index(atom.element.symbol) for atom in alone.atoms()]
    field_alone = evaluated(context_of(field.createSystem(alone, constraints=app.HBonds), x[:22]))[0]
    energy = DeepPot(random_model(4, n_types=4)).eval(x[:22], None, types)[0][0, 0]
    expected = evaluated(context_of(system, x))[0] - field_alone + energy
    context = context_of(mixed, x)
    assert evaluated(context)[0] == pytest.approx(expected, rel=1e-9)
    # The region's constraints are gone, and it is one molecule all the same, for barostats.
    assert mixed.getNumConstraints() == 6
    assert [list(m) for m in context.getMolecules()] == [list(region), [22, 23, 24], [25, 26, 27]]
    assert not mixed.usesPeriodicBoundaryConditions()


def test_two_regions_of_two_models() -> None:
    x = random_structure(12, 6.0, seed=4)[0]
    system, topology, _ = everything()
    other = random_model(2)
    mixed = DPHPC(MODEL).createMixedSystem(topology, system, range(6))
    both = DPHPC(other).createMixedSystem(topology, mixed, range(6, 12))
    types = np.arange(6) % 2
    alone = evaluated(context_of(everything(range(6, 12))[0], x[6:]))[0]
    added = DeepPot(other).eval(x[6:], None, types)[0][0, 0]
    expected = evaluated(context_of(mixed, x))[0] - alone + added
    assert evaluated(context_of(both, x))[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "region", "message"),
    [
        (lambda s, t: None, range(5), "a bond of atoms 4, 5 crosses"),
        (lambda s, t: s.addConstraint(5, 6, 0.1), range(6), "a constraint of atoms 5, 6 crosses"),
        (lambda s, t: s.setVirtualSite(6, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5)), range(6), "a virtual site"),
        (lambda s, t: s.addForce(openmm.GBSAOBCForce()), range(6), "has a GBSAOBCForce"),
        (lambda s, t: s.addForce(DPHPC(MODEL).createForce(t)), range(6), "has a PythonForce"),
        (lambda s, t: s.addForce(DPHPC(MODEL).createForce(t, [5, 6])), range(6), "has a PythonForce"),
        (lambda s, t: s.addParticle(1.0), range(6), "13 particles, the topology 12 atoms"),
        (lambda s, t: None, [], "no atoms"),
    ],
)
def test_what_cannot_be_mixed(change: Any, region: Sequence[int], message: str) -> None:
    system, topology, _ = everything()
    change(system, topology)
    with pytest.raises(InputError, match=message):
        DPHPC(MODEL).createMixedSystem(topology, system, region)
