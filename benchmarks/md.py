"""MD beside LAMMPS with DeePMD-kit's pair style: the same model, structure and cores, in one run.

    python benchmarks/md.py --peer VENV --model deepmd_water.dp --structure water.lmp --types O H --training input.json

DeePMD-kit's model is converted by itself to `.pth` and `.pb` and compressed by itself; dphpc compresses its own.
The programs take turns, `--repeat` times; medians are compared.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from harness import Peer, matmul_ceiling, run, store

LAMMPS = """units metal
boundary p p p
atom_style atomic
neighbor 1.0 bin
read_data {structure}
replicate {r} {r} {r}
{masses}
pair_style deepmd {model}
pair_coeff * *
velocity all create 330 1
fix 1 all nve
timestep 0.0005
thermo 1000
run 2
run {steps}
"""

DPHPC = """structure: {structure}
type_map: [{types}]
replicate: [{r}, {r}, {r}]
model: {model}
precision: {precision}
skin_A: 1.0
timestep_fs: 0.5
velocities: {{temperature_K: 330, seed: 1}}
stages:
  - {{ensemble: nve, steps: {steps}}}
thermo: {{every: 1000, file: thermo.csv}}
"""


def lammps_rate(peer: Peer, folder: Path, model: str, args: argparse.Namespace, ranks: int, steps: int) -> float:
    """atom-step/s of LAMMPS' second run."""
    masses = "\n".join(f"mass {i} {atomic_masses[atomic_numbers[t]]}" for i, t in enumerate(args.types, 1))
    text = LAMMPS.format(structure=args.structure.name, r=args.replicate, masses=masses, model=model, steps=steps)
    (folder / "in.lammps").write_text(text)
    out = peer.run("mpirun", "-n", str(ranks), peer.bin / "lmp", "-in", "in.lammps", cwd=folder)
    atoms = int(re.findall(r"with (\d+) atoms", out)[-1])
    seconds = float(re.findall(r"Loop time of ([\d.e+-]+)", out)[-1])
    return atoms * steps / seconds


def dphpc_rate(folder: Path, model: str, args: argparse.Namespace, ranks: int, steps: int, precision: str) -> float:
    """atom-step/s that `dphpc md` prints for its stages."""
    text = DPHPC.format(
        structure=args.structure.name, types=", ".join(args.types), r=args.replicate, model=model,
        precision=precision, steps=steps,
    )  # fmt: skip
    (folder / "run.yaml").write_text(text)
    start = [Path(sys.executable).parent / "mpirun", "-n", str(ranks)] if ranks > 1 else []
    code = "import dphpc; print('RATE', dphpc.md('run.yaml').atom_steps_per_second)"
    out = run([*start, sys.executable, "-c", code], folder)
    return float(re.findall(r"RATE ([\d.e+]+)", out)[0])


def main() -> None:
    """Run everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of DeePMD-kit")
    parser.add_argument("--model", type=Path, required=True, help="uncompressed .dp model")
    parser.add_argument("--structure", type=Path, required=True, help="LAMMPS data file")
    parser.add_argument("--types", nargs="+", required=True, help="elements of the file's types")
    parser.add_argument("--training", type=Path, required=True, help="input.json whose data give the nearest pair")
    parser.add_argument("--replicate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200, help="steps of the fastest program; slower ones do fewer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--name", default="md")
    args = parser.parse_args()
    peer = Peer(args.peer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(peer, folder, args)
        runs = {
            ".pth": lambda n: lammps_rate(peer, folder, "model.pth", args, n, max(4, args.steps // 20)),
            ".pth compressed": lambda n: lammps_rate(peer, folder, "model_c.pth", args, n, max(4, args.steps // 10)),
            ".pb": lambda n: lammps_rate(peer, folder, "model.pb", args, n, max(4, args.steps // 5)),
            ".pb compressed": lambda n: lammps_rate(peer, folder, "model_c.pb", args, n, args.steps // 2),
            "dphpc uncompressed": lambda n: dphpc_rate(folder, "model.dp", args, n, args.steps, "float64"),
            "dphpc": lambda n: dphpc_rate(folder, "model_c.dp", args, n, args.steps, "float64"),
            "dphpc mixed": lambda n: dphpc_rate(folder, "model_c.dp", args, n, args.steps, "mixed"),
        }
        figures: dict[str, dict[str, list[float]]] = {}
        for ranks in args.ranks:
            rates: dict[str, list[float]] = {label: [] for label in runs}
            for _ in range(args.repeat):
                for label, measure in runs.items():
                    rates[label].append(measure(ranks))
            figures[str(ranks)] = rates
            report(ranks, rates)
    ceiling = {"float64": matmul_ceiling(), "float32": matmul_ceiling(np.float32)}
    print(f"matrix products on one core: {ceiling['float64']:.1f} GFLOP/s float64, {ceiling['float32']:.1f} float32")
    path = store(
        args.name, peer=f"DeePMD-kit {peer.version()}", model=args.model.name, replicate=args.replicate,
        atom_steps_per_second=figures, ceiling_gflops=ceiling,
    )  # fmt: skip
    print(f"stored in {path}")


def prepare(peer: Peer, folder: Path, args: argparse.Namespace) -> None:
    """The model in every form, in `folder`."""
    training = args.training.resolve().parent
    for item in training.iterdir():  # the peer's compress looks its training data up beside the input
        if not item.name.startswith("."):
            (folder / item.name).symlink_to(item)
    for source, name in ((args.model, "model.dp"), (args.structure, args.structure.name)):
        (folder / name).unlink(missing_ok=True)
        shutil.copy(source, folder / name)
    for kind, flag in ((".pth", "--pt"), (".pb", "--tf")):
        peer.run("dp", "convert-backend", "model.dp", f"model{kind}", cwd=folder)
        peer.run(
            "dp", flag, "compress", "-i", f"model{kind}", "-o", f"model_c{kind}", "-t", args.training.name, cwd=folder
        )
    run([sys.executable, "-m", "dphpc", "compress", "-i", "model.dp", "-o", "model_c.dp"], folder)


def report(ranks: int, rates: dict[str, list[float]]) -> None:
    """A table of medians, spreads and our ratio to each."""
    ours = statistics.median(rates["dphpc"])
    print(f"\n{ranks} rank(s){'atom-step/s':>26}{'spread':>10}{'dphpc float64 is':>20}")
    for label, values in rates.items():
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle
        print(f"{label:>20}{middle:15,.0f}{spread:10.1%}{ours / middle:15.2f} ×")


if __name__ == "__main__":
    main()
