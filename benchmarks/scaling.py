"""Strong and weak scaling of MD and training, by phase and rank, beside a model that goes on to 10,000 ranks.

    python benchmarks/scaling.py md --ranks 1 2 4 8 --weak 1728 --strong 13824
    python benchmarks/scaling.py md --model water.dp --structure water.lmp --types O H --mpirun "srun --mpi=pmix -n"
    python benchmarks/scaling.py train --ranks 1 2 --backends mpi torch horovod
    python benchmarks/scaling.py predict --rate 1e7 --atoms 1e6 5e4      # GPUs, by assumption; nothing is measured

Each number of ranks is a job of its own; the jobs take turns, `--repeat` times, and efficiencies are ratios within a
turn.  The model (`communication.py`) takes a rank's own work from one rank and the network from messages timed in the
same run, on the most ranks that have a core each.  Where threads outnumber cores ("oversubscribed", marked *) own work
is predicted to take as many times longer.  Files of the runs are in a folder below the present one, which all nodes
must see.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from communication import BYTES, Network, Overlap, Work, arithmetic, predict, shell
from harness import RESULTS, ROOT, launcher, run, store
from jobs import RANK, Case, Jobs, draw_efficiency, in_turns
from matplotlib.axes import Axes
from training import prepared

from dphpc.core.box import Box
from dphpc.md.structures import read_structure
from dphpc.parallel.domain import Grid, choose_grid
from dphpc.plots.style import COLORS, GREY, panels, save

SILICON = ROOT / "examples" / "silicon"
CURVE = (*(2**k for k in range(14)), 10_000)
"""Numbers of ranks that are predicted."""


# MD


def md(args: argparse.Namespace, jobs: Jobs) -> None:
    """Measure MD, compare with the model, print, draw, store."""
    run([sys.executable, "-m", "dphpc", "compress", "-i", args.model.resolve(), "-o", "model.dp"], jobs.folder)
    shutil.copy(args.structure, jobs.folder)
    cell = read_structure(str(args.structure), args.types or [], None).n_atoms
    cases = []
    for kind, atoms in (("weak", args.weak), ("strong", args.strong)):
        side = max(1, round((atoms / cell) ** (1.0 / 3.0)))
        for n in args.ranks:
            cells = [side * g for g in choose_grid(Box(np.eye(3)), n)] if kind == "weak" else [side] * 3
            share = float(np.prod(cells)) * cell / n * jobs.networks[n]["crowding"]
            steps = max(10, round(args.atom_steps / share))
            start = lambda n=n, cells=cells, steps=steps: md_run(args, jobs, n, cells, steps)  # noqa: E731
            cases.append(Case(kind, "MD", n, jobs.networks[n]["crowding"], start))
    in_turns(cases, args.repeat)
    network = jobs.network()
    predictions = {}
    for kind in ("weak", "strong"):
        mine = [c for c in cases if c.kind == kind]
        predictions[kind] = predicted(mine, network[1], args.overlap) if network and mine[0].ranks == 1 else None
        report_md(mine, predictions[kind])
    if network:
        ranks, found = network
        print(f"\nnetwork, timed on {ranks} ranks: latency {found.latency * 1e6:.2f} µs, bandwidth "
              f"{found.bandwidth / 1e9:.2f} GB/s, all-reduce {found.hop * 1e6:.2f} µs · log₂P")  # fmt: skip
    draw_md(cases, predictions, RESULTS / f"{args.name}.png")
    path = store(
        args.name, model=args.model.name, structure=args.structure.name, threads=args.threads, networks=jobs.networks,
        network=asdict(network[1]) if network else None, overlap=args.overlap, predictions=predictions,
        cases=[stored(c, cases) for c in cases],
    )  # fmt: skip
    print(f"stored in {path}")


def md_run(args: argparse.Namespace, jobs: Jobs, ranks: int, cells: list[int], steps: int) -> dict[str, Any]:
    """One run of NVE dynamics."""
    config = {
        "structure": args.structure.name, "replicate": [int(c) for c in cells], "model": "model.dp",
        "precision": args.precision, "skin_A": 1.0, "timestep_fs": 0.5, "n_threads": jobs.threads,
        "velocities": {"temperature_K": 330, "seed": 1}, "stages": [{"ensemble": "nve", "steps": steps}],
        "thermo": {"every": 100, "file": "thermo.csv"},
    }  # fmt: skip
    (jobs.folder / "run.json").write_text(json.dumps(config | ({"type_map": args.types} if args.types else {})))
    found = jobs.result(ranks, RANK, "md", "run.json")
    return found | {"seconds_per_step": max(rank["seconds"] for rank in found["ranks"]) / steps}


def work_on_one(one: Case) -> Work:
    """What a rank does by itself: on one rank the phase `halo` copies ghosts, all else is the atoms'."""
    first = one.runs[0]
    atoms, ghosts = first["atoms"], first["ranks"][0]["ghosts"]
    halo = one.phase("halo")
    density = atoms / abs(float(np.linalg.det(first["box"])))
    return Work((one.step - halo) / atoms, halo / max(1, ghosts), density, first["reach"])


