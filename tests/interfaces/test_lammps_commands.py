"""`pair_style dphpc` under LAMMPS' fixes and commands that change types, pairs, strength or model on the way."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dphpc.model.compress import compress
from dphpc.potential.committee import force_deviation
from tests.interfaces.lammps_runs import Frame, Lammps, compare, ours
from tests.interfaces.test_lammps_errors import messages_of
from tests.models import random_model, random_structure

MODELS = [compress(random_model(seed))[0] for seed in (1, 2, 3)]
MODEL = MODELS[0]
STYLE = "pair_style dphpc model\npair_coeff * * O H\n"


def periodic() -> Frame:
    return Frame(*random_structure(24, 7.0, 0))


def save_models(lammps: Lammps) -> str:
    """Three models; their names."""
    return " ".join(lammps.save(f"model_{k}", model).name for k, model in enumerate(MODELS))


# ------------------------------------------------------------------ another model


def test_a_second_pair_style_forgets_the_first_ones_types(lammps: Lammps) -> None:
    """The first one's types may be more than the second model has."""
    frame = periodic()
    lammps.save("model", MODEL)
    lammps.save("one_type", compress(random_model(1, 1, sel=(40,)))[0])
    start = lammps.start(frame).splitlines()
    style = STYLE.splitlines()
    inputs = [
        [*start, *style, "run 0", "pair_style dphpc one_type", "run 0"],
        [*start, *style, "run 0", "pair_style dphpc absent"],
        ["run 0"],
        ["pair_coeff * * O H"],
        [*style, "run 0"],
    ]
    other, absent, run, coeff, again = messages_of(lammps, inputs)
    assert "pair coeffs are not set" in other
    assert "cannot open the model file 'absent'" in absent
    assert "pair coeffs are not set" in run
    assert "has no model: say pair_style dphpc MODEL first" in coeff
    assert again == ""


def test_a_second_lammps_in_one_process(lammps: Lammps) -> None:
    """And it goes on when the first, which loaded the plugin, is closed."""
    frame = periodic()
    lammps.save("model", MODEL)
    expected = ours(MODEL, frame).energy
    commands = [*lammps.start(frame).splitlines()[1:], *STYLE.splitlines(), "run 0"]
    (lammps.folder / "two.py").write_text(f"""
second = lammps(cmdargs=["-screen", "none", "-log", "none"])
for one in (lmp, second):
    for command in {commands!r}:
        one.command(command)
lmp.close()
second.command("run 0")
assert abs(second.get_thermo("pe") - {expected!r}) < 1e-9
""")
    assert messages_of(lammps, [], after="exec(open('two.py').read())") == []


# ------------------------------------------------------------------ types and pairs that change


def test_atoms_that_are_excluded_from_all_are_not_there(lammps: Lammps) -> None:
    """As `fix gcmc` asks for the energy without an atom: not even an atom alone is left of it."""
    frame = periodic()
    lammps.save("model", MODEL)
    script = lammps.start(frame) + STYLE + "group g id 3 7:9\nneigh_modify exclude group g all\n"
    log = lammps.run(script + lammps.look("excluded"))
    assert "does not see these pairs" not in log
    left = np.isin(np.arange(24), [2, 6, 7, 8], invert=True)
    rest = ours(MODEL, Frame(frame.positions[left], frame.cell, frame.types[left]))
    found = lammps.result("excluded", frame)
    assert found.energy == pytest.approx(rest.energy, abs=1e-10)
    np.testing.assert_allclose(found.forces[left], rest.forces, atol=1e-10)
    np.testing.assert_allclose(found.atom_energy[~left], 0.0, atol=0.0)
    log = lammps.run(lammps.start(frame) + STYLE + "group g id 1:9\nneigh_modify exclude group g g\nrun 0\n")
    assert re.search(r"WARNING: neigh_modify exclude: pair_style dphpc does not see these pairs", log)


def test_types_that_change_between_lists(lammps: Lammps) -> None:
    x = random_structure(12, 6.0, 3)[0]
    before, after = (Frame(x, None, types) for types in (np.arange(12) % 2, (np.arange(12) + 1) % 2))
    lammps.save("model", MODEL)
    commands = [*lammps.start(before).splitlines(), *STYLE.splitlines(), "neigh_modify delay 100 check no", "run 0"]
    turn = "t = lmp.numpy.extract_atom('type'); t[:] = 3 - t; lmp.command('run 1 pre no'); "
    turn += f"assert abs(lmp.get_thermo('pe') - {ours(MODEL, after).energy!r}) < 1e-9"
    assert messages_of(lammps, [commands], after=turn) == [""]


def test_bonded_pairs_are_listed_for_coulomb(lammps: Lammps) -> None:
    """With long-range Coulomb LAMMPS lists bonded pairs whatever special_bonds says."""
    frame = Frame(random_structure(24, 7.0, 0)[0], np.diag([9.0, 9.5, 10.0]), np.arange(24) % 2)
    lammps.save("model", MODEL)
    data = frame.data(2).replace("2 atom types", "2 atom types\n1 bonds\n1 bond types").replace("# atomic", "# full")
    charge = {"1": 1.0, "2": -1.0}
    data = re.sub(
        r"^(\d+) (\d) (\S+ \S+ \S+)$", lambda m: f"{m[1]} 1 {m[2]} {charge[m[2]]} {m[3]}", data, flags=re.MULTILINE
    )
    (lammps.folder / "full").write_text(data + "\nBonds\n\n1 1 1 2\n")
    start = "clear\nunits metal\natom_style full\nread_data full extra/special/per/atom 4\natom_modify sort 0 0\n"
    start += f"plugin load {lammps.plugin}\nbond_style zero\nbond_coeff *\n"
    for special in ("lj/coul 0 0 0.5", "lj/coul 1 1 1"):
        script = start + f"special_bonds {special}\npair_style hybrid/overlay dphpc model coul/long 4\n"
        script += "pair_coeff * * dphpc O H\npair_coeff * * coul/long\nkspace_style ewald 1e-4\n"
        script += 'compute p all pair dphpc\nrun 0\nprint "$(c_p:%.17g)" file energy\n'
        lammps.run(script)
        found = float((lammps.folder / "energy").read_text())
        assert found == pytest.approx(ours(MODEL, frame).energy, abs=1e-9)
    wrong = lammps.try_run(start + STYLE + "run 0\n")
    assert "say special_bonds lj/coul 1 1 1" in wrong.stdout


