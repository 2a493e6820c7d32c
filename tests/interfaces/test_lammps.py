"""`pair_style dphpc` in a real LAMMPS: DeePMD-kit's numbers, DeepPot's, and runs that conserve what they should."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dphpc import md
from dphpc.core.exact_sum import exact_sum
from dphpc.model.compress import compress
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.model.networks import Network
from dphpc.potential.committee import COLUMNS, deviation_of, table_header, virial_deviation
from dphpc.potential.contract import Outputs
from tests.interfaces.lammps_runs import BAR, Frame, Lammps, Result, compare, ours
from tests.models import random_model, random_structure

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = compress(random_model(1))[0]


def can_be_exported(model: DPModel) -> bool:
    """Without parameters of atoms, and with a table or nets that one can be made of."""
    return not model.fitting.numb_aparam and (model.table is not None or not model.descriptor.kinks)


@pytest.mark.parametrize(("golden", "n_cases"), [("golden.h5", 180), ("golden_dpa1.h5", 140)])
def test_deepmd_numbers(lammps: Lammps, golden: str, n_cases: int) -> None:
    script, cases = "", []
    with h5py.File(GOLDEN / golden) as file:
        for name, group in file.items():
            model = read_model(GOLDEN / "models" / f"{group.attrs.get('file', f'{name}.dp')}")
            if "float32" in name or name == "compressed_beyond" or not can_be_exported(model):
                continue
            lammps.save(name, model)
            for structure, case in group.items():
                cell = case["cells"][0].reshape(3, 3) if "cells" in case else None
                frame = Frame(case["coords"][0], cell, case["atom_types"][()].ravel().astype(int))
                fparam = "".join(f" {x:.17g}" for x in case["fparam"][0]) if "fparam" in case else ""
                script += lammps.start(frame, model.n_types)
                script += f"pair_style dphpc {name}{' fparam' * bool(fparam)}{fparam}\n"
                script += f"pair_coeff * * {' '.join(model.type_map)}\n" + lammps.look(f"{name}.{structure}")
                cases.append((f"{name}.{structure}", frame, deepmd_result(case)))
    assert len(cases) > n_cases
    lammps.run(script)
    for name, frame, expected in cases:
        compare(lammps.result(name, frame), expected, 1e-9, name)


def deepmd_result(case: h5py.Group) -> Result:
    """What DeePMD-kit gave for a case's first frame."""
    virials = case["atom_virial"][0].reshape(-1, 3, 3)
    return Result(
        float(case["energy"][0, 0]),
        case["force"][0],
        case["virial"][0].reshape(3, 3),
        case["atom_energy"][0].ravel(),
        virials,
        0.5 * (virials + virials.transpose(0, 2, 1)),
    )


def isolated() -> Frame:
    """Two clusters far apart in a long open box, one atom alone: ranks without atoms, atoms without neighbors."""
    x = random_structure(9, 6.0, 5)[0]
    x = np.concatenate((x, x[:3] + np.array([60.0, 0.0, 0.0]), [[30.0, 0.0, 0.0]]))
    return Frame(x, None, np.arange(len(x)) % 2)