def predicted(cases: list[Case], network: Network, overlap: Overlap) -> dict[str, Any]:
    """Seconds a step by number of ranks: as measured (own work longer where oversubscribed), and on to 10,000."""
    one, weak = cases[0], cases[0].kind == "weak"
    work, box = work_on_one(one), np.array(one.runs[0]["box"])

    def step(matrix: np.ndarray, grid: Grid, crowding: float = 1.0) -> float:
        found = predict(work, network, Box(matrix), grid, overlap)
        return found.total + (crowding - 1.0) * found.own

    measured = {c.ranks: step(np.array(c.runs[0]["box"]), tuple(c.runs[0]["grid"]), c.crowding) for c in cases}
    grids = {n: choose_grid(Box(np.eye(3) if weak else box), n) for n in CURVE}
    curve = {n: step(box * np.array(grid)[:, None] if weak else box, grid) for n, grid in grids.items()}
    return {"work": asdict(work), "measured": measured, "curve": curve}


def report_md(cases: list[Case], prediction: dict[str, Any] | None) -> None:
    """A table by ranks: time, efficiency, phases, halo."""
    names = list(cases[0].runs[0]["ranks"][0]["phases"])
    atoms = cases[0].runs[0]["atoms"] / cases[0].ranks if cases[0].kind == "weak" else cases[0].runs[0]["atoms"]
    print(f"\n{cases[0].kind} scaling, {atoms:,.0f} atoms{' a rank' if cases[0].kind == 'weak' else ''}; ms a step, "
          f"phases as mean of the ranks (largest); * oversubscribed")  # fmt: skip
    print(f"{'ranks':>6}{'step':>10}{'predicted':>11}{'efficiency':>11}" + "".join(f"{n:>16}" for n in names))
    for case in cases:
        line = f"{case.name:>6}{case.step * 1e3:10.3f}"
        line += f"{prediction['measured'][case.ranks] * 1e3:11.3f}" if prediction else f"{'':>11}"
        line += f"{case.efficiency(cases[0]):11.1%}"
        print(line + "".join(f"{case.phase(n) * 1e3:8.3f} ({case.phase(n, max) * 1e3:.3f})".rjust(16) for n in names))
    print("halo: messages of a rank in one exchange (ranks around it), ghosts and bytes of all ranks (least)")
    for case in cases:
        found = halo(case)
        sums = (f"{sum(found[key]):,} ({sum(found[f'least_{key}']):,})" for key in ("ghosts", "bytes"))
        verdict = "the least" if found["is_least"] else "more than the least" if found["counted"] else "not counted"
        print(f"{case.name:>6}  {max(found['messages'])} ({found['least_messages']}), {', '.join(sums)}: {verdict}")


