"""Whole runs, on as many ranks as there are, against a plain loop over all pairs."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

import dphpc.md
from dphpc.core.box import Box
from dphpc.core.config import parse_config
from dphpc.core.errors import DataError, InputError, RunError
from dphpc.core.random import Stream, normals
from dphpc.core.units import ACCELERATION, BOLTZMANN_EV_PER_K, KINETIC
from dphpc.md.config import MdConfig
from dphpc.md.observables import COLUMNS
from dphpc.md.run import Run, run_md
from dphpc.model.model_file import write_model
from dphpc.parallel.comm import Communicator
from dphpc.potential.contract import Outputs
from tests.lennard_jones import IMPORT, LennardJones
from tests.models import random_model
from tests.parallel.conftest import all_pairs  # noqa: F401

Make = Callable[..., dict[str, Any]]
THERMOSTATS = ("nose-hoover", "langevin", "bussi")


def stage(name: str, steps: int) -> dict[str, Any]:
    if name == "nve":
        return {"ensemble": "nve", "steps": steps}
    return {"ensemble": "nvt", "thermostat": name, "temperature_K": [60, 80], "damping_fs": 150, "steps": steps}


def table(path: str) -> tuple[list[str], np.ndarray]:
    with open(path) as file:
        rows = list(csv.reader(file))
    return rows[0], np.array(rows[1:], float)


def plain_md(config: dict[str, Any], evaluate: Callable[..., Outputs]) -> np.ndarray:
    """NVE by a bare velocity Verlet over all pairs: (steps + 1, 3) potential, kinetic energy, trace of the virial."""
    base = read(config["structure"], parallel=False)
    corners = np.stack(np.meshgrid(*(np.arange(r) for r in config["replicate"]), indexing="ij"), -1).reshape(-1, 1, 3)
    x = (base.positions + corners @ base.cell.array).reshape(-1, 3)
    box = Box(base.cell.array * np.array(config["replicate"])[:, None])
    types, mass, dt = np.zeros(len(x), np.int32), base.get_masses()[0], config["timestep_fs"] * 1e-3
    t = config["velocities"]["temperature_K"]
    v = normals(config["velocities"]["seed"], Stream.VELOCITIES, 0, np.arange(len(x)) + 1)
    v -= v.mean(axis=0)
    v *= np.sqrt((3 * len(x) - 3) * BOLTZMANN_EV_PER_K * t / (KINETIC * mass * (v**2).sum()))
    result, out = [], evaluate(box, x, types)
    for _ in range(config["stages"][0]["steps"] + 1):
        result.append([out.energy, 0.5 * KINETIC * mass * (v**2).sum(), np.trace(out.virial)])
        v += 0.5 * dt * ACCELERATION / mass * out.forces
        x = x + dt * v
        out = evaluate(box, x, types)
        v += 0.5 * dt * ACCELERATION / mass * out.forces
    return np.array(result)


@pytest.fixture(scope="session")
def potential(argon: LennardJones) -> LennardJones:
    return argon


# Measured on 1 and 4 ranks over 100 steps: 9e-15, and 3e-11 where forces and positions are rounded; pressure 4e-12 and
# 1e-6 bar.
@pytest.mark.mpi
@pytest.mark.parametrize(("deterministic", "tolerance"), [(False, 1e-12), (True, 1e-10)])
def test_a_trajectory_equals_the_plain_loop(
    deterministic: bool,
    tolerance: float,
    comm: Communicator,
    config: Make,
    argon: LennardJones,
    all_pairs: Callable[..., Outputs],  # noqa: F811
) -> None:
    # 12.96 × 10.8 × 10.8 Å and a reach of 7.1 Å: with 4 and 8 ranks bricks are thinner than that.
    run = config(replicate=[3, 2, 2], stages=[stage("nve", 100)], deterministic=deterministic)
    run["thermo"]["every"] = 1
    result = run_md(run, comm=comm, potential=argon)
    wanted = plain_md(run, all_pairs)
    assert result.rebuilds >= 2
    np.testing.assert_allclose(result.thermo["potential_eV"], wanted[:, 0], rtol=tolerance)
    np.testing.assert_allclose(result.thermo["kinetic_eV"], wanted[:, 1], rtol=tolerance)
    volume = result.thermo["volume_A3"]
    pressure = (2 * wanted[:, 1] + wanted[:, 2]) / 3 / volume * 1.602176634e6
    np.testing.assert_allclose(result.thermo["pressure_bar"], pressure, rtol=1e-10, atol=1e5 * tolerance)


@pytest.mark.mpi
@pytest.mark.parametrize("name", THERMOSTATS)
def test_thermostatted_runs_do_not_depend_on_the_ranks(
    comm: Communicator, config: Make, argon: LennardJones, name: str, tmp_path: Path
) -> None:
    from dphpc.parallel.comm import Serial

    run = config(stages=[stage(name, 60), stage("nve", 20)])
    alone = config(stages=run["stages"], thermo={"every": 5, "file": str(tmp_path / f"serial{comm.rank}.csv")})
    many, one = run_md(run, comm=comm, potential=argon), run_md(alone, comm=Serial(), potential=argon)
    for column in ("potential_eV", "kinetic_eV", "conserved_eV", "time_ps"):
        np.testing.assert_allclose(many.thermo[column], one.thermo[column], rtol=1e-10, err_msg=column)


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_thermo_csv_and_screen(
    comm: Communicator, config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(stages=[stage("bussi", 10), stage("nve", 7)])
    result = run_md(run, comm=comm, potential=argon)
    header, values = table(run["thermo"]["file"])
    assert ",".join(header) == (
        "step,time_ps,temperature_K,potential_eV,kinetic_eV,total_eV,conserved_eV,pressure_bar,pxx_bar,pyy_bar,"
        "pzz_bar,pxy_bar,pxz_bar,pyz_bar,volume_A3,density_g_cm3,a_A,b_A,c_A,alpha_deg,beta_deg,gamma_deg"
    )
    assert values[:, 0].tolist() == [0, 5, 10, 15, 17]
    assert values[:, 1].tolist() == pytest.approx([0, 0.02, 0.04, 0.06, 0.068], abs=1e-15)
    np.testing.assert_allclose(
        values[0, -7:], [48 * 39.948 * 1.66053906660 / values[0, 14], 16.2, 10.8, 10.8, 90, 90, 90], rtol=1e-4
    )
    for column, name in zip(values.T, COLUMNS, strict=True):
        assert np.array_equal(column, result.thermo[name]), "the file gives the values back to the last bit"
    out = capsys.readouterr().out
    if comm.rank:
        assert out == ""
    else:
        assert f"processes: {comm.size} rank" in out
        assert "48 atoms" in out
        assert "kB/atom" in out
        assert "stage 2 of 2: nve, 7 steps" in out
        assert "atom-steps/s" in out
        assert "ns/day" in out
    assert "atoms" in result._repr_html_()
    assert "17 steps of 48 atoms" in repr(result)
    assert sum(result.phases.values()) <= result.seconds


@pytest.mark.parametrize("moves", [False, True])
def test_the_screen_shows_the_density_where_the_box_moves(
    config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str], moves: bool
) -> None:
    npt = {**stage("bussi", 10), "ensemble": "npt", "pressure_bar": 2000, "barostat_every": 5}
    result = run_md(config(stages=[stage("nve", 5), *[npt] * moves]), potential=argon)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line[:8].strip() in ("step", "0", "5", "10", "15")
    ]
    head, *rows = [line.split() for line in lines]
    assert len(rows) == len(result.thermo["step"])
    shown = [float(row[head.index("g/cm3")]) for row in rows] if moves else []
    np.testing.assert_allclose(shown, result.thermo["density_g_cm3"] if moves else [], atol=5e-6)
    assert len(set(shown)) == (3 if moves else 0)
    assert max(map(len, lines)) <= 100


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["nve", *THERMOSTATS])
def test_a_run_taken_up_again_equals_one_in_one_go(
    comm: Communicator, config: Make, argon: LennardJones, name: str
) -> None:
    folder = Path(config()["structure"]).parent
    stages = [stage(name, 30), stage("nve", 10)]

    def files(prefix: str) -> dict[str, Any]:
        return {
            "thermo": {"every": 5, "file": str(folder / f"{prefix}.csv")},
            "trajectory": {"every": 10, "file": str(folder / f"{prefix}.extxyz"), "velocities": True, "unwrap": True},
            "restart": {"every": 15, "file": str(folder / f"{prefix}.h5")},
        }

    run_md(config(stages=stages, **files("whole")), comm=comm, potential=argon)
    # A run that is killed after step 20, five steps behind its last restart.
    interrupted = [{**stages[0]}, stages[1]]
    with pytest.raises(RunError, match=r"(?s)killed.*part\.h5 \(step 15\)"):
        run_md(config(stages=interrupted, **files("part")), comm=comm, potential=Killed(argon, 21))
    if comm.rank == 0:  # what is behind the restart goes, however long it is
        for name in ("part.csv", "part.extxyz"):
            with open(folder / name, "a") as file:
                file.write("x" * 100_000)
    again = config(structure=str(folder / "part.h5"), replicate=None, stages=stages, **files("part"))
    run_md(again, comm=comm, potential=argon)
    if comm.rank == 0:
        (_, whole), (_, part) = table(str(folder / "whole.csv")), table(str(folder / "part.csv"))
        assert part[:, 0].tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 40]
        np.testing.assert_array_equal(part, whole)
        steps = [f.info["Step"] for f in read(folder / "part.extxyz", index=":", parallel=False)]
        assert steps == [0, 10, 20, 30, 40]
        assert (folder / "part.extxyz").read_bytes() == (folder / "whole.extxyz").read_bytes()


@pytest.mark.mpi
@pytest.mark.two_ranks
@pytest.mark.parametrize("suffix", ["extxyz", "h5md"])
def test_the_last_step_is_written_and_only_once(
    comm: Communicator, config: Make, argon: LennardJones, suffix: str
) -> None:
    folder = Path(config()["structure"]).parent

    def run(name: str, steps: int, **changes: Any) -> tuple[list[float], list[int]]:
        trajectory = folder / f"{name}.{suffix}"
        files = {
            "thermo": {"every": 5, "file": str(folder / f"{name}.csv")},
            "trajectory": {"every": 10, "file": str(trajectory)},
            "restart": {"every": 1000, "file": str(folder / f"{name}.h5")},
        }
        plan = config(stages=[stage("langevin", 8) | {"temperature_K": 60}, stage("nve", steps - 8)], **files)
        run_md(plan | changes, comm=comm, potential=argon, resume=True)
        rows = table(files["thermo"]["file"])[1][:, 0].tolist()
        if suffix == "h5md":
            with h5py.File(trajectory) as file:
                return rows, file["particles/all/position/step"][:].tolist()
        return rows, [f.info["Step"] for f in read(trajectory, index=":", parallel=False)]

    assert run("part", 13) == ([0, 5, 10, 13], [0, 10, 13])
    # What no interval asked for stays out of a run that goes on: it gives the files of one in one go.
    assert run("part", 23) == ([0, 5, 10, 15, 20, 23], [0, 10, 20, 23])
    assert run("whole", 23) == ([0, 5, 10, 15, 20, 23], [0, 10, 20, 23])
    for ending in ("csv", "extxyz") if suffix == "extxyz" else ("csv",):
        assert (folder / f"part.{ending}").read_bytes() == (folder / f"whole.{ending}").read_bytes()
    assert run("due", 20) == ([0, 5, 10, 15, 20], [0, 10, 20])


@pytest.mark.mpi
@pytest.mark.two_ranks
@pytest.mark.parametrize("after", ["nve", "nose-hoover", "bussi", "langevin"])
@pytest.mark.parametrize("new_plan", [False, True])
def test_the_drift_that_langevin_leaves_is_stopped(
    comm: Communicator, config: Make, argon: LennardJones, after: str, new_plan: bool
) -> None:
    """It is none of the degrees of freedom of the others, nor of their temperature."""
    folder = Path(config()["structure"]).parent
    files = {
        "thermo": {"every": 1, "file": str(folder / "t.csv")},
        "trajectory": {"every": 1, "file": str(folder / "t.extxyz"), "velocities": True},
        "restart": {"file": str(folder / "r.h5")},
    }
    before = stage("langevin", 10) | {"temperature_K": 60}
    plan = config(stages=[before, *[stage(after, 5)] * (not new_plan)], **files)
    run_md(plan, comm=comm, potential=argon)
    if new_plan:
        again = {"structure": str(folder / "r.h5"), "stages": [stage(after, 5)], "replicate": None}
        run_md(config(**files | again), comm=comm, potential=argon)
    if comm.rank == 0:
        momenta = [np.abs(f.get_momenta().sum(axis=0)).max() for f in read(folder / "t.extxyz", ":", parallel=False)]
        assert momenta[10] > 0.1
        assert (max(momenta[11:]) < 1e-5) == (after != "langevin")
        names, rows = table(files["thermo"]["file"])
        conserved = rows[:, names.index("conserved_eV")]
        assert len(rows) == 16
        assert np.ptp(conserved) < 1e-3
    comm.barrier()


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_thermo_is_kept_once_as_numbers(comm: Communicator, config: Make, argon: LennardJones) -> None:
    run = Run(parse_config(MdConfig, config(model="unused")), comm, argon)
    result = run.go()
    assert len(run.rows.tobytes()) == (8 * 22 * 5 if comm.rank == 0 else 0)
    assert comm.allgather(result.thermo["step"].tolist()) == [[0, 5, 10, 15, 20]] * comm.size


class Killed:
    """A potential that fails at one of its calls, on the last rank that has atoms."""

    def __init__(self, inner: LennardJones, call: int) -> None:
        self.inner, self.cutoff, self.type_map, self.left = inner, inner.cutoff, inner.type_map, call

    def memory_per_atom(self) -> float:
        return 0.0

    def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
        self.left -= 1
        if self.left < 0 and 48 in state.ids[: state.n_local]:
            raise RunError("killed by the test", where="atom 48")
        self.inner.compute(state, neighbors, halo, outputs, centers)


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_new_stages_go_on_from_a_restart(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    restart = {"every": 100, "file": str(folder / "r.h5")}
    run_md(config(stages=[stage("bussi", 12)], restart=restart), comm=comm, potential=argon)
    again = config(structure=restart["file"], replicate=None, stages=[stage("nve", 8)])
    again["thermo"] = {"every": 4, "file": None}
    result = run_md(again, comm=comm, potential=argon)
    assert result.thermo["step"].tolist() == [12, 16, 20]
    assert result.steps == 8
    # The same plan, done already, is run once more; one with more steps goes on.
    same = run_md({**again, "stages": [stage("nve", 8)], "restart": restart}, comm=comm, potential=argon)
    assert same.time_ps == pytest.approx(0.08)
    more = run_md({**again, "stages": [stage("nve", 12)]}, comm=comm, potential=argon)
    assert more.thermo["step"].tolist() == [20, 24]
    faster = run_md({**again, "timestep_fs": 1.0}, comm=comm, potential=argon)
    assert faster.thermo["time_ps"].tolist() == pytest.approx([0.08, 0.084, 0.088], abs=1e-12)


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_a_restart_may_change_the_model_and_its_types(comm: Communicator, config: Make) -> None:
    restart = {"every": 100, "file": str(Path(config()["structure"]).with_name("r.h5"))}
    first = LennardJones(["Unused", "Ar"], cutoff=6.5, cutoff_smooth=5.0)
    run_md(config(restart=restart), comm=comm, potential=first)
    again = config(structure=restart["file"], replicate=None)
    second = LennardJones(["Ar", "Kr"], cutoff=6.5, cutoff_smooth=5.0)
    assert run_md(again, comm=comm, potential=second).thermo["step"][-1] == 40
    with pytest.raises(InputError, match="species 'Ar'"):
        run_md(again, comm=comm, potential=LennardJones(["Kr", "Unused"]))


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_outputs_that_cannot_be_written_are_an_error(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    where = f"(?s)cannot be written: Is a directory.*where: *{folder}"
    with pytest.raises(RunError, match=where):
        run_md(config(thermo={"file": str(folder)}), comm=comm, potential=argon)
    for kind in ("extxyz", "lammps", "h5md"):
        trajectory = {"file": str(Path(config()["structure"]) / "t"), "format": kind}  # a file is no folder
        with pytest.raises(RunError, match=r"(?s)the output cannot be written: .*where: .*ar\.extxyz/t"):
            run_md(config(trajectory=trajectory), comm=comm, potential=argon)
    (folder / "none.h5").mkdir(exist_ok=True)
    with pytest.raises(RunError, match=r"restart file cannot be written"):
        run_md(config(restart={"every": 5, "file": str(folder / "none.h5")}), comm=comm, potential=argon)


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_nan_and_wild_atoms_stop_the_run(comm: Communicator, config: Make, argon: LennardJones) -> None:
    message = r"(?s)(flew|not a finite|apart).*step \d+.*no restart file was written"
    with pytest.raises(RunError, match=message) as caught:
        run_md(config(timestep_fs=4000.0), comm=comm, potential=argon)
    assert caught.value.speaks or comm.rank

    class Nan(Killed):
        def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
            self.inner.compute(state, neighbors, halo, outputs, centers)
            self.left -= 1
            if self.left < 0:
                outputs.forces[: state.n_local][state.ids[: state.n_local] == 17] = np.nan

    with pytest.raises(RunError, match=r"(?s)force on atom 17 is not a finite number.*step 5"):
        run_md(config(), comm=comm, potential=Nan(argon, 5))


@pytest.mark.mpi
@pytest.mark.two_ranks
def test_mistakes_are_found_by_all_before_the_run(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    bad, near, fparam, kinked = (folder / name for name in ("x.h5", "near.extxyz", "fparam.dp", "kinked.dp"))
    theirs = folder / "lammps.restart"
    if comm.rank == 0:
        with h5py.File(bad, "w") as file:
            file["a"] = 1
        theirs.write_bytes(b"LammpS RestartT\0" + bytes(600))
        crystal = bulk("Ar", "fcc", a=5.4, cubic=True)
        crystal.positions[1] = crystal.positions[0]
        write(near, crystal, parallel=False)
        for path, options in ((fparam, {"fitting": {"numb_fparam": 2}}), (kinked, {"activation": "relu"})):
            write_model(replace(random_model(1, 1, **options), type_map=["Ar"]), path)
    outputs = {name: str(folder / f"old.{name}") for name in ("csv", "extxyz", "h5")}
    files = {
        "thermo": {"file": outputs["csv"]},
        "trajectory": {"file": outputs["extxyz"]},
        "restart": {"file": outputs["h5"]},
    }
    run_md(config(**files), comm=comm, potential=argon)
    before = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for changes, potential, kind, message in [
        ({"timestep_fsec": 1}, argon, InputError, "did you mean 'timestep_fs'"),
        ({"structure": "nothere.lmp"}, argon, InputError, "no file 'nothere.lmp'"),
        ({"masses": {"Xe": 1.0}}, argon, InputError, "'masses' names 'Xe'"),
        ({"type_map": ["Xe"]}, argon, InputError, r"(?s)names its species itself, 'Ar'.*type_map of Ar, or none"),
        ({"replicate": [2000] * 3}, argon, InputError, r"32,000,000,000 atoms need .* GB on a node.*available"),
        ({}, None, InputError, "'model' is missing"),
        ({}, LennardJones(["Ne"]), InputError, r"(?s)species 'Ar', which the model does not know.*of the model: Ne\n"),
        ({"structure": str(bad), "replicate": None}, argon, DataError, "no restart file of dphpc"),
        ({"structure": str(theirs), "replicate": None}, argon, DataError, "one of LAMMPS; write_data"),
        ({"model": str(fparam)}, None, InputError, r"(?s)takes 2 frame parameters.*model_inputs"),
        ({"model": str(kinked)}, None, InputError, r"(?s)network with kinks.*deterministic: false"),
        ({"structure": str(near)}, argon, RunError, r"(?s)0 Å apart.*step 0, 0 ps.*remedy:   look for atoms that"),
    ]:
        with pytest.raises(kind, match=message):
            run_md(config(**files, **changes), comm=comm, potential=potential)
    comm.barrier()
    assert {path: path.read_bytes() for path in sorted(folder.iterdir())} == before
    result = run_md(config(model=str(kinked), deterministic=False, stages=[stage("nve", 1)]), comm=comm)
    assert result.steps == 1


def test_the_package_is_callable_and_takes_files(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(config(stages=[stage("nve", 2)])))
    result = dphpc.md(tmp_path / "run.json", potential=argon)
    assert result.steps == 2


def test_md_never_imports_torch(config: Make) -> None:
    code = (
        f"{IMPORT}import json, dphpc.md\n"
        "import dphpc.potential.deep, dphpc.md.run\n"
        "assert 'ase.io' not in sys.modules and 'scipy' not in sys.modules\n"  # by rank 0, when it reads a structure
        f"dphpc.md(json.loads({json.dumps(config(stages=[stage('nve', 1)]))!r}), potential=LennardJones(['Ar']))\n"
        "assert 'torch' not in sys.modules and 'mpi4py' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_slabs_and_open_boxes_run(config: Make, argon: LennardJones, tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (2, 2, 2)
    for pbc in ([True, True, False], [False, False, False]):
        atoms.pbc = pbc
        if not any(pbc):
            atoms.cell = None
        path = str(tmp_path / "s.extxyz")
        write(path, atoms)
        result = run_md(config(structure=path, replicate=None, stages=[stage("nve", 50)]), potential=argon)
        total = result.thermo["total_eV"]
        assert np.ptp(total) < 1e-3
        assert np.isnan(result.thermo["pressure_bar"]).all() == (not any(pbc))


def test_a_user_mistake_on_two_ranks_is_one_message(mpirun: list[str], tmp_path: Path, config: Make) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(config(timestp_fs=1.0, model="m.dp")))
    command = [*mpirun, "-n", "2", sys.executable, "-m", "dphpc", "md", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count("did you mean 'timestep_fs'") == 1
    assert "Traceback" not in done.stderr


def test_the_header_says_which_frame_was_taken(
    config: Make, argon: LennardJones, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(stages=[stage("nve", 1)])
    run_md(run, potential=argon)
    assert f"structure: {run['structure']}, replicated" in capsys.readouterr().out
    frames = tmp_path / "frames.extxyz"
    write(frames, [read(run["structure"], parallel=False)] * 2)
    run_md(run | {"structure": str(frames)}, potential=argon)
    assert f"structure: {frames}, last of its frames, replicated" in capsys.readouterr().out


def test_the_header_tells_where_velocities_come_from(
    config: Make, argon: LennardJones, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moving, resting = tmp_path / "moving.extxyz", tmp_path / "resting.extxyz"
    atoms = read(config()["structure"], parallel=False)
    write(resting, atoms)
    atoms.set_momenta(np.ones((len(atoms), 3)))
    write(moving, atoms)
    for structure, velocities, told in [
        (moving, None, f"velocities: from {moving}\n"),
        (resting, None, "velocities: all atoms start at rest"),
        (moving, {"temperature_K": 50}, None),
    ]:
        run_md(config(structure=str(structure), velocities=velocities, stages=[stage("nve", 1)]), potential=argon)
        shown = capsys.readouterr().out
        assert told in shown if told else "velocities:" not in shown


def test_a_time_step_in_ps_is_told(config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]) -> None:
    for timestep, told in ((0.0005, True), (0.5, False)):
        run_md(config(timestep_fs=timestep), potential=argon)
        assert (
            "timestep_fs is 0.0005: it is in femtoseconds; if it is meant in ps, as in LAMMPS, write 0.5\n"
            in capsys.readouterr().out
        ) == told