STRUCTURES = {
    "skewed": Frame(*random_structure(24, 7.0, 0)),
    "thin": Frame(*random_structure(3, 3.2, 1)),
    "corner": Frame(random_structure(12, 6.0, 2)[0], np.diag([40.0, 41.0, 42.0]), np.arange(12) % 2),
    "isolated": isolated(),
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_structures_on_ranks(lammps: Lammps, mpirun: list[str], ranks: int) -> None:
    lammps.save("model", MODEL)
    script = ""
    for name, frame in STRUCTURES.items():
        script += lammps.start(frame) + "pair_style dphpc model\npair_coeff * * O H\n" + lammps.look(name)
    lammps.run(script, [*mpirun, "-n", str(ranks)])
    for name, frame in STRUCTURES.items():
        compare(lammps.result(name, frame), ours(MODEL, frame), 1e-11, name)


def test_mixed_precision_and_threads(lammps: Lammps) -> None:
    frame = STRUCTURES["skewed"]
    lammps.save("model", MODEL)
    script = ""
    for name, words in {"mixed": "precision mixed", "threads": "threads 3"}.items():
        script += lammps.start(frame) + f"pair_style dphpc model {words}\npair_coeff * * O H\n" + lammps.look(name)
    lammps.run(script)
    compare(lammps.result("mixed", frame), ours(MODEL, frame, precision="mixed"), 1e-6, "mixed")
    compare(lammps.result("threads", frame), ours(MODEL, frame), 1e-11, "threads")
    assert abs(lammps.result("mixed", frame).energy - ours(MODEL, frame).energy) > 1e-9


def test_units_real(lammps: Lammps) -> None:
    frame = STRUCTURES["skewed"]
    lammps.save("model", MODEL)
    kcal, atm = 23.060549, 68568.415  # LAMMPS' own factors
    head = lammps.start(frame).replace("units metal", "units real")
    lammps.run(head + "pair_style dphpc model\npair_coeff * * O H\n" + lammps.look("real"))
    found, expected = lammps.result("real", frame), ours(MODEL, frame)
    assert found.energy == pytest.approx(kcal * expected.energy, rel=1e-12)
    np.testing.assert_allclose(found.forces, kcal * expected.forces, rtol=1e-9, atol=1e-9)
    # `result` takes pressures in bar of metal: here they are in atmospheres.
    np.testing.assert_allclose(found.virial * BAR / atm, kcal * expected.virial, rtol=1e-7, atol=1e-7)


def test_another_potential_on_top(lammps: Lammps) -> None:
    """`hybrid/overlay`, once with a short repulsion for all, once with a type that the model does not know."""
    frame = STRUCTURES["skewed"]
    lammps.save("model", MODEL)
    zbl = "zbl 0.8 1.6", "pair_coeff * * zbl 8.0 8.0"
    script = lammps.start(frame) + f"pair_style {zbl[0]}\n{zbl[1].replace('zbl ', '')}\n" + lammps.look("zbl")
    script += lammps.start(frame) + f"pair_style hybrid/overlay dphpc model {zbl[0]}\npair_coeff * * dphpc O H\n"
    script += zbl[1] + "\n" + lammps.look("both")
    foreign = Frame(frame.positions, frame.cell, np.where(np.arange(24) % 5 == 0, 2, frame.types))
    lj = "lj/cut 6.0", "pair_coeff * * lj/cut 0.01 1.0"
    script += lammps.start(foreign, 3) + f"pair_style {lj[0]}\npair_coeff * * 0.01 1.0\n" + lammps.look("lj")
    script += lammps.start(foreign, 3) + f"pair_style hybrid/overlay {lj[0]} dphpc model\n{lj[1]}\n"
    script += "pair_coeff * * dphpc O H NULL\n" + lammps.look("null")
    lammps.run(script)
    alone = ours(MODEL, frame)
    for name in ("energy", "forces", "virial", "atom_energy", "atom_stress"):
        both, other = (getattr(lammps.result(run, frame), name) for run in ("both", "zbl"))
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(both - other, getattr(alone, name), atol=1e-9 * max(1.0, np.abs(other).max()))
    known = foreign.types < 2
    rest = ours(MODEL, Frame(foreign.positions[known], frame.cell, foreign.types[known]))
    both, other = (lammps.result(run, foreign) for run in ("null", "lj"))
    np.testing.assert_allclose((both.forces - other.forces)[known], rest.forces, atol=1e-9)
    np.testing.assert_allclose((both.forces - other.forces)[~known], 0.0, atol=1e-12)
    np.testing.assert_allclose((both.atom_energy - other.atom_energy)[known], rest.atom_energy, atol=1e-9)


def test_types_by_name(lammps: Lammps) -> None:
    """Types in another order, two of one species, and none named."""
    frame = STRUCTURES["skewed"]
    lammps.save("model", MODEL)
    script = ""
    turned = Frame(frame.positions, frame.cell, 1 - frame.types)
    split = Frame(frame.positions, frame.cell, np.where(np.arange(24) < 6, frame.types, frame.types + 2))
    cases = {"turned": (turned, 2, "H O"), "split": (split, 4, "O H O H"), "unnamed": (frame, 2, "")}
    for name, (given, n_types, names) in cases.items():
        script += lammps.start(given, n_types) + f"pair_style dphpc model\npair_coeff * * {names}\n" + lammps.look(name)
    lammps.run(script)
    for name, (given, _, _) in cases.items():
        compare(lammps.result(name, given), ours(MODEL, frame), 1e-11, name)


def test_frame_parameters(lammps: Lammps) -> None:
    """Given ones, the model's own, and the energy of an atom alone that depends on them."""
    frame = STRUCTURES["skewed"]
    settings = {
        "numb_fparam": 2, "fparam_avg": np.array([0.3, -0.2]), "fparam_inv_std": np.array([2.0, 1.5]),
        "default_fparam": [0.1, 0.2], "atom_ener": [-1.5, None],
    }  # fmt: skip
    model = compress(random_model(3, fitting=settings))[0]
    lammps.save("model", model)
    script = ""
    for name, words in {"default": "", "given": "fparam 0.7 -1.25"}.items():
        script += lammps.start(frame) + f"pair_style dphpc model {words}\npair_coeff * * O H\n" + lammps.look(name)
    lammps.run(script)
    for name, values in {"default": [0.1, 0.2], "given": [0.7, -1.25]}.items():
        expected = replace(model, fitting=replace(model.fitting, default_fparam=values))
        compare(lammps.result(name, frame), ours(expected, frame), 1e-11, name)


@pytest.mark.parametrize("ranks", [1, 2])
def test_several_models(lammps: Lammps, mpirun: list[str], ranks: int) -> None:
    frame, models = STRUCTURES["skewed"], [MODEL, *(compress(random_model(seed, rcut=4.2))[0] for seed in (2, 3))]
    for k, model in enumerate(models):
        lammps.save(f"model_{k}", model)
    script = lammps.start(frame) + "pair_style dphpc model_0 model_1 model_2 out_freq 2 out_file devi\n"
    script += "pair_coeff * * O H\ndump d all custom 2 moved id x y z\ndump_modify d sort id format float %.17g\n"
    script += "fix 1 all nve\nrun 4\n" + lammps.look("end")
    lammps.run(script, [*mpirun, "-n", str(ranks)])
    rows = np.loadtxt(lammps.folder / "devi")
    header = (lammps.folder / "devi").read_text().splitlines()[0]
    assert header == table_header(COLUMNS[:6]).rstrip("\n")
    assert rows[:, 0].tolist() == [0, 2, 4]
    blocks = (lammps.folder / "moved").read_text().split("ITEM: ATOMS id x y z\n")[1:]
    for row, block in zip(rows, blocks, strict=True):
        x = np.array([line.split() for line in block.splitlines()[:24]], float)[:, 1:] @ frame.rotation.T
        now = Frame(x, frame.cell, frame.types)
        each = [ours(model, now) for model in models]
        outputs = [Outputs(r.forces, exact_sum(np.array([r.energy])), exact_sum(r.virial[None])) for r in each]
        # The virial's columns are of LAMMPS' frame, but for the last.
        expected = deviation_of(outputs)
        np.testing.assert_allclose(row[[3, 4, 5, 6]], expected[[2, 3, 4, 5]], rtol=2e-6)
        v = frame.rotation.T @ np.array([o.virial for o in outputs]) @ frame.rotation
        np.testing.assert_allclose(row[[1, 2]], virial_deviation(v.reshape(3, 9), 24)[:2], rtol=2e-6)
    # The first model drives the run.
    compare(lammps.result("end", now), ours(MODEL, now), 1e-9, "end")


def moving() -> tuple[Frame, np.ndarray, DPModel]:
    """Atoms with velocities (n, 3) in Å/ps, and a model of weak forces, as nothing repels its atoms."""
    velocities = np.random.default_rng(8).normal(0.0, 1.0, (24, 3))
    nets = [net.layers for net in MODEL.fitting.networks]
    networks = [Network([*layers[:-1], replace(layers[-1], w=0.1 * layers[-1].w)]) for layers in nets]
    model = replace(MODEL, fitting=replace(MODEL.fitting, networks=networks))
    return STRUCTURES["skewed"], velocities - velocities.mean(axis=0), model


@pytest.mark.parametrize("ranks", [1, 3])
def test_nve_is_that_of_dphpc_md(lammps: Lammps, mpirun: list[str], ranks: int) -> None:
    """With a thin skin, so that the list is built anew many times."""
    frame, velocities, model = moving()
    path = lammps.save("model", model)
    script = (
        lammps.start(frame, velocities=velocities) + "neighbor 0.1 bin\npair_style dphpc model\npair_coeff * * O H\n"
    )
    script += "timestep 0.0005\nfix 1 all nve\nthermo 20\nthermo_style custom step pe ke press\n"
    script += "thermo_modify format float %.15g\nrun 400\n"
    log = lammps.run(script, [*mpirun, "-n", str(ranks)])
    assert int(re.findall(r"Neighbor list builds = (\d+)", log)[-1]) > 3
    table = log.partition("Press")[2].partition("\n")[2].partition("Loop time")[0]
    pe, ke = np.array([line.split() for line in table.splitlines()], float)[:, 1:3].T
    write_model(model, path.with_suffix(".dp"))
    given = {
        "structure": str(lammps.folder / "data.0"), "type_map": ["O", "H"], "model": str(path.with_suffix(".dp")),
        "timestep_fs": 0.5, "stages": [{"ensemble": "nve", "steps": 400}],
        "thermo": {"every": 20, "file": str(lammps.folder / "thermo.csv")},
    }  # fmt: skip
    thermo = md(given).thermo
    # Measured: 5e-8 eV; LAMMPS' constants have eight digits.
    np.testing.assert_allclose(pe, thermo["potential_eV"], atol=1e-6)
    np.testing.assert_allclose(ke, thermo["kinetic_eV"], atol=1e-6)
    drift, its = np.ptp(pe + ke), np.ptp(thermo["total_eV"])
    assert np.ptp(pe) > 0.02  # it moves
    assert drift == pytest.approx(its, rel=1e-3)
    assert its < 0.01 * np.ptp(pe)


def test_restart_and_npt(lammps: Lammps) -> None:
    """A run that is taken up again ends where the whole one does; constant pressure runs."""
    frame, velocities, model = moving()
    lammps.save("model", model)
    head = lammps.start(frame, velocities=velocities)
    pair = "pair_style dphpc model\npair_coeff * * O H\ntimestep 0.0005\n"
    npt = "fix 1 all npt temp 300 300 0.05 tri 0 0 0.5\n"
    script = head + pair + npt + f"run 40\n{lammps.look('whole')}" + head + pair + npt
    script += "run 20\nwrite_restart half\nclear\nread_restart half\n"
    script += f"plugin load {lammps.plugin}\n" + pair + npt + "run 20\n" + lammps.look("half")
    log = lammps.run(script)
    whole, half = (lammps.result(name, frame) for name in ("whole", "half"))
    assert "ERROR" not in log
    # Measured: 2e-16 eV/Å.
    np.testing.assert_allclose(half.forces, whole.forces, atol=1e-11)
    assert half.energy == pytest.approx(whole.energy, abs=1e-10)
    start = ours(model, frame)
    assert np.abs(whole.forces - start.forces).max() > 1e-3
