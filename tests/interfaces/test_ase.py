"""The ASE calculator against DeepPot, finite differences, and structures that mean the same."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.phonons import Phonons
from ase.stress import voigt_6_to_full_3x3_stress

from dphpc.core.errors import DataError, DphpcError, InputError
from dphpc.interfaces.ase import DPHPC
from dphpc.model.compress import compress
from dphpc.model.model_file import write_model
from dphpc.potential.committee import COLUMNS
from dphpc.potential.deep import DeepPotential
from dphpc.potential.deep_pot import DeepPot
from dphpc.train.evaluate import model_devi
from tests.models import random_model, random_structure

MODEL = compress(random_model(1))[0]
"""With its table, so that making a calculator takes no time."""
SILICON = Path(__file__).parents[2] / "examples" / "silicon"


def structure(n: int = 24, length: float = 7.0, seed: int = 0) -> Atoms:
    """Oxygen and hydrogen in a skewed cell, smaller than the cutoff's sphere."""
    x, cell, types = random_structure(n, length, seed)
    return Atoms([("O", "H")[t] for t in types], x, cell=cell, pbc=True)


def fresh(atoms: Atoms, **options: object) -> DPHPC:
    """A new calculator, asked for this structure."""
    calculator = DPHPC(MODEL, **options)  # type: ignore[arg-type]
    calculator.calculate(atoms)
    return calculator


@pytest.mark.parametrize("length", [7.0, 3.2])  # 3.2 Å: five images of each atom along a line
def test_the_numbers_are_those_of_deep_pot(length: float) -> None:
    atoms = structure(24 if length > 5 else 3, length)
    atoms.calc = DPHPC(MODEL)
    types = [("O", "H").index(s) for s in atoms.get_chemical_symbols()]
    energy, force, virial, atom_energy, _ = DeepPot(MODEL).eval(atoms.positions, atoms.cell, types, atomic=True)
    # Measured: 2e-15 of each quantity's size.
    assert atoms.get_potential_energy() == pytest.approx(energy[0, 0], rel=1e-13)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), force[0], atol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energies(), atom_energy[0, :, 0], atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), -virial.reshape(3, 3) / atoms.get_volume(), atol=1e-13)
    assert atoms.calc.deviation == {}


def test_stress_is_the_derivative_by_strain() -> None:
    atoms = structure()
    atoms.calc = DPHPC(MODEL)
    stress, volume, h = atoms.get_stress(voigt=False), atoms.get_volume(), 1e-5
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = h if a == b else 0.5 * h
        energies = []
        for deformation in (np.eye(3) + strain, np.eye(3) - strain):
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ deformation, scale_atoms=True)
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        # Measured: 2e-11 of a stress of order 0.01 eV/Å³.
        assert (energies[0] - energies[1]) / (2 * h * volume) == pytest.approx(stress[a, b], abs=1e-9)
    assert abs(stress).max() > 1e-3


def test_forces_are_the_energy_gradient_of_a_slab() -> None:
    atoms = structure()
    atoms.pbc = (True, False, True)
    atoms.calc = DPHPC(MODEL)
    force, h = atoms.get_forces(), 1e-5
    for atom, axis in ((0, 0), (7, 1), (16, 2)):
        energies = []
        for step in (h, -2 * h):
            atoms.positions[atom, axis] += step
            energies.append(atoms.get_potential_energy())
        atoms.positions[atom, axis] += h
        assert -(energies[0] - energies[1]) / (2 * h) == pytest.approx(force[atom, axis], abs=1e-7)


@pytest.mark.parametrize("open_axes", [(2,), (0,), (1, 2), (0, 1, 2)], ids=["slab c", "slab a", "wire", "cluster"])
@pytest.mark.parametrize("vector", ["kept", "missing", "short"])
def test_an_open_direction_equals_much_vacuum(open_axes: tuple[int, ...], vector: str) -> None:
    vacuum, atoms = structure(), structure()
    # Far enough that no image along an open axis is seen: the skewed cell is 7 Å high and the cutoff 4.5 Å.
    for k in open_axes:
        vacuum.cell[k] *= 5.0
        atoms.pbc[k] = False
        if vector != "kept":
            atoms.cell[k] *= {"missing": 0.0, "short": 0.3}[vector]  # short: most atoms are outside the cell
    atoms.positions[3] += atoms.cell[0]  # a whole vector where it repeats
    vacuum.positions[3] += vacuum.cell[0] if 0 not in open_axes else atoms.cell[0]
    expected, found = fresh(vacuum), fresh(atoms)
    for name in ("energy", "forces", "energies"):
        np.testing.assert_allclose(found.results[name], expected.results[name], atol=1e-11, err_msg=name)
    assert ("stress" in found.results) == (vector != "missing" and len(open_axes) < 3)
    if "stress" in found.results:
        virial = found.results["stress"] * atoms.get_volume()
        np.testing.assert_allclose(virial, expected.results["stress"] * vacuum.get_volume(), atol=1e-11)
    other = structure()
    assert abs(fresh(other).results["energy"] - found.results["energy"]) > 1e-3, "the images matter"


