from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixedLine, FixedPlane, FixScaled
from ase.io import write
from ase.units import fs

from dphpc.core.box import Box
from dphpc.core.errors import DataError, DphpcError, InputError
from dphpc.md.lammps_data import read_lammps_data
from dphpc.md.structures import deal, masses_of, read_structure
from dphpc.parallel.comm import Serial
from dphpc.parallel.domain import Domain

HEADER = """LAMMPS data file via write_data, version 2 Aug 2023, timestep = 100, units = metal

3 atoms
2 atom types
2 bonds

1.0 11.0 xlo xhi
-2.0 8.0 ylo yhi
0.0 12.0 zlo zhi
3.0 -2.0 1.5 xy xz yz

Masses

1 15.9994 # O
2 1.008   # H
"""
ATOMS = {
    "atomic": "3 2 1.5 1 0.25 0 0 1\n1 1 2 3 4 0 0 0\n2 2 5e0 6 7 -1 0 0\n",
    "charge": "3 2 0.4 1.5 1 0.25 0 0 1\n1 1 -0.8 2 3 4 0 0 0\n2 2 0.4 5 6 7 -1 0 0\n",
    "full": "3 1 2 0.4 1.5 1 0.25 0 0 1\n1 1 1 -0.8 2 3 4 0 0 0\n2 1 2 0.4 5 6 7 -1 0 0\n",
    "molecular": "3 1 2 1.5 1 0.25 0 0 1\n1 1 1 2 3 4 0 0 0\n2 1 2 5 6 7 -1 0 0\n",
}
CLEAR = ("atomic", "charge", "full")
"""Styles that the columns alone tell."""

TAIL = "\nVelocities\n\n1 0.1 0.2 0.3\n2 0.4 0.5 0.6\n3 0.7 0.8 0.9\n\nBonds\n\n1 1 1 2\n2 1 1 3\n"


@pytest.mark.parametrize(("style", "hint"), [*((s, f" # {s}") for s in ATOMS), *((s, "") for s in CLEAR)])
def test_lammps_styles(tmp_path: Path, style: str, hint: str) -> None:
    path = tmp_path / "x.lmp"
    path.write_text(f"{HEADER}\nAtoms{hint}\n\n{ATOMS[style]}{TAIL}")
    data = read_lammps_data(path)
    assert data.ids.tolist() == [3, 1, 2]
    assert data.types.tolist() == [2, 1, 2]
    assert data.positions[0].tolist() == [1.5, 1, 0.25]
    assert data.images.tolist() == [[0, 0, 1], [0, 0, 0], [-1, 0, 0]]
    assert data.velocities is not None
    assert data.velocities[0].tolist() == [0.7, 0.8, 0.9], "velocities go by id, not by line"
    assert data.box.matrix.tolist() == [[10, 0, 0], [3, 10, 0], [-2, 1.5, 12]]
    assert data.box.origin.tolist() == [1, -2, 0]
    assert data.labels == {1: "O", 2: "H"}
    assert data.masses == {1: 15.9994, 2: 1.008}


def test_lammps_type_labels_and_general_box(tmp_path: Path) -> None:
    path = tmp_path / "x.data"
    path.write_text(
        "c\n\n2 atoms\n2 atom types\n9 1 0 avec\n0 8 1 bvec\n1 0 7 cvec\n1 2 3 abc origin\n\n"
        "Atom Type Labels\n\n1 Si\n2 Ge\n\nMasses\n\nSi 28.1\nGe 72.6\n\nAtoms # atomic\n\n1 Ge 0 0 0\n2 Si 1 1 1\n"
    )
    data = read_lammps_data(path)
    assert data.types.tolist() == [2, 1]
    assert data.masses == {1: 28.1, 2: 72.6}
    assert data.box.matrix.tolist() == [[9, 1, 0], [0, 8, 1], [1, 0, 7]]
    source = read_structure(str(path), None, None)
    assert sorted(source.species) == ["Ge", "Si"]