def halo(case: Case) -> dict[str, Any]:
    """Messages, ghosts and bytes of each rank's exchange in the last run, beside the geometric minimum.

    The minimum counts atoms within reach of the brick; in large systems it is that of their mean density.  Bytes are
    sent here and there received: they compare in sum.
    """
    last = case.runs[-1]
    around = shell(Box(np.array(last["box"])), tuple(last["grid"]), last["reach"])
    found: dict[str, Any] = {key: [r[key] for r in last["ranks"]] for key in ("messages", "ghosts", "bytes")}
    mean = last["atoms"] / case.ranks
    least = [r["least"] or (round(mean * around.ghosts), round(mean * around.foreign)) for r in last["ranks"]]
    ghosts, received = [ghosts for ghosts, _ in least], [BYTES * foreign for _, foreign in least]
    is_least = max(found["messages"]) <= around.messages and found["ghosts"] == ghosts
    is_least &= sum(found["bytes"]) == sum(received)
    found |= {"least_messages": around.messages, "least_ghosts": ghosts, "least_bytes": received}
    return found | {"is_least": is_least, "counted": last["ranks"][0]["least"] is not None}


def stored(case: Case, cases: list[Case]) -> dict[str, Any]:
    """A case for the JSON file."""
    one = next(c for c in cases if c.kind == case.kind)
    return {
        "kind": case.kind, "label": case.label, "ranks": case.ranks, "oversubscribed": case.crowding > 1.0,
        "seconds_per_step": case.step, "efficiency": case.efficiency(one), "runs": case.runs,
    } | ({"halo": halo(case)} if "box" in case.runs[-1] else {})  # fmt: skip


def draw_md(cases: list[Case], predictions: dict[str, Any], path: Path) -> None:
    """Efficiencies with the model's curves, and where a step's time goes."""
    with panels(2, 2, size=(5.4, 3.6)) as (figure, axes):
        for column, kind in enumerate(("weak", "strong")):
            mine = [c for c in cases if c.kind == kind]
            draw_efficiency(axes[column], mine, "MD", COLORS[0])
            curve = predictions[kind] and predictions[kind]["curve"]
            if curve:
                share = [1.0 if kind == "weak" else 1.0 / n for n in curve]
                ratios = [100.0 * curve[1] / t * s for t, s in zip(curve.values(), share, strict=True)]
                axes[column].plot(list(curve), ratios, color=GREY, label="model, a core for each rank", zorder=1)
            axes[column].set(title=f"{kind.capitalize()} scaling")
            axes[column].legend()
            draw_phases(axes[2 + column], mine)
    save(figure, path)


def draw_phases(ax: Axes, cases: list[Case]) -> None:
    """Milliseconds a step by phase, mean of the ranks."""
    bottom = np.zeros(len(cases))
    for k, phase in enumerate(cases[0].runs[0]["ranks"][0]["phases"]):
        height = np.array([1e3 * c.phase(phase) for c in cases])
        ax.bar([c.name for c in cases], height, bottom=bottom, label=phase, color=COLORS[k % len(COLORS)], width=0.6)
        bottom += height
    ax.set(xlabel="ranks (* oversubscribed)", ylabel="ms a step", title="Where the time goes")
    ax.legend(fontsize=8)


# Training