def test_the_list_is_kept_and_gives_what_a_fresh_one_gives() -> None:
    atoms = structure()
    calculator = atoms.calc = DPHPC(MODEL, skin=0.5)
    rng = np.random.default_rng(1)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * units.kB * 3000.0)[:, None])
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    n_steps = 120
    for step in range(n_steps):
        dynamics.run(1)
        if step == 60:
            atoms.wrap()
        if step % 10 == 0:
            new = fresh(atoms, skin=0.0)
            for name in ("energy", "forces", "stress", "energies"):
                # Measured: 5e-15; order of summation alone differs.
                found = calculator.get_property(name, atoms)
                np.testing.assert_allclose(found, new.results[name], atol=1e-12, err_msg=f"{name}, step {step}")
    assert 3 <= calculator.surroundings.builds <= n_steps // 5


def test_the_list_is_built_anew_when_the_structure_changes() -> None:
    atoms = structure()
    calculator = atoms.calc = DPHPC(MODEL, skin=1.0)

    def builds() -> int:
        """Asks for the present structure, checks it, and counts."""
        new = fresh(atoms, skin=0.0)
        np.testing.assert_allclose(atoms.get_forces(), new.results["forces"], atol=1e-12)
        return calculator.surroundings.builds

    assert builds() == 1
    atoms.positions[0] += [0.49, 0, 0]
    assert builds() == 1
    atoms.positions[0] += [0.02, 0, 0]
    assert builds() == 2
    atoms.set_cell(atoms.cell * 1.001)
    assert builds() == 3
    atoms.pbc = (True, True, False)
    assert builds() == 4
    atoms.symbols[0] = "H"
    assert builds() == 5
    del atoms[5]
    assert builds() == 6
    atoms.set_initial_charges(np.ones(len(atoms)))
    assert builds() == 6


def test_several_models_share_one_list_and_give_their_deviation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = structure()
    models = [MODEL, random_model(2), random_model(3, rcut=4.0)]
    paths = [tmp_path / f"{k}.dp" for k in range(3)]
    for path, model in zip(paths, models, strict=True):
        write_model(model, path)
    folder = tmp_path / "data" / "set.000"
    folder.mkdir(parents=True)
    types = [("O", "H").index(s) for s in atoms.get_chemical_symbols()]
    np.savetxt(folder.parent / "type.raw", types, fmt="%d")
    np.save(folder / "coord.npy", atoms.positions.reshape(1, -1))
    np.save(folder / "box.npy", atoms.cell.array.reshape(1, 9))
    lists: list[int] = []
    evaluate = DeepPotential.evaluate

    def watched(self: DeepPotential, state: object, neighbors: object, *rest: object) -> None:
        lists.append(id(neighbors))
        evaluate(self, state, neighbors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DeepPotential, "evaluate", watched)
    calculator = atoms.calc = DPHPC(paths[::-1], skin=0.2)  # the nearest-sighted first, and a skin that hides nothing
    alone = DPHPC(paths[2])
    alone.calculate(atoms)
    lists.clear()
    np.testing.assert_allclose(atoms.get_forces(), alone.results["forces"], atol=1e-12)
    assert len(lists) == 3
    assert len(set(lists)) == 1
    assert calculator.surroundings.builds == 1
    lists.clear()
    (row,) = model_devi(paths, str(tmp_path / "data"), tmp_path / "devi.out")
    assert len(lists) == 3
    assert len(set(lists)) == 1
    assert list(calculator.deviation) == list(COLUMNS)
    np.testing.assert_allclose(list(calculator.deviation.values()), row, rtol=1e-10)
    # The list of the largest cutoff serves a model of a smaller one.
    forces = [DeepPot(p).eval(atoms.positions, atoms.cell, types)[1][0] for p in paths]
    assert calculator.deviation["max_devi_f"] == pytest.approx(
        np.linalg.norm(np.std(forces, axis=0), axis=1).max(), rel=1e-10
    )
    atoms.rattle(0.01)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    write(tmp_path / "out.extxyz", atoms)


