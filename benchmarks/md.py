"""MD by size, ranks and threads, beside LAMMPS with DeePMD-kit's pair style and with ours, where it is given: one run.

    python benchmarks/md.py                                  # the bundled silicon model
    python benchmarks/md.py --model deepmd_water.dp --structure water.lmp --types O H \\
        --replicate 1 2 4 8 --peer VENV --training input.json --name md_water

DeePMD-kit's model is converted by itself to `.pth` and `.pb` and compressed by itself; dphpc compresses its own, and
builds its plugin for DeePMD-kit's LAMMPS.  The programs take turns, `--repeat` times; medians are compared, those in
LAMMPS on the smallest system only.  The ceiling beside each figure is the time that the fitting net's matrix products
take at BLAS' measured rate and the table's arithmetic at the fastest rate seen, on as many cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from harness import ROOT, Peer, fastest_rate, matmul_ceiling, run, store

from dphpc.core.box import Box
from dphpc.model.model_file import read_model
from dphpc.parallel.launch import START_ANYWHERE
from dphpc.potential.deep_pot import DeepPot
from dphpc.potential.surroundings import Surroundings

SILICON = ROOT / "examples" / "silicon"
PRECISIONS = ("float64", "mixed")
VARIANTS = (*PRECISIONS, "float64 free")
"""`free`: without `deterministic`."""

LAMMPS = """units metal
boundary p p p
atom_style atomic
neighbor 1.0 bin
read_data {structure}
replicate {r} {r} {r}
{masses}
{pair_style}
pair_coeff * *
velocity all create 330 1
fix 1 all nve
timestep 0.0005
thermo 1000
run 2
run {steps}
"""

PLUGIN = "dphpcplugin.so"
PAIR_STYLES = {
    **{f"LAMMPS {kind}": f"pair_style deepmd model{kind}" for kind in (".pth", "_c.pth", ".pb", "_c.pb")},
    **{
        f"LAMMPS dphpc {precision}": f"plugin load ./{PLUGIN}\npair_style dphpc model_c.dphpc precision {precision}"
        for precision in PRECISIONS
    },
}
"""By the program's name in the table."""

DIVISORS = {".pth": 30, "_c.pth": 15, ".pb": 8, "_c.pb": 3}
"""By which a peer's run is shorter."""

RUN = """
import json, dphpc
from dphpc.core.memory import peak_memory
from dphpc.parallel.comm import world
r = dphpc.md('run.json')
peak = sum(world().allgather(peak_memory()))
if world().rank == 0:
    print('RESULT', json.dumps(dict(rate=r.atom_steps_per_second, seconds=r.seconds, phases=r.phases, peak=peak,
                                    atoms=r.n_atoms, rebuilds=r.rebuilds)))
"""


@dataclass
class Setup:
    """What is run: files by name in `folder`."""

    folder: Path
    structure: str
    types: list[str]
    n_atoms: int
    pairs_per_atom: float
    flops: tuple[float, float]  # of an atom and step: fitting net, everything else
    peer: Peer | None
    results: list[dict[str, Any]] = field(default_factory=list)


def dphpc_run(setup: Setup, replicate: int, ranks: int, threads: int, variant: str, steps: int) -> dict[str, Any]:
    """What `dphpc md` says of its stages."""
    precision, *free = variant.split()
    config = {
        "structure": setup.structure, "type_map": setup.types, "replicate": [replicate] * 3, "model": "model_c.dp",
        "precision": precision, "deterministic": not free, "skin_A": 1.0, "timestep_fs": 0.5,
        "velocities": {"temperature_K": 330, "seed": 1},
        "stages": [{"ensemble": "nve", "steps": steps}], "thermo": {"every": 100, "file": "thermo.csv"},
    }  # fmt: skip
    (setup.folder / "run.json").write_text(json.dumps(config))
    start = [Path(sys.executable).parent / "mpirun", "-n", str(ranks)] if ranks > 1 else []
    if start and not start[0].exists():  # type: ignore[union-attr]
        start[0] = "mpirun"
    environment = os.environ | START_ANYWHERE | {"OMP_NUM_THREADS": str(threads)}
    out = run([*start, sys.executable, "-c", RUN], setup.folder, environment)
    return json.loads(re.findall(r"RESULT (.*)", out)[-1])


def lammps_run(setup: Setup, pair_style: str, replicate: int, ranks: int, steps: int) -> dict[str, Any]:
    """atom-step/s of LAMMPS' second run."""
    assert setup.peer is not None
    masses = "\n".join(f"mass {i} {atomic_masses[atomic_numbers[t]]}" for i, t in enumerate(setup.types, 1))
    text = LAMMPS.format(structure=setup.structure, r=replicate, masses=masses, pair_style=pair_style, steps=steps)
    (setup.folder / "in.lammps").write_text(text)
    launch = ["mpirun", "-n", str(ranks), setup.peer.bin / "lmp", "-in", "in.lammps"]
    seconds = float(re.findall(r"Loop time of ([\d.e+-]+)", setup.peer.run(*launch, cwd=setup.folder))[-1])
    return {"rate": setup.n_atoms * replicate**3 * steps / seconds, "seconds": seconds}