# ------------------------------------------------------------------ strength


def test_scale_of_fix_adapt(lammps: Lammps) -> None:
    """Thermodynamic integration: energies, forces and virials by one factor."""
    frame = periodic()
    lammps.save("model", MODEL)
    adapt = "variable l equal 0.25\nfix a all adapt 1 pair dphpc scale {} v_l\n"
    scaled_run = lammps.start(frame) + STYLE + adapt.format("* *")
    lammps.run(scaled_run + lammps.look("scaled") + scaled_run + "run 0\nunfix a\n" + STYLE + lammps.look("whole"))
    scaled, whole = (lammps.result(name, frame) for name in ("scaled", "whole"))
    compare(whole, ours(MODEL, frame), 1e-11, "whole")
    for name in ("energy", "forces", "virial", "atom_energy", "atom_virial"):
        np.testing.assert_allclose(getattr(scaled, name), 0.25 * getattr(whole, name), rtol=1e-12, atol=1e-12)
    done = lammps.try_run(lammps.start(frame) + STYLE + adapt.format("1 1") + "run 0\n")
    assert done.returncode != 0
    assert "pair_style dphpc has one scale: scale * * VALUE" in done.stdout


# ------------------------------------------------------------------ several models


def deviations(frame: Frame, level: float | None = None) -> np.ndarray:
    """(natoms,) eV/Å."""
    return force_deviation(np.array([ours(model, frame).forces for model in MODELS]), None, level)


@pytest.mark.parametrize("ranks", [1, 3])
def test_relative_and_atomic_deviations(lammps: Lammps, mpirun: list[str], ranks: int) -> None:
    """DeePMD-kit's columns, of LAMMPS' frame: here the virial's are of each component by itself."""
    frame, words = periodic(), "out_freq 1 out_file devi relative 0.5 relative_v 0.7 atomic"
    style = f"pair_style dphpc {save_models(lammps)} {words}\npair_coeff * * O H\n"
    lammps.run(lammps.start(frame) + style + "run 0\n", [*mpirun, "-n", str(ranks)])
    header = (lammps.folder / "devi").read_text().splitlines()[0]
    assert header.split()[-1] == "atm_devi_f(N)"
    row = np.loadtxt(lammps.folder / "devi")
    of_atoms = deviations(frame, 0.5)
    np.testing.assert_allclose(row[7:], of_atoms, rtol=2e-6)
    np.testing.assert_allclose(row[4:7], [of_atoms.max(), of_atoms.min(), of_atoms.mean()], rtol=2e-6)
    turn = frame.rotation
    v = np.array([turn.T @ ours(model, frame).virial @ turn for model in MODELS]).reshape(3, 9) / 24
    relative = v.std(axis=0) / (np.abs(v.mean(axis=0)) + 0.7)
    expected = [relative.max(), relative.min(), np.linalg.norm(relative) / 3]
    np.testing.assert_allclose(row[1:4], expected, rtol=2e-6)


def test_deviations_are_in_the_units_of_the_run(lammps: Lammps) -> None:
    """As DeePMD-kit has them: of units real in kcal/mol."""
    frame, names = periodic(), save_models(lammps)
    rows = []
    for units in ("metal", "real"):
        head = lammps.start(frame).replace("units metal", f"units {units}")
        lammps.run(head + f"pair_style dphpc {names} out_file devi\npair_coeff * * O H\nrun 0\n")
        rows.append(np.loadtxt(lammps.folder / "devi")[1:])
    np.testing.assert_allclose(rows[1], 23.060549 * rows[0], rtol=2e-6)


def test_deviations_are_of_the_structure_that_a_step_ends_with(lammps: Lammps) -> None:
    """Not of those that a Monte Carlo move tries; a run that begins where one has ended repeats no line."""
    frame = periodic()
    style = f"pair_style dphpc {save_models(lammps)} out_freq 1 out_file devi\npair_coeff * * O H\n"
    swap = "fix s all atom/swap 1 5 4321 1e12 ke no types 1 2\n"
    script = lammps.start(frame) + style + swap + "run 1\nunfix s\nrun 0\n"
    script += "write_dump all custom end.dump id type modify sort id\nset group all type 1\nrun 0\n"
    lammps.run(script)
    rows = np.loadtxt(lammps.folder / "devi")
    assert rows[:, 0].tolist() == [0, 1, 1]
    text = (lammps.folder / "end.dump").read_text().partition("ITEM: ATOMS id type \n")[2]
    text = text or (lammps.folder / "end.dump").read_text().partition("ITEM: ATOMS id type\n")[2]
    types = np.array([line.split() for line in text.splitlines()], int)[:, 1] - 1
    assert (types != frame.types).any()
    for row, given in zip(rows, (frame.types, types, np.zeros(24, int)), strict=True):
        assert row[4] == pytest.approx(deviations(Frame(frame.positions, frame.cell, given)).max(), rel=2e-6)