def test_parameters_are_passed_and_results_forgotten_when_they_change() -> None:
    fitting = {"numb_fparam": 2, "fparam_avg": np.zeros(2), "fparam_inv_std": np.ones(2)}
    fitting |= {"numb_aparam": 1, "aparam_avg": np.zeros(1), "aparam_inv_std": np.ones(1)}
    model, atoms = random_model(5, fitting=fitting), structure()
    types = [("O", "H").index(s) for s in atoms.get_chemical_symbols()]
    fparam = np.array([0.1, 0.2])
    atoms.calc = DPHPC(model, fparam=fparam, aparam=[0.3])
    for values in ([0.1, 0.2], [0.4, -0.2]):
        fparam[...] = values  # the same array each time
        atoms.calc.set(fparam=fparam)
        energy = DeepPot(model).eval(atoms.positions, atoms.cell, types, fparam=fparam, aparam=[0.3])[0][0, 0]
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-13)
    assert atoms.calc.surroundings.builds == 1
    atoms.calc.set(aparam=None)
    with pytest.raises(InputError, match="1 'aparam' and none"):
        atoms.get_potential_energy()
    with pytest.raises(InputError, match="'skin' cannot be set"):
        atoms.calc.set(skin=2.0)


def test_precision_is_chosen() -> None:
    atoms = structure()
    exact, single = fresh(atoms).results["forces"], fresh(atoms, precision="mixed").results["forces"]
    assert 1e-9 < abs(exact - single).max() < 1e-4