def train(args: argparse.Namespace, jobs: Jobs) -> None:
    """Measure training: one global batch divided among ranks, and a batch for each rank."""
    cases = []
    for backend in args.backends:
        for kind, batch, rule in (("weak", args.batch, "per_rank"), ("strong", args.global_batch, "global")):
            for n in args.ranks:
                crowding = jobs.networks[n]["crowding"]
                frames = (batch if kind == "weak" else batch / n) * crowding
                steps = 4 * max(4, round(args.frames / frames / 4))
                start = lambda o=(backend, rule), b=batch, n=n, s=steps: train_run(args, jobs, o, b, n, s)  # noqa: E731
                cases.append(Case(kind, backend, n, crowding, start))
    in_turns(cases, args.repeat)
    with panels(1, 2, size=(5.4, 3.6)) as (figure, axes):
        for ax, kind in zip(axes, ("weak", "strong"), strict=True):
            frames = f"{args.batch} frames a rank" if kind == "weak" else f"{args.global_batch} frames"
            print(f"\n{kind} scaling of training, {frames} a step; * oversubscribed")
            print(f"{'ranks':>6}{'back end':>12}{'ms a step':>12}{'efficiency':>12}{'hidden':>12}")
            for k, backend in enumerate(args.backends):
                mine = [c for c in cases if (c.kind, c.label) == (kind, backend)]
                for c in mine:
                    hidden = c.runs[-1]["hidden"]  # of the gradients' messages
                    print(
                        f"{c.name:>6}{backend:>12}{c.step * 1e3:12.2f}{c.efficiency(mine[0]):12.1%}"
                        f"{'' if hidden is None else f'{hidden:.0%}':>12}", flush=True,
                    )  # fmt: skip
                draw_efficiency(ax, mine, backend, COLORS[k])
            ax.set(title=f"{kind.capitalize()}: {frames}")
            ax.legend()
    save(figure, RESULTS / f"{args.name}.png")
    path = store(
        args.name, input=args.input.name, system=Path(args.system).name, threads=args.threads, networks=jobs.networks,
        cases=[stored(c, [x for x in cases if x.label == c.label]) for c in cases],
    )  # fmt: skip
    print(f"stored in {path}")


