"""What every benchmark needs: the machine, its measured ceiling, the peer beside us, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import dphpc

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Where and with what the figures were taken."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "dphpc": dphpc.__version__,
        "commit": commit,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _matmul_rates(shape: tuple[int, int, int], dtype: type, seconds: float) -> list[float]:
    """GFLOP/s of NumPy's (n × k)·(k × m) products on one thread, one after the other."""
    n, k, m = shape
    a, b, out = np.ones((n, k), dtype), np.ones((k, m), dtype), np.empty((n, m), dtype)
    rates = []
    with threadpool_limits(1):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            rates.append(2 * n * k * m / (time.perf_counter() - start) / 1e9)
    return rates


def matmul_ceiling(dtype: type = np.float64, seconds: float = 0.5) -> float:
    """GFLOP/s of (512 × 1600)·(1600 × 240) matrix products on one thread: the fitting net's first layer; median."""
    return statistics.median(_matmul_rates((512, 1600, 240), dtype, seconds))


def fastest_rate(dtype: type = np.float64, seconds: float = 0.2) -> float:
    """GFLOP/s of the fastest matrix product seen on one thread: what stands for the core's peak."""
    return max(max(_matmul_rates(shape, dtype, seconds)) for shape in ((512, 1600, 240), (480, 240, 240), (512,) * 3))


class Peer:
    """DeePMD-kit in its own virtual environment, one thread a rank.

    Parameters
    ----------
    environment
        The venv's folder, with `bin/dp` and `bin/lmp`.
    """

    def __init__(self, environment: Path, threads: int = 1) -> None:
        self.bin = environment / "bin"
        runtime = next(environment.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib"), None)
        self.env = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": str(threads),
            "DP_INTRA_OP_PARALLELISM_THREADS": str(threads),
            "DP_INTER_OP_PARALLELISM_THREADS": "1",
            **({"LD_LIBRARY_PATH": str(runtime)} if runtime else {}),
        }

    def run(self, *command: str | Path, cwd: Path) -> str:
        """The output of one of the peer's commands; stops the benchmark if it fails."""
        return run([self.bin / command[0], *command[1:]], cwd, self.env)

    def version(self) -> str:
        """DeePMD-kit's version."""
        found = re.search(r"v?(\d+\.\d+\.\d+)", run([self.bin / "dp", "--version"], Path.cwd(), self.env))
        return found.group(1) if found else "?"


def run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command, both streams; stops the benchmark with it if the command fails."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def launcher() -> str:
    """What starts ranks of the MPI that mpi4py was installed for, up to their number."""
    own = Path(sys.prefix) / "mpirun"
    return f"{own.read_text().strip()} -n" if own.is_file() else "mpirun -n"


def store(name: str, **content: Any) -> Path:
    """Write `results/NAME.json` with the machine beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), **content}, indent=1) + "\n")
    return path
