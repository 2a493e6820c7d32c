"""Accuracy beside DeePMD-kit: the same `input.json`, several seeds, against its own curve and model.

    python benchmarks/accuracy.py --input deepmd_input.json --system data_3 \\
        --peer-curve deepmd_lcurve.out --peer-model deepmd_water.dp --seeds 1 2 3

Every model is tested on all frames of `--system`, which the input does not train on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness import RESULTS, run, store

from dphpc.plots.curves import learning_curve
from dphpc.plots.style import save
from dphpc.plots.tables import read_table
from dphpc.train.evaluate import test


def train(source: Path, folder: Path, seed: int, steps: int | None) -> float:
    """Train in `folder` with one seed for everything random; returns the wall time in seconds."""
    config = json.loads(source.read_text())
    training = config["training"]
    for part in ("training_data", "validation_data"):
        training[part]["systems"] = [str((source.parent / s).resolve()) for s in training[part]["systems"]]
    training["seed"] = config["model"]["descriptor"]["seed"] = config["model"]["fitting_net"]["seed"] = seed
    training.pop("stat_file", None)
    if steps:
        training["numb_steps"] = steps
    (folder / "input.json").write_text(json.dumps(config))
    start = time.perf_counter()
    log = run([sys.executable, "-m", "dphpc", "train", "input.json"], folder)
    seconds = time.perf_counter() - start
    (folder / "log").write_text(log)
    run([sys.executable, "-m", "dphpc", "freeze", "-o", "model.dp"], folder)
    return seconds


def errors(model: Path, system: Path) -> dict[str, float]:
    """RMSE of force and energy on all frames of a system."""
    total = test(model, str(system)).total
    found = {name: total.measures(name) for name in ("f", "e_peratom")}
    return {"force_rmse_eV_per_A": found["f"][1], "energy_rmse_eV_per_atom": found["e_peratom"][1]}  # type: ignore[index]


def main() -> None:
    """Train with every seed, test, compare, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--system", type=Path, required=True, help="labelled system to test on")
    parser.add_argument("--peer-curve", type=Path, required=True)
    parser.add_argument("--peer-model", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="in place of the input's numb_steps")
    parser.add_argument("--keep", type=Path, help="folder for models and logs; what is there is not trained again")
    parser.add_argument("--name", default="accuracy")
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {"DeePMD-kit": errors(args.peer_model, args.system)}
    curves = {"DeePMD-kit": args.peer_curve}
    with tempfile.TemporaryDirectory() as name:
        for seed in args.seeds:
            folder, label = (args.keep or Path(name)) / f"seed_{seed}", f"dphpc, seed {seed}"
            if not (folder / "model.dp").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                print(f"{label}: trained in {train(args.input.resolve(), folder, seed, args.steps):.0f} s")
            found[label] = errors(folder / "model.dp", args.system)
            curves[label] = folder / "lcurve.out"
            print(label, found[label], flush=True)
        RESULTS.mkdir(exist_ok=True)
        save(learning_curve({label: read_table(path) for label, path in curves.items()}), RESULTS / f"{args.name}.png")
    for label, values in found.items():
        force, energy = values["force_rmse_eV_per_A"], values["energy_rmse_eV_per_atom"]
        print(f"{label:>16}: force {force:.4f} eV/Å, energy {energy * 1e3:.2f} meV/atom")
    store(args.name, input=args.input.name, system=args.system.name, errors=found)


if __name__ == "__main__":
    main()