def test_types_go_by_element() -> None:
    atoms = structure()
    swapped = atoms.copy()
    swapped.symbols[:] = [{"O": "C", "H": "Si"}[s] for s in atoms.get_chemical_symbols()]
    for type_map in (["C", "Si"], {"Si": 1, "C": 0}):  # the latter as DeePMD-kit's type_dict
        assert fresh(swapped, type_map=type_map).results["energy"] == fresh(atoms).results["energy"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda a: a.symbols.__setitem__(4, "Xe"), InputError, "(?s)element Xe.*atom 4.*O, H"),
        (lambda a: a.positions.__setitem__((5, 1), np.nan), DataError, "position of atom 5 is not finite"),
        (lambda a: a.cell.__setitem__(2, 0.0), DataError, "repeats along c, but its cell has no vector"),
        (lambda a: a.cell.__setitem__(2, a.cell[1]), DataError, "spans no volume"),
        (lambda a: a.__delitem__(slice(None)), DataError, "no atoms"),
        (lambda a: a.numbers.__setitem__(4, 500), InputError, "(?s)element of number 500.*atom 4"),
        (lambda a: a.numbers.__setitem__(4, -111), InputError, "(?s)element of number -111.*atom 4"),  # −111: oxygen
        (lambda a: a.positions.__setitem__((5, 1), 1e12), DataError, r"position of atom 5 is beyond 1e\+07 Å"),
        (lambda a: a.cell.__setitem__(2, a.cell[1] + [0, 0, 1e-2]), DataError, r"repeats at 0\.01 Å"),
    ],
)
def test_a_bad_structure_is_refused_and_a_good_one_taken_again(change: object, kind: type, message: str) -> None:
    atoms = structure()
    calculator = atoms.calc = DPHPC(MODEL)
    energy = atoms.get_potential_energy()
    bad = atoms.copy()
    change(bad)  # type: ignore[operator]
    with pytest.raises(kind, match=message):
        calculator.get_potential_energy(bad)
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-13)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "no model"),
        ([MODEL, random_model(1, n_types=1)], {}, "(?s)type map O.*model 2.*O H, as in model 1"),
        (MODEL, {"skin": -1.0}, "skin"),
        (MODEL, {"type_map": ["O"]}, "names 1 elements"),
        (MODEL, {"type_map": ["O", "O"]}, "twice"),
        (MODEL, {"type_map": {"O": 1, "H": 2}}, "types 0 to 1"),
        (MODEL, {"type_map": {"O": "0", "H": 1}}, "types 0 to 1"),
        (MODEL, {"type_map": "OH"}, "type_map is 'OH'"),
        (MODEL, {"type_map": [8, 1]}, r"type_map is \[8, 1\]"),
        (MODEL, {"fparam": "x"}, "'fparam' is no array"),
        (MODEL, {"precision": "half"}, "precision"),
        (MODEL, {"threads": 0}, "threads"),
    ],
)
def test_wrong_arguments(models: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(DphpcError, match=message):
        DPHPC(models, **options)  # type: ignore[arg-type]


def test_parameters_that_the_model_does_not_take_are_refused() -> None:
    with pytest.raises(InputError, match="takes no 'fparam' and some are given"):
        fresh(structure(), fparam=[0.1])
    with pytest.raises(InputError, match="takes no 'aparam' and some are given"):
        fresh(structure(), aparam=[0.1])


def pickled(thing: object) -> object:
    """What another process would make of it."""
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize("precision", ["float64", "mixed"])
def test_copies_and_pickles(copied: Callable[[object], object], precision: str) -> None:
    atoms = structure()
    calculator = atoms.calc = DPHPC([MODEL, random_model(2)], precision=precision)
    energy, deviation = atoms.get_potential_energy(), dict(calculator.deviation)
    again = copied(calculator)
    assert isinstance(again, DPHPC)
    assert again.results["energy"] == energy
    again.calculate(atoms)
    assert again.results["energy"] == energy
    assert again.deviation == deviation
    other = copied(atoms) if copied is not copy.copy else atoms.copy()
    assert isinstance(other, Atoms)
    other.calc = other.calc or again
    other.positions[0] += 0.3
    other.get_forces()
    assert atoms.calc is calculator
    assert atoms.get_potential_energy() == energy
    dp = copied(DeepPot(MODEL, precision))
    assert isinstance(dp, DeepPot)
    types = [("O", "H").index(s) for s in atoms.get_chemical_symbols()]
    assert dp.eval(atoms.positions, atoms.cell.array, types)[0][0, 0] == pytest.approx(energy, abs=1e-12)


def test_a_pool_of_new_processes_takes_a_calculator() -> None:
    atoms = structure()
    atoms.calc = DPHPC(MODEL)
    energy = atoms.get_potential_energy()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(Atoms.get_potential_energy, moved(atoms)).result(timeout=200)
    assert found == moved(atoms).get_potential_energy() != energy


def moved(atoms: Atoms) -> Atoms:
    """A copy with its calculator and an atom elsewhere."""
    atoms = copy.deepcopy(atoms)
    atoms.positions[0] += 0.2
    return atoms


def test_ase_relaxes_cells_and_finds_phonons(tmp_path: Path) -> None:
    atoms = read(SILICON / "si8.poscar")
    assert isinstance(atoms, Atoms)
    atoms.calc = DPHPC(SILICON / "silicon.dp")
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=60)
    assert abs(atoms.get_forces()).max() < 1e-3
    assert abs(voigt_6_to_full_3x3_stress(atoms.get_stress())).max() < 1e-3
    phonons = Phonons(atoms, atoms.calc, supercell=(1, 1, 1), delta=0.02, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=True)
    frequencies = phonons.band_structure([[0, 0, 0]])[0] * 1e3
    # Three translations at rest (rounding in the differences); silicon's optical modes lie near 64 meV.
    assert abs(np.sort(abs(frequencies))[:3]).max() < 1.0
    assert 50.0 < frequencies.max() < 75.0


def test_i_pi_and_its_like_are_served_through_a_socket(tmp_path: Path) -> None:
    """ASE plays i-PI: atoms move and the cell changes there, energies, forces and virials come from here."""
    atoms, served = structure(), structure()
    served.calc = DPHPC(MODEL)
    name = f"dphpc_{tmp_path.name}_{id(atoms)}"
    with SocketIOCalculator(unixsocket=name, timeout=300) as atoms.calc:
        driver = Thread(target=lambda: SocketClient(unixsocket=name).run(served, use_stress=True), daemon=True)
        driver.start()
        for factor in (1.0, 1.02):
            atoms.set_cell(atoms.cell * factor, scale_atoms=True)
            atoms.rattle(0.05, seed=1)
            expected = fresh(atoms).results
            assert atoms.get_potential_energy() == pytest.approx(expected["energy"], rel=1e-12)
            np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-11)
            np.testing.assert_allclose(atoms.get_stress(), expected["stress"], atol=1e-12)
    driver.join(timeout=300)
    assert not driver.is_alive()
