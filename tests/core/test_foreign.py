"""Files of other programs where an input was expected."""

from pathlib import Path

import pytest

from dphpc.core.config import read_mapping
from dphpc.core.errors import InputError
from dphpc.core.foreign import recognized

LAMMPS = """# bulk water
units           metal
read_data       water.lmp
pair_style      deepmd graph.pb
pair_coeff      * *
fix             1 all nvt temp 330.0 330.0 0.5
run             1000
"""
VASP = "SYSTEM = water\n ENCUT = 500 ! eV\nIBRION = 0\n"
DATA = "# LAMMPS data\n192 atoms\n2 atom types\n0.0 12.44 xlo xhi\n\nAtoms # atomic\n\n1\t1\t11.83 2.56 2.18\n"
CP2K = "&global\n  PROJECT water\n&END GLOBAL\n"

FILES = {
    "in.lammps": (LAMMPS, "input script of LAMMPS", "docs/md.md#from-lammps"),
    "in.json": (LAMMPS + 'print "temperature: $T"\n', "input script of LAMMPS", "docs/lammps.md"),
    "water.lmp": (DATA, "LAMMPS data", "structure:"),
    "input.xml": ("<?xml version='1.0'?>\n<simulation verbosity='low'>\n</simulation>\n", "i-PI", "dphpc ipi"),
    "INCAR": (VASP, "INCAR of VASP", "data convert"),
    "cp2k.inp": (CP2K, "CP2K", "data convert"),
    "pw.in": ("&CONTROL\n calculation='md'\n/\n", "Quantum ESPRESSO", "data convert"),
    "md.mdp": ("integrator = md\ndt = 0.001\n", "GROMACS", "docs/md.md"),
    "a.xyz": ('1\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3\nO 0 0 0\n', "extxyz", "structure:"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs_are_named(name: str, tmp_path: Path) -> None:
    text, what, remedy = FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"the file seems to be .*{what}") as raised:
        read_mapping(tmp_path / name)
    assert remedy in str(raised.value.remedy)


@pytest.mark.parametrize("text", ["structure: a\nstages: [\n", "- run 1\n- mass 2\n", "", "words\n", "run 1\nrun 2\n"])
def test_other_texts_are_not(text: str) -> None:
    assert recognized(text) is None


def test_pages_that_remedies_name_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    assert "\n## From LAMMPS\n" in (root / "docs" / "md.md").read_text()
    assert all((root / "docs" / page).exists() for page in ("md.md", "lammps.md", "ase.md", "learn.md"))
