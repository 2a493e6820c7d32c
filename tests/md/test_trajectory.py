"""Trajectory formats, read back by other programs' readers, written by any number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.io import read
from ase.units import fs

from dphpc.core.box import Box
from dphpc.md import h5md
from dphpc.md.hdf5 import has_room
from dphpc.md.run import run_md
from dphpc.md.trajectory import _lammps_box
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones

pytestmark = pytest.mark.two_ranks

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def written(comm: Communicator, config: Make, argon: LennardJones) -> Callable[[str], tuple[Path, Path]]:
    """A run's trajectory in a format, and its restart file at the last frame."""

    def run(name: str, **options: Any) -> tuple[Path, Path]:
        folder = Path(config()["structure"]).parent
        trajectory = {"every": 5, "file": str(folder / name), "velocities": True, "forces": True, **options}
        restart = {"every": 20, "file": str(folder / "r.h5")}
        run_md(config(trajectory=trajectory, restart=restart), comm=comm, potential=argon)
        comm.barrier()
        return folder / name, folder / "r.h5"

    return run


def final(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Box, folded positions, images, velocities of a restart file."""
    with h5py.File(path) as file:
        box, atoms = file["box"][:], file["atoms"]
        x = atoms["positions"][:]
        shifts = np.floor(x @ np.linalg.inv(box)).astype(int)
        return box, x - shifts @ box, atoms["images"][:] + shifts, atoms["velocities"][:]


@pytest.mark.mpi
def test_extended_xyz(comm: Communicator, written: Callable[..., tuple[Path, Path]]) -> None:
    path, restart = written("t.extxyz")
    if comm.rank == 0:
        frames = read(path, index=":", parallel=False)
        box, x, _, v = final(restart)
        assert [f.info["Step"] for f in frames] == [0, 5, 10, 15, 20]
        assert frames[-1].info["Time"] == pytest.approx(0.08)
        last = frames[-1]
        assert last.get_chemical_symbols() == ["Ar"] * 48
        assert np.array_equal(last.cell.array, box)
        np.testing.assert_allclose(last.positions, x, atol=1e-8)
        np.testing.assert_allclose(last.get_velocities() * 1000 * fs, v, rtol=1e-6, atol=1e-6)
        assert last.get_forces().shape == (48, 3)
        assert np.abs(last.get_forces().sum(axis=0)).max() < 1e-6
        assert np.isfinite(last.get_potential_energy())


@pytest.mark.mpi
def test_lammps_dump(comm: Communicator, written: Callable[..., tuple[Path, Path]]) -> None:
    path, restart = written("t.lammpstrj")
    if comm.rank == 0:
        frames = read(path, index=":", format="lammps-dump-text", parallel=False)
        box, x, images, v = final(restart)
        assert len(frames) == 5
        np.testing.assert_allclose(frames[-1].positions, x, atol=1e-7)
        np.testing.assert_allclose(frames[-1].cell.array, box)
        lines = path.read_text().splitlines()
        assert "ITEM: ATOMS id type element x y z ix iy iz vx vy vz fx fy fz" in lines
        row = lines[-1].split()
        assert row[:3] == ["48", "1", "Ar"]
        assert [int(i) for i in row[6:9]] == images[-1].tolist()
        np.testing.assert_allclose([float(w) for w in row[9:12]], v[-1], atol=1e-7)


@pytest.mark.mpi
def test_types_of_a_dump_are_the_run_files(comm: Communicator, config: Make) -> None:
    """As those of a data file whose types it names, whatever their order in the model."""
    path = Path(config()["structure"]).with_name("t.dump")
    potential = LennardJones(["Ne", "Ar"], cutoff=6.5, cutoff_smooth=5.0)
    for type_map, number in ((None, "2"), (["Ar", "Ne"], "1")):
        made = config(trajectory={"every": 20, "file": str(path)}, type_map=type_map)
        run_md(made, comm=comm, potential=potential)
        comm.barrier()
        if comm.rank == 0:
            lines = path.read_text().splitlines()
            assert lines[8].split()[2:5] == ["id", "type", "element"]
            assert {tuple(line.split()[1:3]) for line in lines[9:57]} == {(number, "Ar")}
        comm.barrier()


@pytest.mark.mpi
def test_h5md(comm: Communicator, written: Callable[..., tuple[Path, Path]]) -> None:
    path, restart = written("t.h5md")
    if comm.rank == 0:
        box, x, images, v = final(restart)
        with h5py.File(path) as file:
            assert file["h5md"].attrs["version"].tolist() == [1, 1]
            atoms = file["particles/all"]
            assert atoms["position/step"][:].tolist() == [0, 5, 10, 15, 20]
            assert atoms["velocity/step"] == atoms["position/step"]
            np.testing.assert_allclose(atoms["position/value"][-1], x, atol=1e-12)
            np.testing.assert_allclose(atoms["velocity/value"][-1], v, atol=1e-12)
            assert np.array_equal(atoms["image/value"][-1], images)
            np.testing.assert_allclose(atoms["box/edges/value"][:], [np.diag(box)] * 5)
            assert atoms["box/edges/step"] == atoms["position/step"]
            assert atoms["id"][:].tolist() == list(range(1, 49))
            assert h5py.check_enum_dtype(atoms["species"].dtype) == {"Ar": 0}


@pytest.mark.mpi
def test_an_older_h5md_file_goes_on(
    comm: Communicator, config: Make, argon: LennardJones, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config()["structure"]).parent
    monkeypatch.setattr(h5md, "CHUNK", 7)

    def run(name: str, steps: int, **changes: Any) -> None:
        stages = [{"ensemble": "nve", "steps": steps}]
        files = {"trajectory": {"every": 5, "file": str(folder / f"{name}.h5md"), "velocities": True}}
        files["restart"] = {"every": 20, "file": str(folder / f"{name}.h5")}
        run_md(config(stages=stages, **files, **changes), comm=comm, potential=argon)

    with monkeypatch.context() as patch:
        patch.setattr(h5md, "with_room", lambda: None)
        run("part", 10)
    run("part", 20, structure=str(folder / "part.h5"), replicate=None)
    run("whole", 20)
    if comm.rank == 0:
        with h5py.File(folder / "part.h5md") as part, h5py.File(folder / "whole.h5md") as whole:
            assert not has_room(part["particles/all/position/value"])
            assert has_room(whole["particles/all/position/value"])
            for name in ("position/step", "position/value", "velocity/value", "image/value", "id", "species", "mass"):
                assert np.array_equal(part["particles/all"][name], whole["particles/all"][name]), name
    comm.barrier()


@pytest.mark.mpi
def test_true_positions_on_demand(comm: Communicator, written: Callable[..., tuple[Path, Path]]) -> None:
    path, restart = written("u.extxyz", unwrap=True)
    if comm.rank == 0:
        box, x, images, _ = final(restart)
        np.testing.assert_allclose(read(path, parallel=False).positions, x + images @ box, atol=1e-8)


def test_boxes_in_lammps_words(tmp_path: Path) -> None:
    plain = _lammps_box(Box(np.diag([3.0, 4.0, 5.0]), (True, True, False), np.array([1.0, 0, 0])))
    assert plain == "ITEM: BOX BOUNDS pp pp ff\n1.0 4.0\n0.0 4.0\n0.0 5.0\n"
    matrix = np.array([[10.0, 0, 0], [-3.0, 9.0, 0], [2.0, 1.0, 8.0]])
    path = tmp_path / "x.dump"
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\n"
    path.write_text(head + _lammps_box(Box(matrix)) + "ITEM: ATOMS id type x y z\n1 1 1 2 3\n")
    np.testing.assert_allclose(read(path, format="lammps-dump-text").cell.array, matrix)
    general = _lammps_box(Box(np.array([[9.0, 1, 0], [0, 8, 1], [1, 0, 7]])))
    assert general.startswith("ITEM: BOX BOUNDS abc origin pp pp pp\n9.0 1.0 0.0 0.0\n")