def test_the_water_file_needs_and_takes_names(tmp_path: Path) -> None:
    path = tmp_path / "w.lmp"
    box = "0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n"
    path.write_text(f"# c\n2 atoms\n2 atom types\n{box}\nAtoms # metal\n\n1 1 1 1 1\n2 2 2 2 2\n")
    with pytest.raises(InputError, match=r"(?s)does not name its 2 types.*type_map"):
        read_structure(str(path), None, None)
    with pytest.raises(InputError, match="atoms of type 2"):
        read_structure(str(path), ["O"], None)
    source = read_structure(str(path), ["O", "H"], [True, True, False])
    assert source.species == ["O", "H"]
    assert source.box.periodic == (True, True, False)
    with pytest.raises(InputError, match=r"(?s)species 'H', which the model does not know.*O, Si"):
        source.with_types_of(["O", "Si"], "w.lmp")
    assert source.with_types_of(["H", "C", "O"], "w.lmp").read(0, 2)["types"].tolist() == [2, 0]


def test_a_type_map_in_the_wrong_order_is_noticed_by_the_masses(tmp_path: Path) -> None:
    path = tmp_path / "x.lmp"
    path.write_text(f"{HEADER}\nAtoms # atomic\n\n{ATOMS['atomic']}")
    with pytest.raises(InputError, match="calls a type 'H' that has the mass of O"):
        read_structure(str(path), ["H", "O"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "no Atoms section"),
        (HEADER.replace("metal", "real"), "units 'real'"),
        (HEADER + "\nAtoms # atomic\n\n1 1 0 0 0\n", "Atoms has 1 lines"),
        (HEADER + "\nAtoms # atomic\n\n1 1 0 0 x\n2 1 0 0 0\n3 1 1 1 1\n", "Atoms cannot be read"),
        (HEADER + "\nAtoms # full\n\n1 1 0 0 0\n", "style 'full' have 5 columns"),
        (HEADER + "\nAtoms\n\n1 1 1 1 1 1\n", "style is not clear from 6 columns"),
        # As many columns as `full` has, and as `charge` with image flags.
        (HEADER + "\nAtoms # sphere\n\n" + "1 1 2.0 1.0 0 0 0\n" * 3, "'sphere' is not read"),
        (HEADER + "\nAtoms # dipole\n\n" + "1 1 0.5 0 0 0 1 0 0\n" * 3, "'dipole' is not read"),
        (HEADER.replace("1.0 11.0", "1.0 eleven"), "header line"),
        (HEADER.replace("3 atoms", "-3 atoms"), "announces -3 atoms"),
        (f"{HEADER}\nAtoms\n\n{ATOMS['atomic']}\nVelocities\n\n1 0 0 0\n2 0 0 0\n4 0 0 0\n", "different atoms"),
        (HEADER + "\nAtoms # atomic\n\n" + ATOMS["atomic"].replace("3 2", "2 2"), "same id"),
        # The same without a hint: a diameter is no type, and a dipole no image flag.
        (HEADER + "\nAtoms\n\n" + "1 1 1.2 1.0 0 0 0\n" * 3, r"(?s)1\.2 in column 3.*style 'full'"),
        (HEADER + "\nAtoms\n\n" + "1 1 0.5 0 0 0 0.3 0 0\n" * 3, r"(?s)0\.3 in column 7.*style 'charge'"),
        (HEADER + "\nAtoms # atomic\n\n" + ATOMS["atomic"] + "4 1 5 5 5 0 0 0\n", "more lines than the header says"),
        (f"{HEADER}\nAtoms\n\n{ATOMS['atomic']}{TAIL.replace('Bonds', '4 0 0 0')}", "more lines than the header"),
        (HEADER + "3 1.008 # H\n\nAtoms # atomic\n\n" + ATOMS["atomic"], "more lines than the header says"),
        (HEADER + "\nAtoms # atomic\n\n" + ATOMS["atomic"].replace("2 2", "2 3"), r"line 3 of Atoms has the type 3"),
        (HEADER + "\nAtoms # atomic\n\n" + ATOMS["atomic"].replace("1 1 2", "0 1 2"), r"line 2 of Atoms has the id 0"),
        (HEADER.replace("2 1.008", "3 1.008"), "there is a type 3"),
        (HEADER.replace("2 1.008", "H 1.008"), "Masses names the type 'H'"),
        (HEADER.replace("Masses", "Atom Type Labels\n\nO 1\nH 2\n\nMasses"), r"Labels cannot be read: O 1"),
        (HEADER.replace("Masses", "Atom Type Labels\n\n1\n2\n\nMasses"), r"Labels cannot be read: 1"),
        (HEADER.replace("-2.0 8.0", "8.0 -2.0") + "\nAtoms\n\n" + ATOMS["atomic"], "along y is from 8 to -2"),
        (HEADER.replace("-2.0 8.0 ylo yhi\n", "") + "\nAtoms\n\n" + ATOMS["atomic"], "box along y is missing"),
        (HEADER[HEADER.index("3 atoms") :] + "\nAtoms\n\n" + ATOMS["atomic"], "announces no atoms"),
        (HEADER.partition("2 atom types")[0] + "\nAtoms\n\n" + ATOMS["atomic"], "announces no types of atoms"),
        (HEADER + "\nAtoms # atomic\n\n" + ATOMS["atomic"].replace("0.25", "nan"), "not finite"),
    ],
)
def test_damaged_lammps_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.lmp"
    path.write_text(text)
    with pytest.raises(DphpcError, match=message):
        read_structure(str(path), None, None)