def train_run(
    args: argparse.Namespace, jobs: Jobs, how: tuple[str, str], batch: int, ranks: int, steps: int
) -> dict[str, Any]:
    """One training; its rate is that of the last quarter of the steps."""
    backend, rule = how
    prepared(args.input.resolve(), jobs.folder, steps, batch, args.precision)
    config = json.loads((jobs.folder / "input.json").read_text())
    if args.system:
        config["training"]["training_data"]["systems"] = args.system
    config["dphpc"] = {"batch": rule, "data_parallel": backend}
    config["learning_rate"]["scale_by_worker"] = "none"
    (jobs.folder / "input.json").write_text(json.dumps(config))
    out = jobs(ranks, "-m", "dphpc", "train", "input.json", "--skip-neighbor-stat")
    seconds = float(re.findall(r"batch +\d+: ([\d.]+) s, ", out)[-1])
    hidden = [float(percent) / 100.0 for percent in re.findall(r"(\d+) % of the messages' time", out)]
    return {"steps": steps, "batch": batch, "seconds_per_step": seconds / (steps // 4), "hidden": (hidden or [None])[0]}


# Prediction


def predict_gpus(args: argparse.Namespace) -> None:
    """Weak efficiency of GPUs by the model alone, with its arithmetic, and a figure of it by ranks."""
    print(f"Assumed, not measured: {args.rate:.3g} atom-step/s a GPU, its ghosts included; {args.bandwidth / 1e9:.3g} "
          f"GB/s; latency {args.latency * 1e6:.3g} µs; reach {args.reach:g} Å; {args.density:g} atoms/Å³")  # fmt: skip
    work = Work(1.0 / args.rate, 0.0, args.density, args.reach)
    network = Network(args.latency, args.bandwidth, args.latency)
    grids = {n: choose_grid(Box(np.eye(3)), n) for n in CURVE}
    with panels(1, 1, size=(6.4, 4.2)) as (figure, axes):
        for k, atoms in enumerate(args.atoms):
            for n in args.ranks:
                print("", *arithmetic(work, network, atoms, choose_grid(Box(np.eye(3)), n)), sep="\n")
            edge = (atoms / args.density) ** (1.0 / 3.0)
            for overlap, line in zip(get_args(Overlap), ("-", "--", ":"), strict=True):
                steps = [predict(work, network, Box(np.diag(edge * np.array(g))), g, overlap) for g in grids.values()]
                shares = [100.0 * s.own / s.total for s in steps]
                label = f"{atoms:,.0f} atoms a GPU" + (f", {overlap} hidden" if overlap != "none" else "")
                axes[0].plot(list(grids), shares, line, color=COLORS[k], label=label)
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].set(xlabel="GPUs", ylabel="weak efficiency (%)", ylim=(None, 101), title="Predicted, by assumption")
        axes[0].legend()
    if args.plot:
        print(f"\nplotted in {save(figure, args.plot)}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="the first is the reference")
    both.add_argument("--threads", type=int, default=1, help="of a rank")
    both.add_argument("--repeat", type=int, default=3)
    both.add_argument("--mpirun", default=launcher(), help='launcher up to the number of ranks: "srun --mpi=pmix -n"')
    one = commands.add_parser("md", parents=[both], help="MD")
    one.add_argument("--model", type=Path, default=SILICON / "silicon.dp", help="uncompressed .dp model")
    one.add_argument("--structure", type=Path, default=SILICON / "si8.poscar")
    one.add_argument("--types", nargs="+", help="elements of a LAMMPS data file's types")
    one.add_argument("--precision", default="float64")
    one.add_argument("--weak", type=float, default=1728, help="atoms of a rank, about: a cube of cells")
    one.add_argument("--strong", type=float, default=13824, help="atoms in all, about: a cube of cells")
    one.add_argument("--atom-steps", type=float, default=5e5, help="work of a core in one run")
    one.add_argument("--overlap", choices=get_args(Overlap), default="refresh", help="what the engine hides")
    one.add_argument("--name", default="scaling_md_silicon")
    two = commands.add_parser("train", parents=[both], help="training")
    two.add_argument("--input", type=Path, default=SILICON / "input.json")
    two.add_argument("--system", default=f"{SILICON / 'silicon.hdf5'}#/train/aimd_16", help="'' for the input's own")
    two.add_argument("--batch", type=int, default=11, help="frames of a rank in weak scaling")
    two.add_argument("--global-batch", type=int, default=77, help="frames of a step in strong scaling")
    two.add_argument("--frames", type=float, default=8000, help="work of a core in one run")
    two.add_argument("--precision", default="float64")
    known = ["mpi", "torch", *(["horovod"] if importlib.util.find_spec("horovod") else [])]
    two.add_argument("--backends", nargs="+", choices=("mpi", "torch", "horovod"), default=known)
    two.add_argument("--name", default="scaling_train_silicon")
    three = commands.add_parser("predict", help="weak efficiency of GPUs by the model alone")
    three.add_argument("--atoms", type=float, nargs="+", default=[1e6, 5e4], help="of a GPU")
    three.add_argument("--ranks", type=int, nargs="+", default=[1000])
    three.add_argument("--rate", type=float, default=1e7, help="atom-step/s of one GPU")
    three.add_argument("--bandwidth", type=float, default=25e9, help="bytes/s of a GPU's network")
    three.add_argument(
        "--latency", type=float, default=5e-6, help="seconds of a message, and of a hop of an all-reduce"
    )
    three.add_argument("--reach", type=float, default=7.0, help="cutoff + skin, Å")
    three.add_argument("--density", type=float, default=0.1, help="atoms/Å³; water's")
    three.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run what is asked for."""
    args = parsed()
    if args.command == "predict":
        predict_gpus(args)
        return
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=Path.cwd()) as name:
        jobs = Jobs(args, Path(name))
        for found in jobs.networks.values():
            print(found["places"] + (", oversubscribed" if found["crowding"] > 1.0 else ""))
        (md if args.command == "md" else train)(args, jobs)


if __name__ == "__main__":
    main()
