"""MD on a GPU by size and precision, where its time goes, and how far the GPU's own ceilings are.

    python benchmarks/gpu.py                                        # the bundled silicon model
    python benchmarks/gpu.py --model water_c.dp --structure water.lmp --types O H --name gpu_water
    python benchmarks/gpu.py --random 16:64 32:128 64:256 --replicate 50 --precision float32 --name gpu_diamond
    python benchmarks/gpu.py --replicate 155 --precision float32 --steps 20 --name gpu_largest
    python benchmarks/gpu.py --replicate 3 49 --precision float64 --frames 10 100 --name gpu_output

Ceilings are measured first: a large copy, and the matrix products of the fitting net's layers.  Each size runs twice,
the first time for what is done once; with `--steps` once, for so many.  A run's start is all before its first step:
kernels compiled, atoms dealt out and brought to the GPU, the first list and forces.  `--profile` adds a run under
CUPTI (PyTorch's profiler) for each kernel's time.  `--random` takes diamond, with 158 neighbors inside 6 Å, and models
of random weights by the widths of embedding and fitting net.  `--frames` adds runs with a trajectory's frame every so
many steps: what one adds to the run, and how long the host works for it, which it would add if the GPU waited.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import cupy
import numpy as np
from cupy import cublas
from harness import ROOT, store

import dphpc
from dphpc.core.memory import peak_memory
from dphpc.md.result import MDResult
from dphpc.md.run import run_md
from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.fitting import EnergyFitting
from dphpc.model.model_file import read_model, write_model
from dphpc.model.networks import initial_network

SILICON = ROOT / "examples" / "silicon"


def seconds_of(work: Callable[[], object], repeat: int = 20) -> float:
    """Of one call, on the GPU's clock; median."""
    work()
    times = []
    for _ in range(repeat):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e-3 * cupy.cuda.get_elapsed_time(start, end))
    return float(np.median(times))


def ceilings(widths: list[int], rows: int) -> dict[str, float]:
    """GB/s of a copy, counted both ways, and GFLOP/s of (rows × k)·(k × m) products, by precision and shape."""
    a, b = cupy.ones(2**28), cupy.empty(2**28)
    found = {"copy_GB_per_s": 2 * a.nbytes / seconds_of(lambda: cupy.copyto(b, a)) / 1e9}
    shapes = [(rows, k, m) for k, m in itertools.pairwise(widths)] + [(8192, 8192, 8192)]
    for dtype in (np.float64, np.float32):
        for n, k, m in shapes:
            x, w, y = (cupy.random.standard_normal(s).astype(dtype) for s in ((n, k), (k, m), (n, m)))
            seconds = seconds_of(lambda x=x, w=w, y=y: cublas.gemm("N", "N", x, w, out=y))
            found[f"{np.dtype(dtype)} {n}x{k}x{m}"] = 2e-9 * n * k * m / seconds
    return found


