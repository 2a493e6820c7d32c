"""Time to accuracy of optimizers: the same input and data, a fixed wall time each, tested on frames not trained on.

    python benchmarks/optimizers.py --minutes 5 --optimizers Adam SOAP
    python benchmarks/optimizers.py --input deepmd_input.json --system data_3 --minutes 30

A run's number of steps is chosen from a short timing so that it fills the minutes, and the learning rate decays over
it.  Weights are kept from checkpoints at `--points` moments, and tested when the run is over, so that testing costs
it nothing; times count from the command.  Statistics and timing come before, with the same cache for all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, run, store
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dphpc.plots.style import log_scale, panels, save
from dphpc.train.evaluate import test
from dphpc.train.freeze import freeze

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "silicon"
LEVELS = (0.20, 0.15, 0.10, 0.08, 0.06)

PRESETS: dict[str, dict[str, Any]] = {
    "Adam": {"optimizer": {"type": "Adam"}},
    "Adam-fast": {"optimizer": {"type": "Adam"}, "start_lr": 3e-3, "stop_lr": 1e-5},
    "HybridMuon": {"optimizer": {"type": "HybridMuon"}, "start_lr": 3e-2, "stop_lr": 1e-4},
    "SOAP": {"optimizer": {"type": "SOAP"}, "start_lr": 1e-2, "stop_lr": 1e-5},
    "LKF": {"optimizer": {"type": "LKF", "kf_memory_gb": 0.5, "kf_precision": "float32"}, "steps_to_time": 6},
}
"""Name -> `optimizer` section, learning rates in place of the input's, further sections to merge (`input`)."""

STEPS_TO_TIME = 200


