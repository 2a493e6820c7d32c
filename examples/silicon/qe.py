"""Run Quantum ESPRESSO's pw.x on silicon cells and read what it prints.

Everything that fixes the *level of theory* of the data set stands in
:data:`SETTINGS`; everything that turns pw.x text into arrays is in
:func:`parse`.  Units outside this file: eV, Angstrom, fs, amu.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.units import Bohr, Rydberg

PSEUDO = "Si.pz-vbc.UPF"

# The three "ecfixed" keys are QE's smooth cutoff: the kinetic energy of waves
# above 16 Ry is raised by 40 Ry, so that the *effective* basis stays the same
# when the cell changes.  Without it a 20 Ry basis has a Pulay stress of about
# 0.9 GPa, i.e. virials that are not the strain derivative of the energies, and
# a model trained on both could fit neither.
SETTINGS = {
    "ecutwfc": "20.0",
    "ecutrho": "64.0",
    "ecfixed": "16.0",
    "qcutz": "40.0",
    "q2sigma": "1.0",
    "occupations": "'smearing'",
    "smearing": "'gaussian'",
    "degauss": "0.01",
}

FS_TO_RY = 1.0 / 0.0483776865302  # one Rydberg time unit is 0.04838 fs
RY_PER_BOHR3 = Rydberg / Bohr**3


@dataclass(frozen=True)
class Kpoints:
    """k-points in crystal coordinates (n, 3) of a cell, and their weights (n,)."""

    points: np.ndarray
    weights: np.ndarray

    @classmethod
    def folded(cls, vectors: np.ndarray) -> Kpoints:
        """128 points of the fcc Brillouin zone, folded into a supercell of the fcc crystal.

        ``vectors`` (3, 3) holds the supercell's vectors in units of the lattice constant.  The points
        are those of a 4 x 4 x 4 grid along the cubic axes whose indices have an odd sum.  They have the full
        cubic symmetry, which a shifted Monkhorst-Pack grid of an fcc cell has not: with that one the perfect
        crystal feels forces of 0.025 eV/Angstrom in a supercell.  All supercells sample the same points, so
        that their energies per atom can be compared.  Of a point and its negative, which have the same
        states, one is kept.
        """
        n = 4
        grid = np.stack(np.meshgrid(*3 * [np.arange(2 * n)], indexing="ij"), axis=-1).reshape(-1, 3)
        grid = grid[grid.sum(axis=1) % 2 == 1]
        doubled = np.rint(grid @ (2 * vectors).T).astype(int) % (2 * n)  # vectors are multiples of a half
        points = np.unique(doubled, axis=0)
        kept, weights = np.unique([max(tuple(k), tuple(-k % (2 * n))) for k in points], axis=0, return_counts=True)
        return cls(kept / (2 * n), weights)

    def gpu(self) -> str:
        rows = [" ".join(f"{x:.8f}" for x in k) + f" {w}\n" for k, w in zip(self.points, self.weights, strict=True)]
        return f"K_POINTS crystal\n{len(rows)}\n" + "".join(rows)


@dataclass
class Frames:
    """Labelled configurations of one pw.x run.

    ``coord`` (n, atoms, 3) Angstrom, ``cell`` (3, 3) Angstrom, ``energy`` (n,)
    eV, ``force`` (n, atoms, 3) eV/Angstrom, ``virial`` (n, 3, 3) eV.  ``next``
    holds the positions pw.x would have visited after the last frame (MD only).
    """

    coord: np.ndarray
    cell: np.ndarray
    energy: np.ndarray
    force: np.ndarray
    virial: np.ndarray
    next: np.ndarray | None = None


@dataclass(frozen=True)
class Runner:
    """How to call pw.x on this machine."""

    pw: str
    pseudo_dir: Path

    def __call__(self, folder: Path, text: str) -> str:
        """Output of pw.x for input ``text``, or "" if it failed or did not converge.

        A run that finished with this very input is read back, not repeated.
        """
        inp, out = folder / "pw.in", folder / "pw.out"
        text = text.replace("@PSEUDO_DIR@", str(self.pseudo_dir))
        if not (finished(out) and inp.read_text() == text):
            folder.mkdir(parents=True, exist_ok=True)
            inp.write_text(text)
            with out.open("w") as sink, (folder / "pw.err").open("w") as err:
                subprocess.run([*self.pw.split(), "-in", "pw.in"], cwd=folder, stdout=sink, stderr=err)
            shutil.rmtree(folder / "tmp", ignore_errors=True)
        return out.read_text() if finished(out) else ""


def finished(out: Path) -> bool:
    """True if pw.x ended normally with a converged density."""
    if not out.exists():
        return False
    text = out.read_text()
    return "JOB DONE" in text and "convergence NOT achieved" not in text


def scf_input(atoms: Atoms, kpoints: Kpoints) -> str:
    """Input of one single-point run."""
    return _input(atoms, kpoints, {"calculation": "'scf'", "disk_io": "'none'"})


def md_input(atoms: Atoms, kpoints: Kpoints, steps: int, dt: float) -> str:
    """Input of ``steps`` constant-energy steps of ``dt`` fs from ``atoms``' velocities."""
    control = {
        "calculation": "'md'",
        "nstep": str(steps),
        "dt": f"{dt * FS_TO_RY:.8f}",
        "disk_io": "'low'",
    }
    ions = {
        "ion_dynamics": "'verlet'",
        "ion_velocities": "'from_input'",
        "ion_temperature": "'not_controlled'",
        "pot_extrapolation": "'second_order'",
        "wfc_extrapolation": "'second_order'",
    }
    # pw.x 6.7 reads velocities in bohr per *Rydberg* time unit.
    velocity = atoms.arrays["velocity_fs"] / Bohr / FS_TO_RY
    gpu = "ATOMIC_VELOCITIES a.u.\n" + _rows("Si", velocity, "{:.14f}")
    return _input(atoms, kpoints, control, ions) + gpu


