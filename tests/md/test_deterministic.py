"""The same bits on any number of ranks and threads, and through restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dphpc.md import engine
from dphpc.md.run import run_md
from dphpc.model.compress import compress_file
from dphpc.parallel.comm import Communicator, Serial
from tests.lennard_jones import LennardJones

Config = Callable[..., dict[str, Any]]
GOLDEN = Path(__file__).parents[1] / "golden" / "models"
SILICON = Path(__file__).parents[2] / "examples" / "silicon" / "silicon.dp"

NPT: dict[str, Any] = {
    "ensemble": "npt", "temperature_K": 160, "pressure_bar": 2000, "pressure_damping_fs": 100, "barostat_every": 4,
    "compressibility_per_bar": 1e-4, "steps": 24,
}  # fmt: skip
THERMOSTATS: dict[str, dict[str, Any]] = {
    "nve": {"ensemble": "nve", "steps": 24},
    "nose-hoover": {"ensemble": "nvt", "thermostat": "nose-hoover", "temperature_K": 160, "steps": 24},
    "bussi": {"ensemble": "nvt", "thermostat": "bussi", "temperature_K": 160, "steps": 24},
    "langevin": {"ensemble": "nvt", "thermostat": "langevin", "temperature_K": 160, "steps": 24},
    "npt": NPT | {"thermostat": "langevin"},
    "npt, anisotropic": NPT | {"thermostat": "bussi", "coupling": "anisotropic"},
    "npt, xy and z": NPT | {"thermostat": "bussi", "pressure_bar": {"xy": 3000, "z": 1000}},
    "npt, z": NPT | {"thermostat": "nose-hoover", "pressure_bar": {"z": 3000}},
    "npt, triclinic": NPT | {"thermostat": "langevin", "coupling": "triclinic"},
    "npt, nose-hoover": NPT | {"thermostat": "nose-hoover"},
}
HALF = 12
"""Steps until the restart that runs go on from."""

PLANE = {
    "npt, in a plane": NPT | {"thermostat": "bussi", "pressure_bar": {"x": 2000, "y": 1000}, "coupling": "triclinic"}
}


def atoms_of(restart: str) -> dict[str, np.ndarray]:
    """Every array of a restart file, and the energy its thermostats took."""
    with h5py.File(restart) as file:
        found: dict[str, np.ndarray] = {}
        file.visititems(lambda name, item: found.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        return found


def outputs_of(folder: Path, n: int) -> list[Any]:
    """What a run wrote, as bytes and arrays."""
    files = [folder / f"{name}{n}.{kind}" for name, kind in (("thermo", "csv"), ("traj", "dump"))]
    return [*(f.read_bytes() for f in files), atoms_of(str(folder / f"restart{n}.h5"))]


def equal(a: list[Any], b: list[Any]) -> bool:
    same = all(np.array_equal(x, b[-1][name], equal_nan=True) for name, x in a[-1].items())
    return same and a[:-1] == b[:-1]


@pytest.fixture
def compared(comm: Communicator, tmp_path: Path) -> Callable[..., None]:
    """Runs on all ranks and on one, and goes on with both from the middle: all end the same, and write the same."""
    folder = Path(comm.bcast(str(tmp_path)))

    def compare(config: dict[str, Any], potential: LennardJones | None = None, **second: Any) -> None:
        def run(n: int, ranks: Communicator, every: int = 1000, **changes: Any) -> None:
            outputs = {
                "thermo": {"every": 3, "file": str(folder / f"thermo{n}.csv")},
                "trajectory": {"every": 6, "file": str(folder / f"traj{n}.dump"), "velocities": True, "forces": True},
                "restart": {"every": every, "file": str(folder / f"restart{n}.h5")},
            }
            run_md({**config, **outputs, **changes}, comm=ranks, potential=potential)

        run(0, comm, every=HALF)
        half = {"structure": str(folder / "restart0.previous.h5"), "replicate": [1, 1, 1]}
        if comm.rank == 0:
            run(1, Serial(), **second)
            assert equal(outputs_of(folder, 0), outputs_of(folder, 1)), "nor does a restart in the middle change a bit"
            run(2, Serial(), **second, **half)
        comm.barrier()
        run(3, comm, **half)
        for n in (2, 3):
            whole, later = outputs_of(folder, 0), outputs_of(folder, n)
            assert equal([whole[-1]], [later[-1]])
            assert whole[0].splitlines()[-1] == later[0].splitlines()[-1]
            assert whole[1].endswith(later[1][-1000:])

    return compare


@pytest.fixture
def written(comm: Communicator, tmp_path: Path) -> Callable[[Atoms], str]:
    """Writes a structure, for all ranks to read; returns its path."""
    path = Path(comm.bcast(str(tmp_path))) / "structure.extxyz"

    def make(atoms: Atoms) -> str:
        if comm.rank == 0:
            write(path, atoms, parallel=False)
        comm.barrier()
        return str(path)

    return make


@pytest.mark.mpi
@pytest.mark.parametrize("name", THERMOSTATS)
def test_argon_on_ranks(name: str, argon: LennardJones, config: Config, compared: Callable[..., None]) -> None:
    compared(config(replicate=[9, 2, 2], stages=[THERMOSTATS[name]], velocities={"temperature_K": 160}), argon)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["nve", "npt, anisotropic"])
def test_inner_atoms_part_by_part(
    name: str, argon: LennardJones, config: Config, compared: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a rank's own atoms get forces also while those on other ranks' atoms are under way."""
    monkeypatch.setattr(engine, "FEWEST", 8)
    compared(config(replicate=[9, 2, 2], stages=[THERMOSTATS[name]], velocities={"temperature_K": 160}), argon)