def prepare(folder: Path, args: argparse.Namespace) -> Setup:
    """Model and structure in every form, in `folder`."""
    shutil.copy(args.model, folder / "model.dp")
    run([sys.executable, "-m", "dphpc", "compress", "-i", "model.dp", "-o", "model_c.dp"], folder)
    structure, types = args.structure, args.types
    atoms = ase.io.read(structure, **({"format": "lammps-data", "atom_style": "atomic"} if types else {}))
    if not types:
        types = list(dict.fromkeys(atoms.symbols))
        ase.io.write(folder / "structure.lmp", atoms, format="lammps-data", specorder=types)
        structure = folder / "structure.lmp"
    else:
        shutil.copy(structure, folder / structure.name)
    model = read_model(folder / "model_c.dp")
    descriptor, net = model.descriptor, model.fitting.networks[0]
    volume = atoms.get_volume() / len(atoms)
    pairs = 4.0 / 3.0 * np.pi * descriptor.rcut**3 / volume
    products = 4.0 * sum(layer.w.size for layer in net.layers)
    channels = net.n_in // descriptor.axis_neuron
    # A pair and channel: a quintic (5) and four sums (4) forward; value, slope (9) and eight sums backward, in pairs of
    # operations.  A feature takes four products forward and eight backward.
    table = 2.0 * (9 + 17) * channels * pairs + 2.0 * 12 * net.n_in
    peer = Peer(args.peer) if args.peer else None
    setup = Setup(folder, structure.name, types, len(atoms), pairs, (products, table), peer)
    if peer is not None:
        link_training_data(folder, args.training)
        for kind, flag in ((".pth", "--pt"), (".pb", "--tf")):
            peer.run("dp", "convert-backend", "model.dp", f"model{kind}", cwd=folder)
            compress = ["-i", f"model{kind}", "-o", f"model_c{kind}", "-t", args.training.name]
            peer.run("dp", flag, "compress", *compress, cwd=folder)
        lammps = next(args.peer.glob("lib/python3*/site-packages/lammps"))
        for words in (["build", "--lammps", lammps, "-o", PLUGIN], ["export", "model_c.dp", "-o", "model_c.dphpc"]):
            run([sys.executable, "-m", "dphpc", "lammps", *words], folder)
    return setup


def link_training_data(folder: Path, training: Path) -> None:
    """The peer's compress looks the training data up beside the input."""
    for item in training.resolve().parent.iterdir():
        if not item.name.startswith(".") and not (folder / item.name).exists():
            (folder / item.name).symlink_to(item)


def mixed_errors(setup: Setup) -> dict[str, float]:
    """Forces (eV/Å, RMS) and energy (eV/atom) of mixed precision against float64, on the displaced structure."""
    data = ase.io.read(setup.folder / setup.structure, format="lammps-data", atom_style="atomic")
    positions = data.positions + np.random.default_rng(1).normal(0.0, 0.02, data.positions.shape)
    kinds = data.arrays.get("type", data.numbers) - 1
    found = []
    for precision in PRECISIONS:
        dp = DeepPot(setup.folder / "model_c.dp", precision)
        types = np.array([dp.get_type_map().index(setup.types[k]) for k in kinds], np.int32)
        out = dp.evaluate(Surroundings.of(positions, Box(np.array(data.cell)), types, dp.get_rcut()))
        found.append((out.energy / len(types), out.forces))
    (e64, f64), (e32, f32) = found
    return {"force_rms_eV_per_A": float(np.sqrt(((f32 - f64) ** 2).mean())), "energy_eV_per_atom": abs(e32 - e64)}


