"""What an evaluation of a committee of models costs, in steps of the MD run that it is part of.

    python benchmarks/committee.py                           # 512 atoms of silicon, the demo's model
    python benchmarks/committee.py --model model.dp --structure water.lmp --types O H --replicate 2 \\
        --name committee_water

The models are the given one and copies whose weights are changed a little at random, each with a table of its own.
Runs with `deviation` at every step and without it take turns, `--repeat` times, after one of each that is not counted.
The cost is what a step takes longer by, in steps without: evaluations of the other models, the comparison, and the line
in `model_devi.out`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import ROOT, store

from dphpc.md.result import MDResult
from dphpc.md.run import run_md
from dphpc.model.compress import compress
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.model.networks import Layer, Network

SILICON = ROOT / "examples" / "silicon"


def changed(model: DPModel, spread: float, seed: int) -> DPModel:
    """The model with each weight and bias times 1 + `spread`·ξ, ξ a normal random number; 0 leaves them."""
    rng = np.random.default_rng(seed)

    def layer(old: Layer) -> Layer:
        return replace(old, **{name: a * (1.0 + spread * rng.normal(size=a.shape)) for name, a in old.parameters()})

    def networks(old: list[Network]) -> list[Network]:
        return [Network([layer(y) for y in net.layers]) for net in old]

    descriptor = replace(model.descriptor, networks=networks(model.descriptor.networks))
    fitting = replace(model.fitting, networks=networks(model.fitting.networks))
    return replace(model, descriptor=descriptor, fitting=fitting, table=None)


def committee(args: argparse.Namespace, folder: Path) -> list[str]:
    """Files of compressed models, the first with the weights as they are."""
    model, paths = read_model(args.model), []
    for k in range(args.models):
        paths.append(str(folder / f"model_{k}.dp"))
        write_model(compress(changed(model, args.spread if k else 0.0, k))[0], paths[-1])
    return paths


def md(args: argparse.Namespace, models: list[str], table: Path | None) -> MDResult:
    """One run, the committee evaluated at each step if it has a table to be written to."""
    config = {
        "structure": str(args.structure), "type_map": args.types, "replicate": [args.replicate] * 3,
        "model": models[0], "precision": args.precision, "timestep_fs": 0.5, "n_threads": args.threads,
        "velocities": {"temperature_K": args.temperature, "seed": 1},
        "stages": [{"ensemble": "nve", "steps": args.steps}], "thermo": {"every": args.steps, "file": None},
    }  # fmt: skip
    if table is not None:
        config["deviation"] = {"models": models[1:], "every": 1, "file": str(table)}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return run_md(config)


def main() -> None:
    """Run in turns, print medians and the cost, store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SILICON / "silicon.dp", help="with its networks")
    parser.add_argument("--structure", type=Path, default=SILICON / "si8.poscar")
    parser.add_argument("--types", nargs="+", help="elements of a LAMMPS file's types")
    parser.add_argument("--replicate", type=int, default=4)
    parser.add_argument("--models", type=int, default=4, help="in the committee, the driving one included")
    parser.add_argument("--spread", type=float, default=1e-3, help="relative change of the weights")
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=330.0, help="K")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name", default="committee")
    args = parser.parse_args()
    alone: list[float] = []
    together: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        models, table = committee(args, Path(name)), Path(name) / "model_devi.out"
        for k in range(args.repeat + 1):
            results = [md(args, models, None), md(args, models, table)]
            if k:
                for milliseconds, result in zip((alone, together), results, strict=True):
                    milliseconds.append(1e3 * result.seconds / args.steps)
        deviation = float(np.loadtxt(table)[-1, 4])
    cost = statistics.median(together) / statistics.median(alone) - 1.0
    n_atoms = results[0].n_atoms
    print(f"{n_atoms:,} atoms, {args.model.name}, {args.precision}, {args.threads} thread(s); medians of {args.repeat}")
    print(f"a step {statistics.median(alone):.2f} ms, with {args.models} models {statistics.median(together):.2f} ms")
    print(f"an evaluation of the committee costs {cost:.2f} steps; forces deviate by up to {deviation:.2g} eV/Å")
    path = store(
        args.name, model=args.model.name, structure=args.structure.name, n_atoms=n_atoms, n_models=args.models,
        precision=args.precision, threads=args.threads, steps=args.steps, max_devi_f_eV_per_A=deviation,
        step_ms=alone, step_with_committee_ms=together, cost_in_steps=cost,
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
