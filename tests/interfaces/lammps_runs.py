"""Inputs of LAMMPS, and what its runs gave, in our frame and in eV and Å."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dphpc.interfaces.lammps_model import arrays_of, packed
from dphpc.model.dp_model import DPModel
from dphpc.potential.deep_pot import DeepPot

BAR = 1.6021765e6
"""LAMMPS' bar per eV/Å³ (nktv2p of units metal)."""

MARGIN = 2.0
"""Å around open structures."""


@dataclass(frozen=True)
class Frame:
    """A structure: positions (n, 3) Å, cell (3, 3) Å or None for open boundaries, types (n,)."""

    positions: np.ndarray
    cell: np.ndarray | None
    types: np.ndarray

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3): v @ rotation turns our vectors into LAMMPS', whose cell is a lower triangle."""
        if self.cell is None:
            return np.eye(3)
        q, r = np.linalg.qr(self.cell.T)
        return q * np.sign(np.diag(r))

    def data(self, n_types: int, velocities: np.ndarray | None = None, mass: float = 12.0) -> str:
        """A data file."""
        x = self.positions @ self.rotation
        if self.cell is None:
            low, high = x.min(axis=0) - MARGIN, x.max(axis=0) + MARGIN
            tilts = np.zeros(3)
        else:
            cell = self.cell @ self.rotation
            low, high, tilts = np.zeros(3), np.diag(cell), np.array([cell[1, 0], cell[2, 0], cell[2, 1]])
        lines = ["# made by a test", "", f"{len(x)} atoms", f"{n_types} atom types"]
        lines += [f"{low[a]:.17g} {high[a]:.17g} {s}lo {s}hi" for a, s in enumerate("xyz")]
        lines += ["{:.17g} {:.17g} {:.17g} xy xz yz".format(*tilts)]
        lines += ["", "Masses", "", *(f"{t + 1} {mass + t}" for t in range(n_types)), "", "Atoms # atomic", ""]
        rows = enumerate(zip(self.types, x, strict=True))
        lines += [f"{i + 1} {t + 1} {r[0]:.17g} {r[1]:.17g} {r[2]:.17g}" for i, (t, r) in rows]
        if velocities is not None:
            v = velocities @ self.rotation
            lines += ["", "Velocities", "", *(f"{i + 1} {u[0]:.17g} {u[1]:.17g} {u[2]:.17g}" for i, u in enumerate(v))]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Result:
    """Of a frame: eV, eV/Å; virials are −Σ ∂E/∂r ⊗ r, rows by force."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray
    atom_energy: np.ndarray
    atom_virial: np.ndarray
    atom_stress: np.ndarray


class Lammps:
    """Runs inputs in a folder; `ranks` starts a command on several."""

    def __init__(self, lmp: list[str], plugin: Path, folder: Path) -> None:
        self.lmp, self.plugin, self.folder = lmp, plugin, folder

    def save(self, name: str, model: DPModel) -> Path:
        """Export a model."""
        path = self.folder / name
        path.write_bytes(packed(arrays_of(model)))
        return path

    def start(self, frame: Frame, n_types: int = 2, **data: object) -> str:
        """The head of an input: a box with a frame's atoms."""
        path = self.folder / f"data.{len(list(self.folder.glob('data.*')))}"
        path.write_text(frame.data(n_types, **data))  # type: ignore[arg-type]
        boundary = "f f f" if frame.cell is None else "p p p"
        return (
            f"clear\nunits metal\natom_style atomic\nboundary {boundary}\nbox tilt large\n"
            f"atom_modify map array\nread_data {path}\nplugin load {self.plugin}\n"
        )

    def look(self, name: str) -> str:
        """The tail of an input: the present positions' results, for `result`."""
        return f"""
            compute pe all pe/atom
            compute cst all centroid/stress/atom NULL virial
            compute st all stress/atom NULL virial
            compute p all pressure NULL virial
            thermo_style custom step pe c_p[*]
            dump look all custom 1 {name}.dump id fx fy fz c_pe c_cst[*] c_st[*]
            dump_modify look sort id format float %.17g
            run 0
            print "$(pe:%.17g) $(vol:%.17g) $(c_p[1]:%.17g) $(c_p[2]:%.17g) $(c_p[3]:%.17g) &
                   $(c_p[4]:%.17g) $(c_p[5]:%.17g) $(c_p[6]:%.17g)" file {name}.sums
            undump look
        """

    def run(self, script: str, ranks: list[str] | None = None) -> str:
        """Run an input to its end; returns the log."""
        done = self.try_run(script, ranks)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def try_run(self, script: str, ranks: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run an input that may fail."""
        (self.folder / "in.lammps").write_text(script)
        words = [*(ranks or []), *self.lmp, "-in", "in.lammps", "-log", "log.lammps"]
        return subprocess.run(
            words, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )

    def result(self, name: str, frame: Frame) -> Result:
        """What `look` has left, turned back."""
        text = (self.folder / f"{name}.dump").read_text().partition("ITEM: ATOMS")[2].partition("\n")[2]
        table = np.array([line.split() for line in text.splitlines()], float).reshape(len(frame.types), -1)
        energy, volume, *pressure = map(float, (self.folder / f"{name}.sums").read_text().split())
        back = frame.rotation.T

        def turned(six_or_nine: np.ndarray) -> np.ndarray:
            """(n, 3, 3) of xx yy zz xy xz yz (yx zx zy), the first index being the distance's."""
            xx, yy, zz, xy, xz, yz, *rest = six_or_nine.T
            yx, zx, zy = rest or (xy, xz, yz)
            by_distance = np.array([[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]]).transpose(2, 1, 0)
            return frame.rotation @ by_distance @ back

        return Result(
            energy,
            table[:, 1:4] @ back,
            turned(np.array([pressure]))[0] * volume / BAR,
            table[:, 4],
            turned(table[:, 5:14]) / -BAR,
            turned(table[:, 14:20]) / -BAR,
        )


def ours(model: DPModel, frame: Frame, **options: object) -> Result:
    """DeepPot's results."""
    cell = None if frame.cell is None else frame.cell[None]
    dp = DeepPot(model, **options)  # type: ignore[arg-type]
    energy, force, virial, of_atoms, atom_virial = dp.eval(frame.positions[None], cell, frame.types, atomic=True)
    virials = atom_virial[0].reshape(-1, 3, 3)
    symmetric = 0.5 * (virials + virials.transpose(0, 2, 1))
    return Result(float(energy[0, 0]), force[0], virial[0].reshape(3, 3), of_atoms[0, :, 0], virials, symmetric)


def compare(found: Result, expected: Result, tolerance: float, where: str) -> None:
    """Relative to the largest value of a quantity, where that is above 1."""
    for field in fields(Result):
        a, b = np.asarray(getattr(found, field.name)), np.asarray(getattr(expected, field.name))
        assert np.abs(a - b).max() < tolerance * max(1.0, np.abs(b).max()), (where, field.name, a, b)