def test_isotopes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lmp"
    path.write_text(f"{HEADER}\nAtoms\n\n{ATOMS['atomic']}".replace("15.9994 # O", "2.014   # H"))
    with pytest.raises(InputError, match=r"several types .* are 'H', .* \(2\.014 and 1\.008 u\)"):
        read_structure(str(path), None, None)
    path.write_text(path.read_text().replace("1 1 2 3 4", "1 2 2 3 4"))
    assert read_structure(str(path), None, None).masses == {"H": 1.008}, "of the type that has atoms"


@pytest.mark.parametrize("name", ["POSCAR", "x.vasp", "x.cif", "x.extxyz"])
def test_files_that_ase_reads(tmp_path: Path, name: str) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    path = str(tmp_path / name)
    kind = {"POSCAR": "vasp", "x.vasp": "vasp", "x.cif": "cif", "x.extxyz": "extxyz"}[name]
    write(path, atoms, format=kind)
    source = read_structure(path, None, None)
    assert source.species == ["Cl", "Na"]
    assert source.box.periodic == (True, True, True)
    assert source.box.volume == pytest.approx(atoms.get_volume(), rel=1e-6)
    rows = source.read(0, 2)
    assert sorted(rows["types"].tolist()) == [0, 1]
    d = rows["positions"][1] - rows["positions"][0]
    assert np.linalg.norm(source.box.wrap(d[None] + 1.0) - source.box.wrap(np.ones((1, 3)))) > 2.0


@pytest.mark.parametrize("name", ["x.extxyz", "x.traj", "XDATCAR"])
def test_the_last_of_several_frames_is_taken(tmp_path: Path, name: str) -> None:
    frames = [Atoms("Ar2", [[1.0, 1.0, 1.0], [4.0, 4.0, 4.0 + k]], cell=[9, 9, 9], pbc=True) for k in range(3)]
    for n in (1, 2, 3):
        write(tmp_path / name, frames[:n])
        source = read_structure(str(tmp_path / name), None, None)
        assert source.last_of_several == (n > 1)
        assert source.with_types_of(["Ar"], name).last_of_several == (n > 1)
        assert source.read(0, 2)["positions"][1, 2] == pytest.approx(3.0 + n)


def test_velocities_and_masses_come_along(tmp_path: Path) -> None:
    atoms = bulk("Ar", cubic=True)
    atoms.set_velocities(np.arange(12).reshape(4, 3) / (1000 * fs))
    path = str(tmp_path / "x.extxyz")
    write(path, atoms)
    source = read_structure(path, None, None)
    assert source.has_velocities
    np.testing.assert_allclose(source.read(0, 4)["velocities"], np.arange(12).reshape(4, 3), atol=1e-6)
    assert not read_structure(_written(tmp_path, bulk("Ar")), None, None).has_velocities


