#!/usr/bin/env python3
"""From ab-initio data of silicon to molecular dynamics: train, freeze, compress, test, MD, and a look at the physics.

Every step is a command that a user would type; it is printed before it runs.  Everything is written into one
folder.  `make demo` runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.eos import EquationOfState, birchmurnaghan
from ase.units import GPa
from matplotlib.axes import Axes
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dphpc import DeepPot
from dphpc.plots.curves import draw_loss
from dphpc.plots.frames import read_frames
from dphpc.plots.parity import Parity, draw_parity, read_details
from dphpc.plots.structure import draw_rdf, radial_distribution
from dphpc.plots.style import COLORS, panels, save
from dphpc.plots.tables import read_table

HERE = Path(__file__).resolve().parent
INPUTS = ("silicon.hdf5", "dft_reference.json", "input.json", "run.yaml", "liquid.yaml", "si8.poscar")
N_CRYSTAL = 512
"""Atoms of run.yaml."""

console = Console()


@dataclass(frozen=True)
class Launch:
    """How commands are started: the folder they run in, and mpirun with its arguments before `-n`."""

    folder: Path
    mpirun: str

    def dphpc(self, *arguments: str, ranks: int = 1) -> str:
        """Run `dphpc ARGUMENTS` as printed; shows and returns what it prints."""
        # One thread a rank: two ranks fill two cores, and nets as small as these gain nothing from a second thread.
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        program, *options = shlex.split(self.mpirun)
        launcher = [os.path.abspath(shutil.which(program) or program), *options, "-n", str(ranks)] if ranks > 1 else []
        shown = f"{'mpirun -n ' + str(ranks) + ' ' if ranks > 1 else ''}dphpc {shlex.join(arguments)}"
        console.print(f"\n[bold green]$[/] [bold]{escape(shown)}[/]", highlight=False, soft_wrap=True)
        command = [*launcher, sys.executable, "-m", "dphpc", *arguments]
        lines = []
        with subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            raise SystemExit(f"demo: '{shown}' ended with status {process.returncode}")
        return "".join(lines)


def prepare(folder: Path, steps: int | None) -> dict[str, Any]:
    """Copy the inputs into the folder; returns the DFT reference."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in INPUTS:
        shutil.copy(HERE / name, folder / name)
    if steps is not None:
        settings = json.loads((folder / "input.json").read_text())
        settings["training"] |= {"numb_steps": steps, "disp_freq": max(1, steps // 20)}
        (folder / "input.json").write_text(json.dumps(settings, indent=2))
    reference = json.loads((folder / "dft_reference.json").read_text())
    liquid = reference["liquid_rdf"]
    atoms = Atoms(f"Si{liquid['natoms']}", positions=liquid["first_frame_A"], cell=liquid["cell_A"], pbc=True)
    ase.io.write(folder / "liquid.extxyz", atoms)
    return reference


def volume_curve(model: Path, volumes: np.ndarray) -> np.ndarray:
    """Energies per atom in eV of the diamond structure at volumes per atom in Å³, all cells in one call."""
    unit = ase.io.read(HERE / "si8.poscar")
    edges = (8.0 * volumes) ** (1.0 / 3.0)
    coords = unit.get_scaled_positions()[None] * edges[:, None, None]
    cells = np.eye(3)[None] * edges[:, None, None]
    energies, _, _ = DeepPot(model).eval(coords, cells, np.zeros(8, dtype=int))
    return energies[:, 0] / 8.0


def energy_drift(thermo: Path) -> tuple[float, float]:
    """Slope of the total energy over the NVE stage in eV/atom/ps, and its scatter about it in eV/atom."""
    table = read_table(thermo)
    nve = table["step"] > 500
    time_ps, energy = table["time_ps"][nve], table["total_eV"][nve] / N_CRYSTAL
    slope, offset = np.polyfit(time_ps, energy, 1)
    return float(slope), float(np.std(energy - slope * time_ps - offset))


def draw_equation_of_state(ax: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Energies over volumes per atom with their Birch–Murnaghan fits, each relative to its minimum."""
    for (name, (volumes, energies)), color, line, mark in zip(curves.items(), COLORS, ("-", "--"), "os", strict=False):
        curve = EquationOfState(volumes, energies, eos="birchmurnaghan")
        v0, e0, bulk_modulus = curve.fit()
        fine = np.linspace(volumes.min(), volumes.max(), 200)
        label = f"{name}: V₀ {v0:.2f} Å³/atom, B {bulk_modulus / GPa:.0f} GPa"
        ax.plot(fine, 1e3 * (birchmurnaghan(fine, *curve.eos_parameters) - e0), line, color=color, label=label)
        ax.plot(volumes, 1e3 * (energies - e0), mark, color=color, ms=4, mfc="white")
    ax.set(title="Equation of state", xlabel="volume (Å³/atom)", ylabel="energy above minimum (meV/atom)")
    ax.legend()


def draw(folder: Path, quantities: list[Parity], volumes: dict[str, Any], structure: dict[str, Any]) -> Path:
    """The results in one picture."""
    energy, force = quantities[0], quantities[1]
    with panels(2, 3, size=(4.3, 3.9)) as (figure, axes):
        draw_loss(axes[0], {"dphpc": read_table(folder / "lcurve.out")}, "f")
        axes[0].set_title("Training: force error")
        draw_parity(axes[1], energy)
        draw_parity(axes[2], force)
        draw_equation_of_state(axes[3], volumes)
        draw_rdf(axes[4], structure)
        axes[4].set_title("Liquid silicon at 2500 K")
        thermo = read_table(folder / "thermo.csv")
        drift = 1e3 * (thermo["conserved_eV"] - thermo["conserved_eV"][0]) / N_CRYSTAL
        axes[5].plot(thermo["time_ps"], thermo["temperature_K"], color="#b83b5e")
        axes[5].set(title="MD of the crystal on 2 ranks", xlabel="time (ps)")
        axes[5].set_ylabel("temperature (K)", color="#b83b5e")
        right = axes[5].twinx()
        right.plot(thermo["time_ps"], drift, color="#2a9d6f", lw=1.0)
        right.set_ylabel("change of conserved energy (meV/atom)", color="#2a9d6f")
        right.set_ylim(-1, 1)
        right.grid(False)
    return save(figure, folder / "overview.png")


def summary(rows: list[tuple[str, str, str]]) -> None:
    """The table at the end."""
    table = Table(title="Silicon: what came out", title_justify="left", title_style="bold")
    for name in ("quantity", "dphpc", "DFT (the training data's engine)"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console.print("\n", table)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for everything")
    parser.add_argument("--mpirun", default="mpirun", help="launcher of MPI ranks")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the MD run; 1 needs no MPI")
    parser.add_argument("--steps", type=int, help="training steps, in place of input.json's")
    args = parser.parse_args()
    folder = args.output.resolve()
    reference = prepare(folder, args.steps)
    run = Launch(folder, args.mpirun)

    start = time.perf_counter()
    run.dphpc("train", "input.json")
    training_s = time.perf_counter() - start
    run.dphpc("freeze", "-o", "model.dp")
    run.dphpc("compress", "-i", "model.dp", "-o", "compressed.dp")
    run.dphpc("show", "compressed.dp")
    run.dphpc("test", "-m", "compressed.dp", "-s", "silicon.hdf5#/valid", "-d", "test")
    rate = re.search(r"([\d,]+) atom-steps/s", run.dphpc("md", "run.yaml", ranks=args.ranks))
    run.dphpc("md", "liquid.yaml")
    run.dphpc("plot", "lcurve.out", "-o", "lcurve.png")
    run.dphpc("plot", "parity", "test", "-o", "parity.png")
    run.dphpc("plot", "thermo", "thermo.csv", "-o", "thermo.png")

    quantities = read_details([folder / "test"])
    crystal, liquid = reference["crystal"], reference["liquid_rdf"]
    scan = np.array(crystal["volume_A3_per_atom"])
    near = np.abs(scan / crystal["V0_A3_per_atom"] - 1.0) < 0.10
    volumes = scan[near]
    ours = volume_curve(folder / "compressed.dp", volumes)
    v0, _, bulk_modulus = EquationOfState(volumes, ours, eos="birchmurnaghan").fit()
    curves = {"dphpc": (volumes, ours), "DFT": (volumes, np.array(crystal["energy_eV_per_atom"])[near])}
    frames = read_frames(str(folder / "liquid_run.extxyz"), skip=100)
    g = radial_distribution(frames, r_max=6.0, n_bins=60)
    structure = {"dphpc": g, "DFT": (np.array(liquid["r_A"]), np.array(liquid["g"]))}
    drift, scatter = energy_drift(folder / "thermo.csv")
    picture = draw(folder, quantities, curves, structure)

    rows = [(f"{q.title} RMSE, held-out data", f"{q.rmse:.3g} {q.unit}", "") for q in quantities]
    distance = float(np.mean(np.abs(g[1] - np.array(liquid["g"]))))
    halves = float(np.mean(np.abs(np.array(liquid["g_first_half"]) - np.array(liquid["g_second_half"]))))
    rows += [
        ("lattice constant", f"{(8 * v0) ** (1 / 3):.4f} Å", f"{crystal['a0_A']:.4f} Å"),
        ("bulk modulus", f"{bulk_modulus / GPa:.1f} GPa", f"{crystal['B0_GPa']:.1f} GPa"),
        ("g(r) of the liquid: mean distance to DFT's", f"{distance:.3f}", f"{halves:.3f} between halves of its run"),
        ("NVE energy drift", f"{drift:.1e} eV/atom/ps, scatter {scatter:.1e} eV/atom", ""),
        ("training", f"{training_s:.0f} s", ""),
        (f"MD of {N_CRYSTAL} atoms on {args.ranks} ranks", f"{rate[1] if rate else '?'} atom-steps/s", ""),
    ]
    summary(rows)
    console.print(f"\nEverything is in {folder}; the picture of it all is {picture.name}.")


if __name__ == "__main__":
    main()