@pytest.mark.mpi
@pytest.mark.parametrize("after", [[], [THERMOSTATS["langevin"]]], ids=["half way", "then langevin"])
def test_a_minimization(
    after: list[dict[str, Any]],
    argon: LennardJones,
    config: Config,
    written: Callable[[Atoms], str],
    compared: Callable[..., None],
) -> None:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (9, 2, 2)
    atoms.rattle(0.3, seed=1)
    first = {"ensemble": "minimize", "steps": 200 if after else 24}
    compared(config(structure=written(atoms), replicate=None, stages=[first, *after]), argon)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "target",
    [{"pressure_bar": 500}, {"pressure_bar": {"xy": 0, "z": 3000}}, {"pressure_bar": -100, "coupling": "triclinic"}],
    ids=["isotropic", "xy and z", "triclinic"],
)
def test_a_minimization_of_the_box(
    target: dict[str, Any],
    argon: LennardJones,
    config: Config,
    written: Callable[[Atoms], str],
    compared: Callable[..., None],
) -> None:
    atoms = bulk("Ar", "fcc", a=5.2, cubic=True) * (9, 2, 2)
    skew = np.array([[1.0, 0.0, 0.0], [0.03, 1.01, 0.0], [0.02, -0.02, 0.98]])
    atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    atoms.rattle(0.2, seed=1)
    stages = [{"ensemble": "minimize", "steps": 24, **target}]
    compared(config(structure=written(atoms), replicate=None, stages=stages), argon)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("periodic", "ensemble"),
    [
        ((True, True, True), "nve"),
        ((True, True, False), "nve"),
        ((True, True, True), "npt"),
        ((True, True, True), "npt, anisotropic"),
        ((True, True, True), "npt, triclinic"),
        ((True, True, False), "npt, in a plane"),
    ],
    ids=["triclinic", "slab", "npt", "npt, anisotropic", "npt, triclinic", "npt of a slab"],
)
def test_a_skewed_cell(
    periodic: tuple[bool, bool, bool],
    ensemble: str,
    argon: LennardJones,
    config: Config,
    written: Callable[[Atoms], str],
    compared: Callable[..., None],
) -> None:
    atoms = bulk("Ar", "fcc", a=5.4)
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)  # a slab's plane is that of x and y
    atoms.rattle(0.05, seed=1)
    atoms.pbc = periodic
    stage = (THERMOSTATS | PLANE)[ensemble]
    run = {"replicate": [6, 5, 4], "velocities": {"temperature_K": 160}, "stages": [stage]}
    compared(config(structure=written(atoms), **run), argon)


@pytest.mark.mpi
@pytest.mark.parametrize(("length", "pressure", "later"), [(16.05, 9000, False), (17.45, 3000, True)])
def test_a_box_that_passes_a_power_of_two(
    length: float,
    pressure: float,
    later: bool,
    argon: LennardJones,
    config: Config,
    comm: Communicator,
    written: Callable[[Atoms], str],
    compared: Callable[..., None],
) -> None:
    """Where the spacing of positions changes, before the restart in the middle or after it."""
    path = written(bulk("Ar", "fcc", a=length / 3, cubic=True))
    squeezed = THERMOSTATS["npt"] | {"pressure_bar": pressure}
    compared(config(structure=path, replicate=[3, 3, 3], stages=[squeezed], velocities={"temperature_K": 160}), argon)
    if comm.rank == 0:
        names = "restart0.previous.h5", "restart0.h5"
        half, end = (atoms_of(str(Path(path).with_name(name)))["box"][0, 0] for name in names)
        assert end < 16.0, (half, end)
        assert (half > 16.0) == later, (half, end)
    comm.barrier()


def hot_crystal(structure: str, model: Path, precision: str) -> dict[str, Any]:
    """A run of 3 × 2 × 2 cells on one thread whose neighbor list is rebuilt."""
    return {
        "structure": structure, "model": str(model), "replicate": [3, 2, 2], "precision": precision, "skin_A": 0.3,
        "velocities": {"temperature_K": 1500, "seed": 3}, "stages": [{"ensemble": "nve", "steps": 18}], "n_threads": 1,
    }  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("precision", ["float64", "mixed"])
def test_silicon_on_ranks_and_threads(
    precision: str, written: Callable[[Atoms], str], compared: Callable[..., None]
) -> None:
    path = written(bulk("Si", "diamond", a=5.43, cubic=True))
    compared(hot_crystal(path, SILICON, precision), n_threads=2)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "compressed", "precision"),
    [("concat", False, "float64"), ("concat", True, "mixed"), ("strip_smooth", True, "float64"),
     ("strip_smooth", True, "mixed")],
)  # fmt: skip
def test_dpa1_on_ranks_and_threads(
    name: str,
    compressed: bool,
    precision: str,
    comm: Communicator,
    written: Callable[[Atoms], str],
    compared: Callable[..., None],
) -> None:
    atoms = bulk("OH", "rocksalt", a=4.4, cubic=True)
    path, model = written(atoms), GOLDEN / f"dpa1_{name}.dp"
    if compressed:
        source, model = model, Path(path).with_name("model.dp")
        if comm.rank == 0:
            compress_file(source, model)
        comm.barrier()
    compared(hot_crystal(path, model, precision), n_threads=2)
