"""Files of other programs, recognized by their text where an input was expected."""

from __future__ import annotations

import re
from typing import NamedTuple


class Foreign(NamedTuple):
    """A kind of file: what it is, patterns of which `least` must be found, and what to do with it here."""

    what: str
    pattern: str
    remedy: str
    least: int = 1


_LAMMPS_COMMANDS = (
    "units|atom_style|boundary|read_data|read_restart|pair_style|pair_coeff|mass|velocity|fix|timestep|thermo|dump|run|"
    "minimize|neighbor|neigh_modify|plugin|variable"
)
_CALCULATOR = "dphpc data convert takes the output of such a calculation; molecular dynamics is dphpc md run.yaml"

KINDS = (
    Foreign("LAMMPS data", r"^\s*\d+\s+(atoms|atom types)\s*(?:#.*)?$", "name it in a run file: structure: FILE", 2),
    Foreign(
        "an input script of LAMMPS",
        rf"^\s*({_LAMMPS_COMMANDS})\s+\S",
        "dphpc md takes a run file: docs/md.md#from-lammps has the key for each command; LAMMPS itself runs the model "
        "with pair_style dphpc: docs/lammps.md",
        3,
    ),
    Foreign(
        "an input of i-PI", r"^\s*(<simulation)\b", "i-pi FILE starts the server, dphpc ipi is its driver: docs/ase.md"
    ),
    Foreign("an input of CP2K", r"(?i)^\s*&(GLOBAL|FORCE_EVAL)\b", _CALCULATOR),
    Foreign("an input of Quantum ESPRESSO", r"(?i)^\s*&(control|system|electrons)\b", _CALCULATOR),
    Foreign("an INCAR of VASP", r"^\s*(ENCUT|PREC|EDIFF|IBRION|ISMEAR|SIGMA|NSW|POTIM|ISIF|ALGO)\s*=", _CALCULATOR, 2),
    Foreign("an .mdp file of GROMACS", r"^\s*(integrator|dt|nsteps|tcoupl|ref[-_]t)\s*=", "docs/md.md has the keys", 2),
    Foreign("a structure in extxyz", r"^(\d+\s*\n.*Lattice=)", "name it in a run file: structure: FILE"),
)
"""The kinds that are known, the first that fits counts."""


def recognized(text: str) -> Foreign | None:
    """The kind of file that a text seems to be, else None."""
    for kind in KINDS:
        if len(set(re.findall(kind.pattern, text, re.MULTILINE))) >= kind.least:
            return kind
    return None