def configured(args: argparse.Namespace, preset: dict[str, Any], steps: int, points: int) -> dict[str, Any]:
    """The input with the preset's optimizer, without validation, of `steps` steps with `points` checkpoints."""
    config = json.loads(args.input.read_text())
    training, rate, folder = config["training"], config["learning_rate"], args.input.resolve().parent
    systems = training["training_data"]["systems"]
    systems = [systems] if isinstance(systems, str) else systems
    training["training_data"]["systems"] = [_absolute(s, folder) for s in systems]
    training.pop("validation_data", None)
    training |= {
        "numb_steps": steps, "disp_freq": max(1, steps // 5), "save_freq": max(1, steps // points),
        "max_ckpt_keep": 3, "stat_file": str(args.cache / "stat.hdf5"),
    }  # fmt: skip
    config["optimizer"] = preset["optimizer"]
    rate |= {key: preset[key] for key in ("start_lr", "stop_lr") if key in preset}
    if rate.get("type", "exp") == "exp":
        rate |= {"decay_steps": max(1, steps // 100)}
        rate.pop("decay_rate", None)
    for section, changes in preset.get("input", {}).items():
        config[section] |= changes
    return config


def _absolute(system: str, folder: Path) -> str:
    path, mark, group = system.partition("#")
    return str((folder / path).resolve()) + mark + group


def command(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The training's command and environment."""
    return [sys.executable, "-m", "dphpc", "train", "input.json"], os.environ | {"OMP_NUM_THREADS": str(args.threads)}


def steps_that_fill(args: argparse.Namespace, preset: dict[str, Any], folder: Path) -> int:
    """Steps that take the minutes, by a short timing."""
    n = int(preset.get("steps_to_time", STEPS_TO_TIME))
    (folder / "input.json").write_text(json.dumps(configured(args, preset, n, 1)))
    words, env = command(args)
    start = time.perf_counter()
    found = re.search(r"\(([\d.]+) ms a step\)", run(words, folder, env))
    total = time.perf_counter() - start
    assert found is not None, "dphpc prints its time a step"
    step = float(found.group(1)) / 1e3
    return max(10, int((60.0 * args.minutes - (total - n * step)) / step))


def trained(args: argparse.Namespace, preset: dict[str, Any], steps: int, folder: Path) -> list[tuple[int, float]]:
    """Train; the weights of each checkpoint stay as `weights-STEP.safetensors`.  (step, seconds) of each."""
    (folder / "input.json").write_text(json.dumps(configured(args, preset, steps, args.points)))
    words, env = command(args)
    seen: dict[int, float] = {}
    with (folder / "log").open("w") as log:
        start = time.time()
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        ended = False
        while not ended:
            time.sleep(0.1)
            ended = process.poll() is not None
            for path in folder.glob("model.ckpt-*.safetensors"):
                step = int(path.stem.rpartition("-")[2])
                if step not in seen and _keep_weights(path, folder / f"weights-{step}.safetensors"):
                    seen[step] = (folder / f"weights-{step}.safetensors").stat().st_mtime - start
    if process.returncode:
        print((folder / "log").read_text()[-1000:])
    return sorted(seen.items())


def _keep_weights(source: Path, target: Path) -> bool:
    """A checkpoint without its optimizer, which may be gigabytes, with the source's time; False if it is gone."""
    try:
        written = source.stat().st_mtime
        with safe_open(source, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
            save_file(tensors, target, metadata=file.metadata())
    except (OSError, SafetensorError):
        return False
    os.utime(target, (written, written))
    return True


def tested(args: argparse.Namespace, folder: Path, moments: list[tuple[int, float]]) -> list[dict[str, float]]:
    """RMSE of forces (eV/Å) and energies (eV per atom) on the held-out system at each moment."""
    rows = []
    for step, seconds in moments:
        model = freeze(folder / f"weights-{step}.safetensors", folder / "model.dp")
        total = test(model, _absolute(args.system, Path.cwd()), args.frames).total
        force, energy = (total.measures(name) for name in ("f", "e_peratom"))
        rows.append({
            "step": step, "seconds": round(seconds, 2),
            "force_rmse": math.nan if force is None else force[1],
            "energy_rmse": math.nan if energy is None else energy[1],
        })  # fmt: skip
    return rows


def seconds_to(levels: list[float], rows: list[dict[str, float]]) -> dict[str, float | None]:
    """Seconds to the first tested moment at or below each level; None where it was not reached."""
    return {f"{x:g}": next((row["seconds"] for row in rows if row["force_rmse"] <= x), None) for x in levels}


def plot(results: dict[str, Any], levels: list[float], path: Path) -> None:
    """Force RMSE over wall time."""
    with panels(1, 1, size=(6.4, 4.2)) as (figure, axes):
        for name, result in results.items():
            rows = result["curve"]
            axes[0].plot([r["seconds"] for r in rows], [r["force_rmse"] for r in rows], marker=".", label=name)
        low = min((r["force_rmse"] for result in results.values() for r in result["curve"]), default=1.0)
        for level in levels:
            if level > 0.8 * low:
                axes[0].axhline(level, color="0.8", lw=0.8, zorder=0)
        log_scale(axes[0])
        axes[0].set(xlabel="seconds from the command", ylabel="force RMSE (eV/Å)", title="Held-out frames")
        axes[0].legend()
    save(figure, path)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=EXAMPLE / "input.json")
    parser.add_argument("--system", default=f"{EXAMPLE / 'silicon.hdf5'}#/valid", help="labelled system to test on")
    parser.add_argument("--optimizers", nargs="+", default=["Adam", "HybridMuon", "SOAP", "LKF"])
    parser.add_argument("--presets", type=Path, help="JSON file of further presets, as PRESETS")
    parser.add_argument("--minutes", type=float, default=2.0, help="wall time of each")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="force RMSE in eV/Å")
    parser.add_argument("--points", type=int, default=20, help="moments at which weights are tested")
    parser.add_argument("--frames", type=int, default=0, help="frames to test on; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="optimizers")
    args = parser.parse_args()
    presets = PRESETS | (json.loads(args.presets.read_text()) if args.presets else {})
    unknown = [name for name in args.optimizers if name not in presets]
    if unknown:
        parser.error(f"no preset {', '.join(unknown)}; there are {', '.join(presets)}")
    args.presets = {name: presets[name] for name in args.optimizers}
    return args


def main() -> None:
    """Train with each optimizer, test, print, plot, store."""
    args, results = parsed(), {}
    with tempfile.TemporaryDirectory() as base:
        args.cache = Path(base)
        for name, preset in args.presets.items():
            folder = args.cache / name
            folder.mkdir()
            steps = steps_that_fill(args, preset, folder)
            for path in folder.glob("model.ckpt*"):
                path.unlink()
            rows = tested(args, folder, trained(args, preset, steps, folder))
            reached = seconds_to(args.levels, rows)
            results[name] = {"preset": preset, "steps": steps, "seconds_to_force_rmse": reached, "curve": rows}
            last = rows[-1] if rows else {"force_rmse": np.nan, "energy_rmse": np.nan, "seconds": np.nan}
            print(
                f"{name:>12}: {steps} steps, {last['seconds']:.0f} s, force {last['force_rmse']:.4f} eV/Å, "
                f"energy {1e3 * last['energy_rmse']:.2f} meV/atom; seconds to {reached}",
                flush=True,
            )  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    plot(results, args.levels, RESULTS / f"{args.name}.png")
    path = store(
        args.name, input=args.input.name, system=Path(args.system).name, minutes=args.minutes, threads=args.threads,
        results=results,
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