@contextlib.contextmanager
def silent() -> Iterator[io.StringIO]:
    """What is said meanwhile, kept."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield said


def settings(args: argparse.Namespace, replicate: int, precision: str, steps: int) -> dict[str, Any]:
    """A run file."""
    return {
        "structure": str(args.structure), **({"type_map": args.types} if args.types else {}),
        "replicate": [replicate] * 3, "model": str(args.model), "precision": precision, "device": "cuda",
        "skin_A": args.skin, "timestep_fs": 0.5, "velocities": {"temperature_K": 330, "seed": 1},
        "stages": [{"ensemble": "nve", "steps": steps}], "thermo": {"every": 100, "file": None},
    }  # fmt: skip


def random_model(folder: Path, widths: str) -> Path:
    """A model of carbon; "16:64" is embedding [4, 8, 16], axis 8 and fitting net [64, 64, 64]."""
    width, net = map(int, widths.split(":"))
    rng = np.random.default_rng(1)
    embedding = initial_network([1, width // 4, width // 2, width], "tanh", rng)
    descriptor = SeE2A(
        rcut=6.0, rcut_smth=0.5, sel=(200,), axis_neuron=8, networks=[embedding], davg=np.array([0.05]),
        dstd=np.array([[0.05, 0.03]]), type_one_side=True, activation_function="tanh",
    )  # fmt: skip
    nets = [initial_network([8 * width, net, net, net], "tanh", rng, resnet_dt=True, output=1)]
    fitting = EnergyFitting(nets, np.zeros(1))
    path = folder / f"random_{width}_{net}.dp"
    write_model(DPModel(["C"], descriptor, fitting, np.zeros(1), min_nbor_dist=1.4), path)
    return path


def profiled(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Kernels by their time on the GPU: name, calls, µs a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found, silent():
        run_md(config)
    rows = [(e.key, e.count, e.self_device_time_total) for e in found.key_averages()]
    rows.sort(key=lambda row: -row[2])
    return [{"kernel": k[:60], "calls": n, "us_a_call": t / n, "ms": t / 1e3} for k, n, t in rows if t > 0]


def with_frames(args: argparse.Namespace, config: dict[str, Any], plain: MDResult) -> list[dict[str, Any]]:
    """The same run with a frame every so many steps, beside one without: milliseconds of a frame."""
    rows = []
    for every, suffix in itertools.product(args.frames, args.formats):
        with tempfile.TemporaryDirectory() as folder, silent():
            path = Path(folder) / f"frames.{suffix}"
            result = run_md(config | {"trajectory": {"every": every, "file": str(path)}})
            n = plain.steps // every + 1
            added, worked = result.seconds - plain.seconds, result.phases["output"] - plain.phases["output"]
            rows.append({
                "every": every, "format": suffix, "frames": n, "rate": result.atom_steps_per_second,
                "added_ms": 1e3 * added / n, "host_ms": 1e3 * worked / n, "bytes": path.stat().st_size // n,
            })  # fmt: skip
    return rows


def measured(args: argparse.Namespace, replicate: int, precision: str) -> dict[str, Any]:
    """One size."""
    began, row, steps = time.perf_counter(), {}, args.steps
    with silent() as said:
        if not steps:
            first = run_md(settings(args, replicate, precision, 30))
            least = max([50, *(2 * every for every in args.frames)])
            steps = int(np.clip(args.seconds * first.steps / first.seconds, least, 20000))
            row["first_rate"] = first.atom_steps_per_second
        start = time.perf_counter()
        result = run_md(settings(args, replicate, precision, steps))
        end = time.perf_counter()
    pool = cupy.get_default_memory_pool()
    row |= {
        "atoms": result.n_atoms, "precision": precision, "steps": steps, "rate": result.atom_steps_per_second,
        "ms_a_step": 1e3 * result.seconds / steps, "rebuilds": result.rebuilds, "phases": result.phases,
        "start_s": end - start - result.seconds, "whole_s": end - began,
        "gpu_bytes": pool.total_bytes(), "host_bytes": peak_memory(),
        "said": [line for line in said.getvalue().splitlines() if line.startswith(("GPU:", "memory:"))],
    }  # fmt: skip
    row["frames"] = with_frames(args, settings(args, replicate, precision, steps), result)
    if args.profile:
        pool.free_all_blocks()
        row["kernels"] = profiled(settings(args, replicate, precision, 40))
    pool.free_all_blocks()
    return row


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SILICON / "silicon.dp")
    parser.add_argument("--structure", type=Path, default=SILICON / "si8.poscar")
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--replicate", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--precision", nargs="+", default=["float64", "mixed", "float32"])
    parser.add_argument("--random", nargs="+", default=[], metavar="WIDTH:NET")
    parser.add_argument("--skin", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measured run, about")
    parser.add_argument("--steps", type=int, help="of one run of each size, in place of two")
    parser.add_argument("--frames", type=int, nargs="+", default=[], metavar="STEPS")
    parser.add_argument("--formats", nargs="+", default=["h5md", "extxyz"], choices=["h5md", "extxyz", "dump"])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--name", default="gpu_silicon")
    args = parser.parse_args()
    net = read_model(args.model).fitting.networks[0]
    found = ceilings([net.layers[0].w.shape[0], *(layer.w.shape[1] for layer in net.layers)], 16384)
    cupy.get_default_memory_pool().free_all_blocks()
    print(json.dumps(found, indent=1), flush=True)
    rows, folder = [], Path(tempfile.mkdtemp())
    models = [random_model(folder, widths) for widths in args.random] or [args.model]
    if args.random:
        args.structure, args.types = folder / "diamond.extxyz", None
        ase.io.write(args.structure, ase.build.bulk("C", "diamond", 3.567, cubic=True))
    for args.model in models:
        for replicate, precision in itertools.product(args.replicate, args.precision):
            row = {"model": args.model.name, **measured(args, replicate, precision)}
            rows.append(row)
            done = f"{row['rebuilds']} lists in {row['steps']} steps, started in {row['start_s']:.1f} s"
            taken = ", ".join(f"{what} {row[f'{what}_bytes'] / 2**30:.2f} GiB" for what in ("gpu", "host"))
            print(
                f"{row['model']}: {row['atoms']:>10,} atoms, {precision:>7}: {row['rate']:13,.0f} atom-step/s, "
                f"{row['ms_a_step']:8.3f} ms, {done}; {taken}, {row['whole_s']:.1f} s",
                *row["said"][-2:],
                sep="\n",
                flush=True,
            )
            for of in row["frames"]:
                print(
                    f"{of['format']:>12} every {of['every']:5} steps: {of['rate']:13,.0f} atom-step/s, a frame adds "
                    f"{of['added_ms']:.2f} ms, for which the host works {of['host_ms']:.2f} ms"
                )
            for kernel in row.get("kernels", [])[:12]:
                ms, calls, each = (kernel[key] for key in ("ms", "calls", "us_a_call"))
                print(f"{ms:12.2f} ms {calls:7} × {each:10.1f} µs  {kernel['kernel']}")
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    gpu = {"name": properties["name"].decode(), "driver": cupy.cuda.runtime.driverGetVersion(),
            "runtime": cupy.cuda.runtime.runtimeGetVersion(), "cupy": cupy.__version__}  # fmt: skip
    path = store(args.name, gpu=gpu, ceilings=found, runs=rows, version=dphpc.__version__)
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
