from __future__ import annotations

from pathlib import Path

import dpdata
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dphpc.core.errors import DataError, InputError
from dphpc.train.convert import convert
from dphpc.train.data import System, open_systems
from tests.train.data_systems import TYPE_MAP, two_systems, write_npy

pytestmark = pytest.mark.usefixtures("inside")

FORMATS = ["deepmd/npy", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/lmdb"]


def atoms_frames() -> list[Atoms]:
    """Two compositions, the first also with another order of atoms; energies, forces and stress."""
    rng = np.random.default_rng(0)
    frames = []
    for symbols in ("OHH", "HOH", "OHH", "OOHHHH"):
        names = list(symbols)
        atoms = Atoms(names, rng.uniform(0, 5, (len(names), 3)), cell=np.diag([5.0, 6.0, 7.0]), pbc=True)
        results = {"energy": rng.normal(), "forces": rng.normal(size=(len(names), 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def by_energy(systems: list[System]) -> dict[float, tuple[System, int]]:
    return {round(s.values(i)["energy"], 6): (s, i) for s in systems for i in range(s.n_frames)}


@pytest.mark.parametrize("output_format", FORMATS)
def test_extxyz_through_ase(tmp_path: Path, output_format: str) -> None:
    frames = atoms_frames()
    write(tmp_path / "in.extxyz", frames)
    report = convert(tmp_path / "in.extxyz", tmp_path / "out", output_format=output_format, type_map=["H", "O"])
    assert (report.n_frames, report.n_atoms) == (4, (3, 6))
    assert report.labels == {"energy": 4, "force": 4, "virial": 4}
    systems = open_systems(["out"], ["O", "H"])
    assert sum(s.n_frames for s in systems) == 4
    assert len(systems) == len(report.systems) == 2
    found = by_energy(systems)
    for atoms in frames:
        system, i = found[round(atoms.get_potential_energy(), 6)]
        frame = system.frame(i)
        order = np.argsort([s != "H" for s in atoms.get_chemical_symbols()], kind="stable")
        np.testing.assert_array_equal(frame.types == 0, np.array(atoms.get_chemical_symbols())[order] == "O")
        np.testing.assert_allclose(frame.positions, atoms.get_positions()[order], atol=1e-7)  # extxyz has 8 digits
        np.testing.assert_allclose(frame.forces, atoms.get_forces()[order], atol=1e-7)
        virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        np.testing.assert_allclose(frame.virial, virial, atol=1e-5)


@pytest.mark.parametrize("name", ["out", "out.hdf5", "out.lmdb"])
def test_frames_for_validation_are_held_out(tmp_path: Path, name: str) -> None:
    frames = [atoms for _ in range(5) for atoms in atoms_frames()]
    for i, atoms in enumerate(frames):
        atoms.calc.results["energy"] = float(i)
    write(tmp_path / "in.extxyz", frames)
    report = convert(tmp_path / "in.extxyz", tmp_path / name, hold_out=0.2)
    beside = tmp_path / name.replace("out", "out_valid")
    assert (report.n_frames, report.held_out) == (16, (str(beside), 4))
    assert report.lines()[:2] == [
        f"wrote 16 frames in 2 systems to {tmp_path / name} ({report.output_format})",
        f"  validation:    4 frames in {beside}",
    ]
    assert sorted(by_energy(open_systems([str(beside)], ["O", "H"]))) == [2, 7, 12, 17]
    assert sorted(by_energy(open_systems([str(tmp_path / name)], ["O", "H"]))) == sorted({*range(20)} - {2, 7, 12, 17})
    for fraction in (0.02, 0.98):
        with pytest.raises(InputError, match="at least one frame for training and one for validation"):
            convert(tmp_path / "in.extxyz", tmp_path / "new", hold_out=fraction)
    (tmp_path / "third_valid").mkdir()
    (tmp_path / "third_valid" / "x").touch()
    with pytest.raises(InputError, match="third_valid' exists"):
        convert(tmp_path / "in.extxyz", tmp_path / "third", hold_out=0.2)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("output_format", FORMATS)
def test_deepmd_systems_keep_everything(tmp_path: Path, output_format: str) -> None:
    for name, data in zip("ab", two_systems(), strict=True):
        write_npy(tmp_path / "in" / name, data, sets=2)
    convert(tmp_path / "in", tmp_path / "out", output_format=output_format)
    before, after = (by_energy(open_systems([name], TYPE_MAP)) for name in ("in", "out"))
    assert before.keys() == after.keys()
    for energy, (system, i) in before.items():
        new, k = after[energy]
        assert new.periodic == system.periodic
        assert new.labels == system.labels
        old_frame, new_frame = system.frame(i), new.frame(k)
        order = np.argsort(old_frame.types, kind="stable")
        np.testing.assert_array_equal(new_frame.types, old_frame.types[order])
        np.testing.assert_allclose(new_frame.positions, old_frame.positions[order], atol=1e-13)
        for name in ("forces", "atom_ener", "atom_pref"):
            np.testing.assert_array_equal(getattr(new_frame, name), getattr(old_frame, name)[order])
        np.testing.assert_array_equal(new_frame.virial, old_frame.virial)
    aparam = list((tmp_path / "out").rglob("aparam.npy")) if "npy" in output_format else [None]
    assert aparam  # parameters travel too


@pytest.mark.parametrize("array", [np.float64(3.0), np.zeros((0, 2)), np.zeros((5, 0))])
@pytest.mark.parametrize("name", ["fparam", "aparam"])
def test_parameters_without_values(tmp_path: Path, name: str, array: np.ndarray) -> None:
    write_npy(tmp_path / "in", two_systems()[0])
    np.save(tmp_path / "in" / "set.000" / f"{name}.npy", array)
    with pytest.raises(DataError, match=r"has shape \(.*\)") as caught:
        convert(tmp_path / "in", tmp_path / "out")
    assert f"{name}.npy" in str(caught.value.where)


def test_unlabeled_poscar_through_dpdata(tmp_path: Path) -> None:
    atoms = atoms_frames()[3]
    atoms.calc = None
    write(tmp_path / "POSCAR", atoms, format="vasp")
    report = convert(tmp_path / "POSCAR", tmp_path / "out.hdf5")
    assert (report.output_format, report.labels) == ("deepmd/hdf5", {})
    (system,) = open_systems(["out.hdf5"], ["O", "H"])
    assert system.labels == frozenset()
    assert system.periodic
    assert "labels:        none" in report.lines()[-1]


def test_open_boundaries(tmp_path: Path) -> None:
    write(tmp_path / "mol.xyz", Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    convert(tmp_path / "mol.xyz", tmp_path / "out")
    assert (tmp_path / "out/nopbc").exists()
    assert not (tmp_path / "out/set.000/box.npy").exists()
    assert not open_systems(["out"], ["O", "H"])[0].periodic


@pytest.mark.parametrize(("pbc", "c"), [([True, True, False], 9.0), ([True, True, False], 0.0), (True, 0.0)])
def test_frames_that_repeat_in_some_directions_only(tmp_path: Path, pbc: list[bool] | bool, c: float) -> None:
    slab = Atoms("OHH", [[0, 0, 4], [1, 0, 4], [0, 1, 4]], cell=np.diag([5.0, 5.0, c]), pbc=pbc)
    write(tmp_path / "slab.traj", [atoms_frames()[0], slab])  # extxyz keeps no cell without volume
    with pytest.raises(DataError, match="frame 1 does not repeat along three vectors"):
        convert(tmp_path / "slab.traj", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["data.lmdb", "data"])
def test_lmdb_of_dpdata(tmp_path: Path, name: str) -> None:
    frames = by_energy(open_systems([str(f) for f in written(tmp_path)], ["H", "O"]))
    systems = dpdata.MultiSystems()
    for folder in written(tmp_path):
        systems.append(dpdata.LabeledSystem(str(folder), fmt="deepmd/npy"))
    systems.to("deepmd/lmdb", str(tmp_path / name))
    convert(tmp_path / name, tmp_path / "out")
    found = by_energy(open_systems(["out"], ["H", "O"]))
    assert found.keys() == frames.keys()
    for energy, (system, i) in found.items():
        before = frames[energy]
        np.testing.assert_allclose(system.frame(i).forces, before[0].frame(before[1]).forces, atol=1e-6)


def written(folder: Path) -> list[Path]:
    """Two npy systems of different sizes."""
    if not (folder / "npy").exists():
        write(folder / "in.extxyz", atoms_frames())
        convert(folder / "in.extxyz", folder / "npy", type_map=["H", "O"])
    return sorted((folder / "npy").iterdir())


def test_labels_that_differ_make_other_systems(tmp_path: Path) -> None:
    frames = atoms_frames()[:2]
    frames[1].calc = None
    write(tmp_path / "in.extxyz", frames)
    report = convert(tmp_path / "in.extxyz", tmp_path / "out")
    assert report.systems == ["O1H2", "O1H2_1"]
    assert [s.labels != frozenset() for s in open_systems(["out"], ["O", "H"])] == [True, False]


def test_labels_under_other_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = atoms_frames()[:1]
    write(tmp_path / "in.extxyz", frames)
    convert(tmp_path / "in.extxyz", tmp_path / "out")
    assert not caplog.text
    text = (tmp_path / "in.extxyz").read_text()
    (tmp_path / "in.extxyz").write_text(text.replace("energy=", "REF_energy=").replace(":forces:", ":REF_forces:"))
    convert(tmp_path / "in.extxyz", tmp_path / "other")
    assert "REF_energy, REF_forces" in caplog.text


def test_a_name_of_structures_is_no_output(tmp_path: Path) -> None:
    write(tmp_path / "in.extxyz", atoms_frames()[:1])
    with pytest.raises(InputError, match="a file of structures, which is not written"):
        convert(tmp_path / "in.extxyz", tmp_path / "out.xyz")
    with pytest.raises(InputError, match="did you mean 'ase/espresso-out'"):
        convert(tmp_path / "in.extxyz", tmp_path / "out", "espresso-out")


DUMP = """\
ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS {box}
ITEM: ATOMS id type {columns}
1 1 {first}1.0 2.0 3.0 0.1 0.2 0.3
2 3 {second}2.0 3.0 4.0 -0.1 -0.2 -0.3
"""
SKEWED = "abc origin pp pp pp\n5.0 0.0 0.0 0.0\n0.5 6.0 1.0 0.0\n0.25 -1.5 7.0 0.0"
SQUARE = "pp pp pp\n0.0 5.0\n0.0 6.0\n0.0 7.0"


def test_dump_with_elements_through_ase(tmp_path: Path) -> None:
    (tmp_path / "a.dump").write_text(DUMP.format(box=SKEWED, columns="element x y z fx fy fz", first="O ", second="H "))
    report = convert(tmp_path / "a.dump", tmp_path / "out")
    assert (report.type_map, report.labels) == (["O", "H"], {"force": 1})  # no energy 0
    frame = open_systems(["out"], ["O", "H"])[0].frame(0)
    np.testing.assert_allclose(frame.box.matrix, [[5.0, 0.0, 0.0], [0.5, 6.0, 1.0], [0.25, -1.5, 7.0]])
    np.testing.assert_allclose(frame.positions, [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    with pytest.raises(DataError, match="abc origin"):
        convert(tmp_path / "a.dump", tmp_path / "other", "lammps/dump")


def test_type_map_names_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.dump").write_text(DUMP.format(box=SQUARE, columns="x y z fx fy fz", first="", second=""))
    assert convert(tmp_path / "a.dump", tmp_path / "out", type_map=["O", "C", "H"]).type_map == ["O", "C", "H"]
    frame = open_systems(["out"], ["O", "C", "H"])[0].frame(0)
    np.testing.assert_array_equal(frame.types, [0, 2])
    with pytest.raises(DataError, match="types 1, 3") as caught:
        convert(tmp_path / "a.dump", tmp_path / "other", type_map=["O", "C"])
    assert caught.value.expected == "names of the types 1 to 3, not 2"
    (tmp_path / "a.dump").rename(tmp_path / "dump.water")  # a dump by its first line: types are no atomic numbers
    assert convert(tmp_path / "dump.water", tmp_path / "two", type_map=["O", "C", "H"]).type_map == ["O", "C", "H"]
    with pytest.raises(DataError, match="types 1, 3"):  # no training would know a species TYPE_0
        convert(tmp_path / "dump.water", tmp_path / "three")
    with pytest.raises(DataError, match="no column 'element'"):
        convert(tmp_path / "dump.water", tmp_path / "four", "ase/lammps-dump-text")


def test_type_map_names_the_types_of_a_system(tmp_path: Path) -> None:
    write_npy(tmp_path / "in", two_systems()[0])
    (tmp_path / "in/type_map.raw").unlink(missing_ok=True)
    with pytest.raises(DataError, match="does not name its types"):
        convert(tmp_path / "in", tmp_path / "out")
    convert(tmp_path / "in", tmp_path / "out", type_map=TYPE_MAP)
    before, after = (open_systems([name], TYPE_MAP)[0].frame(0) for name in ("in", "out"))
    np.testing.assert_array_equal(after.types, np.sort(before.types))


def test_a_path_may_have_the_mark_of_groups(tmp_path: Path) -> None:
    path = tmp_path / "le#arn" / "a.extxyz"
    path.parent.mkdir()
    write(path, Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]))
    assert convert(path, tmp_path / "out").n_frames == 1


@pytest.mark.parametrize("name", ["extxyz", "quip/gap/xyz", "mace/xyz", "xyz"])
def test_every_frame_of_xyz(tmp_path: Path, name: str) -> None:
    frames = atoms_frames()
    for atoms in frames:
        atoms.info["virial"] = -atoms.get_volume() * atoms.get_stress(voigt=False)
    write(tmp_path / "in.xyz", frames, format="xyz" if name == "xyz" else "extxyz")
    report = convert(tmp_path / "in.xyz", tmp_path / "out", name, type_map=["H", "O"])
    assert (report.n_frames, report.n_atoms) == (4, (3, 6))
    if name != "xyz":
        assert report.labels == {"energy": 4, "force": 4, "virial": 4}
        found = by_energy(open_systems(["out"], ["H", "O"]))
        for atoms in frames:
            system, i = found[round(atoms.get_potential_energy(), 6)]
            order = np.argsort([s != "H" for s in atoms.get_chemical_symbols()], kind="stable")
            np.testing.assert_allclose(system.frame(i).forces, atoms.get_forces()[order], atol=1e-7)


def test_a_file_that_was_cut_off_is_told_with_its_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in.extxyz", atoms_frames())
    lines = (tmp_path / "in.extxyz").read_text().splitlines(keepends=True)
    (tmp_path / "cut.extxyz").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="ASE cannot read this as extxyz") as caught:
        convert(tmp_path / "cut.extxyz", tmp_path / "out")
    assert f"cut.extxyz, frame {len(atoms_frames()) - 1} " in str(caught.value.where)
    dump = DUMP.format(box=SQUARE, columns="x y z fx fy fz", first="", second="")
    (tmp_path / "dump.water").write_text(dump + dump[:-20])  # dpdata drops the end with a warning of Python's
    assert convert(tmp_path / "dump.water", tmp_path / "out", type_map=["O", "C", "H"]).n_frames == 1
    assert "incomplete frame" in caplog.text


def test_unusable_inputs_and_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in.extxyz", atoms_frames())
    with pytest.raises(DataError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match="unknown input format 'vasp/outcarr'") as caught:
        convert(tmp_path / "in.extxyz", tmp_path / "out", "vasp/outcarr")
    assert caught.value.remedy == "did you mean 'vasp/outcar'?"
    with pytest.raises(InputError, match="unknown output format 'deepmd/npi'"):
        convert(tmp_path / "in.extxyz", tmp_path / "out", output_format="deepmd/npi")
    with pytest.raises(DataError, match="element 'O', which the type map lacks"):
        convert(tmp_path / "in.extxyz", tmp_path / "out", type_map=["H", "C"])
    (tmp_path / "bad.extxyz").write_text("3\nno properties\nO 0 0\n")
    with pytest.raises(DataError, match="ASE cannot read this as extxyz: "):
        convert(tmp_path / "bad.extxyz", tmp_path / "out")
    (tmp_path / "OUTCAR").write_text("no vasp\n")
    with pytest.raises(DataError, match="dpdata cannot read this as vasp/outcar: "):
        convert(tmp_path / "OUTCAR", tmp_path / "out")
    (tmp_path / "none.xyz").touch()
    with pytest.raises(DataError, match="the file is empty"):
        convert(tmp_path / "none.xyz", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("no structures\n")
    with pytest.raises(DataError, match="the format of the file is not known"):
        convert(tmp_path / "notes.txt", tmp_path / "out")
    names = {"in.extxyz", "bad.extxyz", "OUTCAR", "none.xyz", "notes.txt"}
    assert {p.name for p in tmp_path.iterdir()} == names  # nothing half-written
    convert(tmp_path / "in.extxyz", tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        convert(tmp_path / "in.extxyz", tmp_path / "out")
