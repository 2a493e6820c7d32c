"""Training by batch, precision and threads, beside `dp --pt train` where one is given: same input and data, in one run.

    python benchmarks/training.py                                    # the bundled silicon data
    python benchmarks/training.py --input deepmd_input.json --peer VENV --name training_water

Seconds a step are those of the last quarter of a run; the start is the time from the command to the end of the first
step; memory is the peak beyond that of importing torch.  The ceiling is six matrix products of the fitting net's size
for each atom at BLAS' measured rate, and the table's arithmetic at the fastest rate seen, on as many cores.

With `--device cuda` both train on a GPU, where the ceiling of the CPU says nothing.  The peer may be a folder to put
on PYTHONPATH instead of a virtual environment: `--peer-path FOLDER` runs `python -m deepmd` of this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, Peer, fastest_rate, matmul_ceiling, store

from dphpc.train.schema import load_input

OURS, THEIRS = "dphpc", "DeePMD-kit"


@dataclass
class Run:
    """One training."""

    program: str
    batch: int
    precision: str
    threads: int
    seconds_per_step: float
    start_s: float
    peak_bytes: int


def prepared(source: Path, folder: Path, steps: int, batch: int, precision: str) -> None:
    """`input.json` of `folder`: the source's, its data by full path, its length, batch and precision as asked."""
    config = json.loads(source.read_text())
    training = config["training"]
    data = training["training_data"]
    listed = data["systems"] if isinstance(data["systems"], list) else [data["systems"]]
    data["systems"] = [str(source.parent.resolve() / s) for s in listed]
    data["batch_size"] = batch
    training.pop("validation_data", None)  # neither program's steps are to hold any validation
    training |= {"numb_steps": steps, "disp_freq": steps // 4, "save_freq": steps}
    training.pop("stat_file", None)
    for section in ("descriptor", "fitting_net"):
        config["model"][section]["precision"] = precision
    (folder / "input.json").write_text(json.dumps(config))


def watched(command: list[str | Path], folder: Path, env: dict[str, str]) -> tuple[str, float, int]:
    """Output, seconds until the first step was shown, and the largest resident memory in bytes."""
    start, first, lines = time.perf_counter(), 0.0, []
    process = subprocess.Popen(
        [str(c) for c in command], cwd=folder, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if not first and re.search(r"(batch|step) +1\b", line, re.I):
            first = time.perf_counter() - start
        lines.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{''.join(lines)[-3000:]}")
    return "".join(lines), first, usage.ru_maxrss * 1024


def started(program: str, args: argparse.Namespace) -> list[str | Path]:
    """How a program's command begins."""
    if program == OURS:
        return [sys.executable, "-m", "dphpc"]
    return [args.peer / "bin" / "dp", "--pt"] if args.peer else [sys.executable, "-m", "deepmd", "--pt"]


def environment(program: str, args: argparse.Namespace, threads: int) -> dict[str, str]:
    """Of a program's process."""
    if program == OURS:
        return os.environ | {"OMP_NUM_THREADS": str(threads)}
    if args.peer:
        return Peer(args.peer, threads).env | {"DEVICE": args.device}
    path = os.pathsep.join((str(args.peer_path.resolve()), os.environ.get("PYTHONPATH", "")))
    return os.environ | {"OMP_NUM_THREADS": str(threads), "DEVICE": args.device, "PYTHONPATH": path}


def train(program: str, env: dict[str, str], args: argparse.Namespace, case: tuple[int, str, int]) -> Run:
    """One training of either program."""
    batch, precision, threads = case
    steps = max(8, args.steps // batch) * (1 if program == THEIRS else 8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(args.input.resolve(), folder, steps, batch, precision)
        command = [*started(program, args), "train", "input.json", "--skip-neighbor-stat"]
        if program == OURS:
            command += ["--device", args.device]
        out, first, peak = watched(command, folder, env)
    # Of each quarter dphpc shows "batch 400: 12.34 s, …", DeePMD-kit "total wall time = 23.05 s".
    shown = r"batch +\d+: ([\d.]+) s, " if program == OURS else r"total wall time = ([\d.]+) s"
    return Run(program, batch, precision, threads, float(re.findall(shown, out)[-1]) / (steps // 4), first, peak)


def importing_torch(python: Path | str) -> int:
    """Bytes of a process that has imported torch and done nothing else."""
    return watched([python, "-c", "import torch"], Path.cwd(), dict(os.environ))[2]


def flops(source: Path) -> tuple[float, float]:
    """FLOP of an atom and step in matrix products, and in the table."""
    model = load_input(source).model
    channels, axis = model.descriptor.neuron[-1], model.descriptor.axis_neuron
    widths = [channels * axis, *model.fitting_net.neuron, 1]
    products = 6 * 2.0 * sum(a * b for a, b in pairwise(widths))
    sel = model.descriptor.sel
    pairs = sum(sel) if isinstance(sel, list) else 100  # about: a little more than are there
    # Multiply-adds of a pair and channel: 9 forward, 17 to the forces, 17 along the tangent, 24 back to the table.
    return products, 2.0 * (9 + 17 + 17 + 24) * channels * pairs * 0.65


def report(runs: list[Run], case: tuple[int, str, int], imports: dict[str, int], ceiling_s: float | None) -> None:
    """Medians of both programs and their ratios."""
    batch, precision, threads = case
    ceiling = "" if ceiling_s is None else f"; ceiling {1e3 * ceiling_s:.1f} ms a step"
    print(f"\nbatch {batch}, {precision}, {threads} thread(s){ceiling}")
    middle = {}
    for program in (OURS, THEIRS):
        mine = [r for r in runs if (r.program, r.batch, r.precision, r.threads) == (program, *case)]
        if not mine:
            continue
        step = statistics.median(r.seconds_per_step for r in mine)
        start, peak = statistics.median(r.start_s for r in mine), statistics.median(r.peak_bytes for r in mine)
        middle[program] = (step, peak - imports[program])
        share = f", {ceiling_s / step:.0%} of the ceiling" if program == OURS and ceiling_s is not None else ""
        print(
            f"{program:>12}: {step * 1e3:8.2f} ms a step ({step * 1e3 / batch:.2f} a frame), first step after "
            f"{start:.1f} s, {(peak - imports[program]) / 1e6:,.0f} MB beyond torch{share}"
        )
    if len(middle) == 2:
        (ours, our_memory), (theirs, their_memory) = middle[OURS], middle[THEIRS]
        print(f"{'':>14}{theirs / ours:.2f} × faster, {our_memory / their_memory:.2f} of the memory", flush=True)


def main() -> None:
    """Run both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=ROOT / "examples" / "silicon" / "input.json")
    parser.add_argument("--atoms", type=int, default=192, help="atoms of a frame, for the ceiling")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precision", nargs="+", default=["float64", "float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--steps", type=int, default=100, help="frames of the peer's run; dphpc takes eight times as many"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both programs train")
    parser.add_argument("--peer", type=Path, help="virtual environment of DeePMD-kit")
    parser.add_argument("--peer-path", type=Path, help="folder with the package deepmd, for the Python of this process")
    parser.add_argument("--peer-batch", type=int, default=1, help="largest batch that the peer is run with")
    parser.add_argument("--name", default="training_silicon")
    args = parser.parse_args()
    peer, with_peer = Peer(args.peer) if args.peer else None, bool(args.peer or args.peer_path)
    imports = {OURS: importing_torch(sys.executable)}
    imports[THEIRS] = importing_torch(peer.bin / "python") if peer else imports[OURS]
    products, table = flops(args.input)
    runs: list[Run] = []
    ceilings: dict[str, Any] = {}
    for case in [(b, p, t) for t in args.threads for p in args.precision for b in args.batch]:
        batch, precision, threads = case
        for _ in range(args.repeat):
            runs.append(train(OURS, environment(OURS, args, threads), args, case))
            if with_peer and batch <= args.peer_batch:
                runs.append(train(THEIRS, environment(THEIRS, args, threads), args, case))
        seconds = None
        if args.device == "cpu":
            dtype = np.float64 if precision == "float64" else np.float32
            per_atom = (products / matmul_ceiling(dtype) + table / fastest_rate(dtype)) / 1e9
            seconds = per_atom * args.atoms * batch / threads
            ceilings[f"batch {batch}, {precision}, {threads} threads"] = seconds
        report(runs, case, imports, seconds)
    path = store(
        args.name, device=args.device, peer=f"DeePMD-kit {peer.version()}" if peer else None, input=args.input.name,
        runs=[asdict(r) for r in runs], bytes_of_importing_torch=imports, ceiling_seconds=ceilings,
        ceiling_gflops={"float64": matmul_ceiling(), "float32": matmul_ceiling(np.float32)},
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