@pytest.mark.parametrize("name", ["vel", "velo", "velocities"])
def test_velocities_of_no_known_unit_are_told(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    atoms = bulk("Ar", cubic=True)
    atoms.set_array(name, np.ones((4, 3)))
    assert not read_structure(_written(tmp_path, atoms), None, None).has_velocities
    assert f"'{name}'" in caplog.text
    assert "momenta" in caplog.text


def test_ids_of_the_file_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms = bulk("Ar", cubic=True)
    atoms.set_array("id", np.array([7, 3, 9, 4]))
    source = read_structure(_written(tmp_path, atoms), None, None)
    assert source.read(0, 4)["ids"].tolist() == [7, 3, 9, 4]
    assert source.max_id == 9
    assert not caplog.text
    for bad in ([0, 1, 2, 3], [1, 2, 2, 3], [0.5, 1.5, 2.5, 3.5]):
        atoms.set_array("id", None)
        atoms.set_array("id", np.array(bad))
        assert read_structure(_written(tmp_path, atoms), None, None).read(0, 4)["ids"].tolist() == [1, 2, 3, 4]
        assert "'id'" in caplog.text
        caplog.clear()


def test_a_dump_without_elements_needs_a_type_map(tmp_path: Path) -> None:
    path = tmp_path / "x.lammpstrj"
    text = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id type"
    path.write_text(f"{text} element x y z\n1 1 Si 0 0 0\n")
    assert read_structure(str(path), None, None).species == ["Si"]
    path.write_text(f"{text} x y z\n1 1 0 0 0\n")
    with pytest.raises(InputError, match="no column 'element'"):  # a type is no atomic number
        read_structure(str(path), None, None)
    path.write_text(f"{text} x y z vx vy vz\n1 2 0 0 0 1 2 3\n")
    source = read_structure(str(path), ["O", "Si"], None)
    assert source.species == ["Si"]
    np.testing.assert_allclose(source.read(0, 1)["velocities"], [[1.0, 2.0, 3.0]], rtol=1e-12)  # Å/ps
    with pytest.raises(DataError, match="beyond the 1 that 'type_map' names"):
        read_structure(str(path), ["O"], None)


def test_the_box_of_a_dump_begins_where_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "x.dump"
    bounds = "ITEM: BOX BOUNDS xy xz yz pp pp ff\n-5 6 1\n-3 2 0\n-1 9 0\n"
    atoms = "ITEM: ATOMS id element x y z\n1 Si -4 -2 8\n"
    path.write_text(f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\n{bounds}{atoms}")
    box = read_structure(str(path), None, None).box
    np.testing.assert_allclose(box.matrix, [[10, 0, 0], [1, 5, 0], [0, 0, 10]], rtol=1e-14)
    assert box.origin.tolist() == [-5, -3, -1]


def test_a_dump_in_other_units_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dump"
    text = "TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id element"
    text = f"\nITEM: TIME\n0\nITEM: {text} x y z vx vy vz\n1 Si 0 0 0 1 2 3\n"
    path.write_text(f"ITEM: UNITS\nmetal{text}")
    np.testing.assert_allclose(read_structure(str(path), None, None).read(0, 1)["velocities"], [[1.0, 2.0, 3.0]])
    path.write_text(f"ITEM: UNITS\nreal{text}")  # velocities in Å/fs
    with pytest.raises(DataError, match="in units 'real'"):
        read_structure(str(path), None, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("x.foo", "hello\n", "its format is not known"), ("x.extxyz", "", "the file is empty")],
)
def test_what_is_no_structure(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_structure(str(tmp_path / name), None, None)


def _written(tmp_path: Path, atoms: Atoms) -> str:
    path = str(tmp_path / "y.extxyz")
    write(path, atoms)
    return path


def test_open_directions_get_a_box_around_the_atoms(tmp_path: Path) -> None:
    molecule = Atoms("OH2", [[0, 0, 5.0], [1, 0, 5], [0, 1, 6]])
    source = read_structure(_written(tmp_path, molecule), None, None)
    assert source.box.periodic == (False, False, False)
    fractional = source.box.to_fractional(molecule.positions)
    assert fractional.min() > 0
    assert fractional.max() < 1
    slab = Atoms("Ar2", [[0, 0, 5.0], [1, 0, 9.0]], cell=[[4, 0, 0], [1, 4, 0], [0, 0, 0]], pbc=[1, 1, 0])
    box = read_structure(_written(tmp_path, slab), None, None).box
    assert box.periodic == (True, True, False)
    assert box.matrix[:2].tolist() == [[4, 0, 0], [1, 4, 0]]
    z = box.to_fractional(slab.positions)[:, 2]
    assert 0 < z.min() < z.max() < 1


def test_an_open_direction_has_no_images(tmp_path: Path) -> None:
    """Else atoms of a slab would be written far from each other."""
    path = tmp_path / "slab.lmp"
    atoms = "1 1 0 0 0 0 2 3\n2 1 2 2 2 1 0 -2\n"
    bounds = "0 5 xlo xhi\n0 5 ylo yhi\n0 9 zlo zhi\n"
    path.write_text(f"slab\n\n2 atoms\n1 atom types\n{bounds}\nAtoms # atomic\n\n{atoms}")
    for periodic, images in ((None, [[0, 2, 3], [1, 0, -2]]), ([True, True, False], [[0, 2, 0], [1, 0, 0]])):
        source = read_structure(str(path), ["Ar"], periodic)
        assert source.box.periodic == tuple(periodic or [True] * 3)
        assert source.read(0, 2)["images"].tolist() == images


def test_what_a_run_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)no file 'nothere.cif'.*current directory"):
        read_structure("nothere.cif", None, None)
    (tmp_path / "bad.cif").write_text("nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_structure(str(tmp_path / "bad.cif"), None, None)
    (tmp_path / "in.dat").write_text(f"{HEADER}\nAtoms # atomic\n\n{ATOMS['atomic']}")
    with pytest.raises(DataError, match=r"by its name LAMMPS data \(\.lmp, .*data\.\*\), extxyz"):
        read_structure(str(tmp_path / "in.dat"), None, None)


@pytest.mark.parametrize("name", ["POSCAR", "x.extxyz"])
def test_atoms_that_the_file_fixes(tmp_path: Path, name: str) -> None:
    atoms, path = bulk("Ar", cubic=True), str(tmp_path / name)
    kind = FixScaled if name == "POSCAR" else FixCartesian
    atoms.set_constraint([FixAtoms([0, 2]), kind([1], [True] * 3)])
    write(path, atoms)
    for given, expected in ((True, [7, 7, 7, 0]), (False, [0] * 4)):
        assert read_structure(path, None, None, with_fixed=given).read(0, 4)["fixed"].tolist() == expected
    atoms.set_constraint([FixAtoms([0]), kind([2], [True, False, True]), kind([1], [False, False, True])])
    write(path, atoms)
    assert read_structure(path, None, None).read(0, 4)["fixed"].tolist() == [7, 4, 5, 0]


@pytest.mark.parametrize(
    ("flags", "number"),
    [("T T F", 4), ("F F F", 7), ("T T T", 0), ("T F F", 6), ("F F T", None), ("F T T", None), ("T F T", 2)],
)
def test_selective_dynamics_are_along_box_vectors(tmp_path: Path, flags: str, number: int | None) -> None:
    """Where what is left free is a Cartesian direction or plane, the run does the same; else it is refused."""
    path = tmp_path / "POSCAR"
    # a lies along x, b in the xy plane, c in the xz plane.
    cell = "4.0 0.0 0.0\n-2.0 3.4641016151377544 1e-16\n0.5 0.0 9.0\n"
    path.write_text(f"slab\n1.0\n{cell}Ar\n2\nSelective dynamics\nDirect\n0.1 0.1 0.1 T T T\n0.5 0.5 0.5 {flags}\n")
    if number is not None:
        assert read_structure(str(path), None, None).read(0, 2)["fixed"].tolist() == [0, number]
        return
    message = (
        rf"(?s)fixes atom 2 along {'a and b' if flags == 'F F T' else 'a'} of a skewed box.*fixed: \{{\}} frees all"
    )
    with pytest.raises(DataError, match=message):
        read_structure(str(path), None, None)
    assert not read_structure(str(path), None, None, with_fixed=False).read(0, 2)["fixed"].any()


@pytest.mark.parametrize(
    ("after", "flags", "message"),
    [("", "T T f", "flags of atom 2 are 'T T f'"), ("", "T T .FALSE.", "flags of atom 2 are 'T T .FALSE.'"),
     ("Direct\n0.1 0 0\n0 0 0.2\n", "T T F", r"(?s)velocities are along the box vectors.*'Direct'"),
     ("\n0.001 0 0\n0 0.002 0\n", "T T F", None), ("Cartesian\n0.001 0 0\n0 0.002 0\n", "T T F", None)],
)  # fmt: skip
def test_what_ase_does_not_know_of_a_poscar(tmp_path: Path, after: str, flags: str, message: str | None) -> None:
    """It takes such flags for T, and velocities of any kind for Cartesian ones in Å/fs."""
    path = tmp_path / "POSCAR"
    lines = f"Ar\n1.0\n4 0 0\n0 4 0\n0 0 9\nAr\n2\nSelective dynamics\nDirect\n0 0 0 T T T\n0.5 0.5 0.5 {flags}\n"
    path.write_text(lines + after)
    if message is not None:
        with pytest.raises(DataError, match=message):
            read_structure(str(path), None, None)
        return
    rows = read_structure(str(path), None, None).read(0, 2)
    assert rows["fixed"].tolist() == [0, 4]
    np.testing.assert_allclose(rows["velocities"][:, :2], [[1.0, 0.0], [0.0, 2.0]], rtol=1e-12)


def test_constraints_of_ases_own_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms, path = bulk("Ar", cubic=True), str(tmp_path / "x.traj")
    atoms.set_constraint([FixedPlane([1], [0, 0, -1]), FixedLine([2], [0, 1, 0])])
    write(path, atoms)
    assert read_structure(path, None, None).read(0, 4)["fixed"].tolist() == [0, 4, 5, 0]
    assert not caplog.messages
    atoms.set_constraint(FixedLine([2], [0, 1, 1]))
    write(path, atoms)
    with pytest.raises(DataError, match=r"FixedLine along \[0.0, 0.7071, 0.7071\]"):
        read_structure(path, None, None)
    atoms.set_constraint(FixBondLengths([(0, 1)]))
    write(path, atoms)
    assert not read_structure(path, None, None).read(0, 4)["fixed"].any()
    assert "FixBondLengths in" in caplog.messages[0]


def test_a_mass_unlike_its_elements_is_told(caplog: pytest.LogCaptureFixture) -> None:
    masses_of(["Si", "O"], {}, {"Si": 28.0, "O": 15.9994}, ["Si", "O"])
    masses_of(["Si"], {"Si": 30.0}, {"Si": 15.999}, ["Si"])
    assert not caplog.messages
    masses_of(["Si"], {}, {"Si": 15.999}, ["Si"])
    assert caplog.messages == ["the structure gives 'Si' a mass of 15.999 u, the element has 28.085 u"]


def test_masses() -> None:
    masses = masses_of(["O", "H", "Xx"], {"H": 2.014}, {"O": 17.0, "H": 1.0}, ["O", "H"])
    assert masses[:2].tolist() == [17.0, 2.014]
    assert np.isnan(masses[2])
    with pytest.raises(InputError, match="mass of 'Xx' is not known"):
        masses_of(["O", "Xx"], {}, {}, ["Xx"])
    with pytest.raises(InputError, match=r"(?s)'masses' names 'h'"):
        masses_of(["O", "H"], {"h": 1.0}, {}, ["O"])


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("replicate", [(1, 1, 1), (3, 2, 4)])
def test_replicas_are_dealt_out_once_each(tmp_path: Path, n_ranks: int, replicate: tuple[int, int, int]) -> None:
    # Atoms on the cut planes, and one outside the cell: where mistakes in dealing would show.
    fractional = [[0, 0, 0], [0.5, 0.5, 0.5], [1.25, -0.5, 1.25]]
    atoms = Atoms("Ar3", scaled_positions=fractional, cell=[[6, 0, 0], [2, 5, 0], [1, 1, 7]], pbc=True)
    source = read_structure(_written(tmp_path, atoms), None, None)
    box = source.box.replicated(replicate)
    states = [deal(source, replicate, source.box, Domain.even(box, n_ranks, rank), Serial()) for rank in range(n_ranks)]
    ids = np.concatenate([s.ids for s in states])
    assert sorted(ids) == list(range(1, 3 * int(np.prod(replicate)) + 1))
    order = np.argsort(ids)
    folded = np.concatenate([s.positions for s in states])[order]
    corners = np.stack(np.meshgrid(*(np.arange(r) for r in replicate), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    np.testing.assert_allclose(folded, (source.box.wrap(atoms.positions) + corners @ atoms.cell.array).reshape(-1, 3))
    if max(replicate) == 1:
        true = np.concatenate([s.positions + s.images @ box.matrix for s in states])[order]
        np.testing.assert_allclose(true, atoms.positions, atol=1e-12)


def test_an_atom_on_a_face_by_rounding_is_kept() -> None:
    box = Box(np.eye(3) * 10.0)
    assert Domain.even(box, 2, 1).place(np.array([np.nextafter(1, 2)]), 2).tolist() == [1]
