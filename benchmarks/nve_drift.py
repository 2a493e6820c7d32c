"""Energy drift of NVE: a model, a structure, a temperature; the slope of the total energy over the run.

    python benchmarks/nve_drift.py --model model.dp --structure water.lmp --types O H

The first part of the run equilibrates (NVT); the drift is the slope of a straight line through the total energy of the
NVE part, in eV/atom/ps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from harness import store

import dphpc


def main() -> None:
    """Run and print the drift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", type=Path, required=True)
    parser.add_argument("--types", nargs="+", required=True)
    parser.add_argument("--temperature", type=float, default=330.0)
    parser.add_argument("--timestep", type=float, default=0.25, help="fs")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    parser.add_argument("--equilibration", type=float, default=2.0, help="ps under the thermostat before")
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--replicate", type=int, default=1)
    parser.add_argument("--name", default="nve_drift")
    args = parser.parse_args()
    steps = round(args.picoseconds * 1000 / args.timestep)
    warm_up = round(args.equilibration * 1000 / args.timestep)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "thermo.csv"
        result = dphpc.md(
            {
                "structure": str(args.structure.resolve()),
                "type_map": args.types,
                "model": str(args.model.resolve()),
                "replicate": [args.replicate] * 3,
                "device": args.device,
                "precision": args.precision,
                "timestep_fs": args.timestep,
                "velocities": {"temperature_K": args.temperature, "seed": 1},
                "stages": [
                    {"ensemble": "nvt", "thermostat": "langevin", "temperature_K": args.temperature,
                     "damping_fs": 20, "steps": warm_up},
                    {"ensemble": "nve", "steps": steps},
                ],
                "thermo": {"every": 20, "file": str(table)},
            }
        )  # fmt: skip
        rows = np.genfromtxt(table, delimiter=",", names=True)
    nve = rows[rows["step"] > warm_up]
    n_atoms = result.n_atoms
    slope, offset = np.polyfit(nve["time_ps"], nve["total_eV"] / n_atoms, 1)
    ripple = float(np.std(nve["total_eV"] / n_atoms - slope * nve["time_ps"] - offset))
    print(f"drift {slope:.2e} eV/atom/ps, ripple {ripple:.2e} eV/atom, mean {nve['temperature_K'].mean():.1f} K")
    path = store(
        args.name, model=args.model.name, atoms=int(n_atoms), precision=args.precision, device=args.device,
        timestep_fs=args.timestep,
        picoseconds=args.picoseconds, drift_eV_per_atom_ps=float(slope), ripple_eV_per_atom=ripple,
        mean_temperature_K=float(nve["temperature_K"].mean()),
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