def measure(setup: Setup, args: argparse.Namespace) -> None:
    """All sizes and layouts, the programs in turns."""
    smallest = min(args.replicate)
    for replicate in args.replicate:
        atoms = setup.n_atoms * replicate**3
        for ranks, threads in (tuple(map(int, layout.split("x"))) for layout in args.layouts):
            steps = max(4, round(args.atom_steps * ranks * threads / atoms))
            runs = {
                f"dphpc {variant}": lambda v=variant: dphpc_run(setup, replicate, ranks, threads, v, steps)  # noqa: B023
                for variant in VARIANTS
            }
            if setup.peer is not None and replicate == smallest and threads == 1:
                for label, style in PAIR_STYLES.items():
                    n = max(4, steps // DIVISORS.get(label.split()[1], 1))
                    runs[label] = lambda style=style, n=n: lammps_run(setup, style, replicate, ranks, n)  # noqa: B023
            taken: dict[str, list[dict[str, Any]]] = {label: [] for label in runs}
            for _ in range(args.repeat):
                for label, one in runs.items():
                    taken[label].append(one())
            ceiling = {p: ceiling_rate(setup, p) * ranks * threads for p in PRECISIONS}
            for label, found in taken.items():
                row = {"program": label, "atoms": atoms, "ranks": ranks, "threads": threads, "runs": found}
                row["rate"] = statistics.median(f["rate"] for f in found)
                if label.startswith("dphpc"):
                    row["fraction_of_ceiling"] = row["rate"] / ceiling[label.split()[1]]
                setup.results.append(row)
            report(setup.results[-len(taken) :])


def ceiling_rate(setup: Setup, precision: str) -> float:
    """atom-step/s of one core that does nothing but the model's arithmetic."""
    dtype = np.float64 if precision == "float64" else np.float32
    products, table = setup.flops
    return 1e9 / (products / matmul_ceiling(dtype) + table / fastest_rate(dtype))


def report(rows: list[dict[str, Any]]) -> None:
    """A table of medians, spreads and our ratio to each."""
    first = rows[0]
    print(f"\n{first['atoms']:,} atoms, {first['ranks']} ranks × {first['threads']} threads")
    print(f"{'atom-step/s':>38}{'spread':>9}{'dphpc is':>11}{'of ceiling':>12}{'beside forces':>15}")
    for row in rows:
        rates = [f["rate"] for f in row["runs"]]
        line = f"{row['program']:>22}{row['rate']:16,.0f}{(max(rates) - min(rates)) / row['rate']:9.1%}"
        line += f"{first['rate'] / row['rate']:9.2f} ×"
        if "fraction_of_ceiling" in row:
            work = [{phase: t for phase, t in f["phases"].items() if phase != "wait"} for f in row["runs"]]
            others = [1.0 - phases["force"] / sum(phases.values()) for phases in work]
            line += f"{row['fraction_of_ceiling']:12.1%}{statistics.median(others):15.1%}"
        print(line, flush=True)


def memory_per_atom(setup: Setup) -> float | None:
    """Bytes by which the peak of the largest float64 run on one core exceeds that of the next smaller one, per atom."""
    runs = sorted(
        (row["atoms"], min(f["peak"] for f in row["runs"])) for row in setup.results
        if row["program"] == "dphpc float64" and row["ranks"] * row["threads"] == 1
    )  # fmt: skip
    if len(runs) < 2 or runs[-1][0] < 50_000:
        return None
    (small, low), (large, high) = runs[-2:]
    return (high - low) / (large - small)


def main() -> None:
    """Run everything, print the ratios, store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SILICON / "silicon.dp", help="uncompressed .dp model")
    parser.add_argument("--structure", type=Path, default=SILICON / "si8.poscar")
    parser.add_argument("--types", nargs="+", help="elements of a LAMMPS data file's types")
    parser.add_argument("--replicate", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--layouts", nargs="+", default=["1x1", "2x1", "1x2"], help="ranks x threads")
    parser.add_argument("--atom-steps", type=float, default=4e5, help="work of a run and core")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="virtual environment of DeePMD-kit")
    parser.add_argument("--training", type=Path, help="input.json whose data give the peer the nearest pair")
    parser.add_argument("--name", default="md_silicon")
    args = parser.parse_args()
    if args.peer and not args.training:
        parser.error("--peer needs --training")
    with tempfile.TemporaryDirectory() as name:
        setup = prepare(Path(name), args)
        print(f"an atom and step: {setup.flops[0] / 1e6:.2f} MFLOP of products, {setup.flops[1] / 1e6:.2f} of the rest")
        measure(setup, args)
        errors, memory = mixed_errors(setup), memory_per_atom(setup)
    print(f"\nmixed against float64: forces {errors['force_rms_eV_per_A']:.1e} eV/Å RMS, "
          f"energy {errors['energy_eV_per_atom']:.1e} eV/atom")  # fmt: skip
    if memory is not None:
        print(
            f"memory: {memory:,.0f} bytes an atom, of which the neighbor list {4 * setup.pairs_per_atom:,.0f} or more"
        )
    path = store(
        args.name, peer=f"DeePMD-kit {setup.peer.version()}" if setup.peer else None, model=args.model.name,
        flops_per_atom_step=setup.flops, mixed_errors=errors, bytes_per_atom=memory, results=setup.results,
        ceiling_gflops={"float64": matmul_ceiling(), "float32": matmul_ceiling(np.float32)},
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
