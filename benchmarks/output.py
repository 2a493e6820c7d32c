"""What output of a million atoms costs: a frame in each format, and a restart file, on one rank and on two.

    python benchmarks/output.py                              # the demo's silicon, 50 × 50 × 50 cells
    python benchmarks/output.py --structure water.lmp --types O H --replicate 17 --name output_water
    srun -n 64 python benchmarks/output.py --here --folder /scratch/of/mine

The atoms are those of a run, dealt to ranks and ordered as its first neighbor list has them; a potential without forces
takes the model's place, as no output depends on it.  Each file is written `--repeat` times, in turn with the
others, and so are the numbers of ranks; the first frame of a file, which makes it, is counted with the others.  A time
is that of the slowest rank, from all ranks being ready to the file being handed to the operating system (a frame:
types, positions, images) or being safe on disk (a restart).  Where h5py was built with MPI all ranks write H5MD and
restart files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from harness import ROOT, launcher, run, store

from dphpc.core.config import parse_config
from dphpc.md.config import MdConfig, Trajectory
from dphpc.md.hdf5 import n_writers
from dphpc.md.restart import Checkpoint, write_restart
from dphpc.md.run import Run
from dphpc.md.structures import read_structure
from dphpc.md.trajectory import open_trajectory, write_frame
from dphpc.parallel.comm import ends_together, world
from dphpc.parallel.launch import START_ANYWHERE

FORMATS = {"extxyz": "frames.extxyz", "LAMMPS dump": "frames.dump", "H5MD": "frames.h5md"}


class NoForces:
    """A potential without forces, whose reach is that of bonds."""

    cutoff = 2.0

    def __init__(self, type_map: list[str]) -> None:
        self.type_map = type_map

    def compute(self, *_: Any) -> None:
        """Add nothing."""

    def memory_per_atom(self) -> float:
        """None."""
        return 0.0


def begin(args: argparse.Namespace) -> Run:
    """A run at its first step; collective."""
    species = read_structure(str(args.structure), args.types, None).species
    config = {
        "structure": str(args.structure), "type_map": args.types, "replicate": [args.replicate] * 3, "skin_A": 0.5,
        "n_threads": 1, "stages": [{"ensemble": "nve", "steps": 1}],
    }  # fmt: skip
    begun = Run(parse_config(MdConfig, config), world(), NoForces(species))
    begun.engine.update_forces()
    return begun


def outputs(begun: Run, folder: Path) -> dict[str, Callable[[], None]]:
    """What writes each of the files; collective."""
    engine, species, found = begun.engine, begun.potential.type_map, dict[str, Callable[[], None]]()
    for label, name in FORMATS.items():
        settings = Trajectory(file=str(folder / name))
        writer = open_trajectory(settings, species, begun.masses, None, begun.comm)
        found[label] = partial(write_frame, writer, engine, settings, 0.0)
    stages = [stage.model_dump() for stage in begun.settings.stages]
    checkpoint = Checkpoint(0, (0, 0.0, engine.timestep), stages, 0, 0, begun.ledger.bath.tolist())
    path = str(folder / "restart.h5")
    found["restart"] = partial(write_restart, path, engine, checkpoint, species, begun.masses)
    return found


def measure(args: argparse.Namespace) -> None:
    """Seconds of each output on the ranks that are here, printed by rank 0; collective."""
    comm = world()
    with ends_together(comm):
        begun = begin(args)
        seconds: dict[str, list[float]] = {}
        writers = outputs(begun, args.folder)
        for _ in range(args.repeat):
            for label, write in writers.items():
                comm.barrier()
                start = time.perf_counter()
                write()
                own = np.array([time.perf_counter() - start])
                seconds.setdefault(label, []).append(float(comm.allreduce(own, "max")[0]))
    if comm.rank == 0:
        found = {"atoms": begun.engine.n_atoms, "ranks": comm.size, "hdf5_writers": n_writers(comm), "seconds": seconds}
        print("RESULT", json.dumps(found), flush=True)


def main() -> None:
    """All numbers of ranks in turn; print medians, store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", type=Path, default=ROOT / "examples" / "silicon" / "si8.poscar")
    parser.add_argument("--types", nargs="+", help="elements of a LAMMPS file's types")
    parser.add_argument("--replicate", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3, help="of each file in a job")
    parser.add_argument("--turns", type=int, default=2, help="jobs of each number of ranks")
    parser.add_argument("--folder", type=Path, help="where files are written, by default a temporary folder")
    parser.add_argument("--mpirun", default=launcher(), help='launcher up to the number of ranks: "srun --mpi=pmix -n"')
    parser.add_argument("--here", action="store_true", help="on the ranks that run this; needs --folder")
    parser.add_argument("--name", default="output")
    args = parser.parse_args()
    if args.here:
        return measure(args)
    found: dict[int, list[dict]] = {n: [] for n in args.ranks}
    for _ in range(args.turns):
        for ranks, jobs in found.items():
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                own = [sys.executable, __file__, *sys.argv[1:], "--here", "--folder", folder]
                out = run([*shlex.split(args.mpirun), str(ranks), *own], Path.cwd(), os.environ | START_ANYWHERE)
            jobs.append(json.loads(re.findall(r"RESULT (.*)", out)[-1]))
    print(f"{jobs[0]['atoms']:,} atoms; medians of {args.turns * args.repeat}, and all, in seconds")
    for ranks, jobs in found.items():
        for label in jobs[0]["seconds"]:
            taken = [s for job in jobs for s in job["seconds"][label]]
            writers = jobs[0]["hdf5_writers"] if label in ("H5MD", "restart") else 1
            print(f"{label:>12}, {ranks} ranks, {writers} writing{statistics.median(taken):8.3f}   "
                  + " ".join(f"{s:.3f}" for s in taken))  # fmt: skip
    path = store(
        args.name, structure=args.structure.name, replicate=args.replicate, hdf5=h5py.version.hdf5_version,
        h5py_with_mpi=bool(h5py.get_config().mpi), results=[job for jobs in found.values() for job in jobs],
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