def _input(atoms: Atoms, kpoints: Kpoints, control: dict[str, str], ions: dict[str, str] | None = None) -> str:
    control = {
        **control,
        "prefix": "'si'",
        "outdir": "'./tmp'",
        "pseudo_dir": "'@PSEUDO_DIR@'",
        "tprnfor": ".true.",
        "tstress": ".true.",
    }
    system = {
        "ibrav": "0",
        "nat": str(len(atoms)),
        "ntyp": "1",
        "nosym": ".true.",
        **SETTINGS,
    }
    electrons = {"conv_thr": "1.0d-9", "mixing_beta": "0.5"}
    text = _namelist("control", control) + _namelist("system", system) + _namelist("electrons", electrons)
    if ions:
        text += _namelist("ions", ions)
    text += f"ATOMIC_SPECIES\nSi 28.0855 {PSEUDO}\n" + kpoints.gpu()
    text += "CELL_PARAMETERS angstrom\n" + _rows("", atoms.cell.array)
    return text + "ATOMIC_POSITIONS angstrom\n" + _rows("Si", atoms.positions)


def _namelist(name: str, keys: dict[str, str]) -> str:
    # One key per line: some readers of QE input (dpdata's) need it so.
    return f"&{name}\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + "/\n"


def _rows(head: str, table: np.ndarray, form: str = "{:.12f}") -> str:
    return "".join(" ".join([head, *(form.format(x) for x in row)]).strip() + "\n" for row in table)


def parse(text: str, atoms: Atoms) -> Frames:
    """Read energies, forces and stresses of a run that started at ``atoms``.

    The energy is the line marked ``!``: with smearing that is the free energy
    F = E - TS, the one of which pw.x's forces are the derivative.  pw.x prints
    the stress positive in compression, so ``virial = +stress * volume``.
    """
    n = len(atoms)
    energy = [float(x) for x in re.findall(r"^!\s+total energy\s+=\s+(\S+) Ry", text, re.M)]
    forces = [_floats(block, n, slice(-3, None)) for block in re.split(r"Forces acting on atoms.*\n\s*\n", text)[1:]]
    stress = [_floats(block, 3, slice(0, 3)) for block in re.split(r"total\s+stress .*\n", text)[1:]]
    moved = [_floats(block, n, slice(1, 4)) for block in re.split(r"ATOMIC_POSITIONS.*\n", text)[1:]]
    coord = [atoms.positions, *moved][: len(energy)]
    if not len(energy) == len(forces) == len(stress) == len(coord):
        raise ValueError("pw.x output is incomplete")
    return Frames(
        coord=np.array(coord),
        cell=atoms.cell.array.copy(),
        energy=np.array(energy) * Rydberg,
        force=np.array(forces) * Rydberg / Bohr,
        virial=np.array(stress) * RY_PER_BOHR3 * atoms.get_volume(),
        next=moved[-1] if moved else None,
    )


def _floats(block: str, rows: int, columns: slice) -> np.ndarray:
    lines = block.splitlines()[:rows]
    return np.array([[float(x) for x in line.split()[columns]] for line in lines])


def version(text: str) -> str:
    """Version of pw.x as it names itself, such as ``6.7MaX``."""
    found = re.search(r"Program PWSCF v\.(\S+)", text)
    return found.group(1) if found else "unknown"
