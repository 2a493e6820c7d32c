"""Training beside `dp --pt train`: the same input and data, the same threads, in one run.

    python benchmarks/training.py --peer VENV --input input.json --steps 200

DeePMD-kit's time is that of its last quarter, dphpc's the mean of all its steps; what remains of the wall time is
start-up, statistics and output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Peer, matmul_ceiling, run, store


def prepared(source: Path, folder: Path, steps: int, batch: int) -> None:
    """`input.json` of `folder`: the source's, its data by full path, its length and batch as asked."""
    config = json.loads(source.read_text())
    training = config["training"]
    data = training["training_data"]
    data["systems"] = [str((source.parent / s).resolve()) for s in data["systems"]]
    data["batch_size"] = batch
    training.pop("validation_data", None)  # neither program's steps are to hold any validation
    training |= {"numb_steps": steps, "disp_freq": steps // 4, "save_freq": steps}
    training.pop("stat_file", None)
    (folder / "input.json").write_text(json.dumps(config))


def seconds_per_step(
    peer_or_ours: list[str | Path], folder: Path, env: dict[str, str], steps: int
) -> tuple[float, float]:
    """Seconds a step, and seconds from the command to its end less the steps."""
    start = time.perf_counter()
    out = run(peer_or_ours, folder, env)
    total = time.perf_counter() - start
    if found := re.search(r"\(([\d.]+) ms a step\)", out):
        step = float(found.group(1)) / 1e3
    else:  # DeePMD-kit: "total wall time = 23.05 s" of each interval of steps / 4
        step = float(re.findall(r"total wall time = ([\d.]+) s", out)[-1]) / (steps // 4)
    return step, total - step * steps


def main() -> None:
    """Run both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of DeePMD-kit")
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100, help="steps of the peer; dphpc does four times as many")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--name", default="training")
    args = parser.parse_args()
    peer = Peer(args.peer, args.threads)
    ours_env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    steps: dict[str, list[float]] = {"DeePMD-kit": [], "dphpc": []}
    start_up: dict[str, list[float]] = {"DeePMD-kit": [], "dphpc": []}
    for _ in range(args.repeat):
        for label in steps:
            with tempfile.TemporaryDirectory() as name:
                folder, n = Path(name), args.steps * (1 if label == "DeePMD-kit" else 4)
                prepared(args.input.resolve(), folder, n, args.batch)
                command = [peer.bin / "dp", "--pt", "train", "input.json", "--skip-neighbor-stat"]
                env = peer.env
                if label == "dphpc":
                    command, env = [sys.executable, "-m", "dphpc", "train", "input.json"], ours_env
                step, rest = seconds_per_step(command, folder, env, n)
                steps[label].append(step)
                start_up[label].append(rest)
                print(f"{label:>12}: {step * 1e3:8.2f} ms a step, {rest:6.1f} s around the steps", flush=True)
    middle = {label: statistics.median(values) for label, values in steps.items()}
    print(f"dphpc is {middle['DeePMD-kit'] / middle['dphpc']:.2f} × faster a step")
    path = store(
        args.name, peer=f"DeePMD-kit {peer.version()}", input=args.input.name, batch=args.batch, threads=args.threads,
        seconds_per_step=steps, seconds_around_the_steps=start_up,
        ceiling_gflops={"float64": matmul_ceiling(), "float32": matmul_ceiling(np.float32)},
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
