"""What the ASE calculator adds to the bare evaluation, in ASE's own velocity Verlet.

    python benchmarks/ase_calculator.py                     # 216 atoms of silicon, the demo's model
    python benchmarks/ase_calculator.py --model compressed.dp --structure water.lmp --types O H --replicate 1

Within one and the same run the clock is read around every call of the calculator and around every
`DeepPotential.evaluate` inside it, which works on the kept neighbor list: the difference is the calculator's
overhead, neighbor rebuilds, images and ASE's copies included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from harness import store

from dphpc.interfaces.ase import DPHPC
from dphpc.md.structures import read_structure

SILICON = Path(__file__).parents[1] / "examples" / "silicon"


class Clock:
    """Seconds spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def atoms_of(path: Path, types: list[str] | None, replicate: int) -> Atoms:
    """A structure file as ASE's atoms."""
    source = read_structure(str(path), types, None)
    rows, box = source.read(0, source.n_atoms), source.box
    atoms = Atoms([source.species[t] for t in rows["types"]], rows["positions"], cell=box.matrix, pbc=box.periodic)
    return atoms * (replicate, replicate, replicate)


def measure(atoms: Atoms, args: argparse.Namespace, skin: float) -> dict[str, float]:
    """Milliseconds a step of one run, by what they are spent on."""
    atoms, in_call, in_evaluate = atoms.copy(), Clock(), Clock()
    calculator = DPHPC(args.model, precision=args.precision, skin=skin, threads=args.threads)
    potential = calculator.potential.models[0].potential
    potential.evaluate = in_evaluate.around(potential.evaluate)  # type: ignore[method-assign]
    calculator.calculate = in_call.around(calculator.calculate)  # type: ignore[method-assign]
    atoms.calc = calculator
    spread = np.sqrt(atoms.get_masses() * units.kB * args.temperature)
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = VelocityVerlet(atoms, args.timestep * units.fs)
    dynamics.run(5)
    in_call.seconds = in_evaluate.seconds = 0.0
    builds, start = calculator.surroundings.builds, time.perf_counter()
    dynamics.run(args.steps)
    # `run` starts with forces that are at hand: as many calls as steps.
    total = time.perf_counter() - start
    return {
        "evaluate_ms": 1e3 * in_evaluate.seconds / args.steps,
        "calculator_ms": 1e3 * in_call.seconds / args.steps,
        "step_ms": 1e3 * total / args.steps,
        "overhead": in_call.seconds / in_evaluate.seconds - 1.0,
        "steps_between_builds": args.steps / max(1, calculator.surroundings.builds - builds),
    }


def main() -> None:
    """Measure each skin `--repeat` times in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SILICON / "silicon.dp")
    parser.add_argument("--structure", type=Path, default=SILICON / "si8.poscar")
    parser.add_argument("--types", nargs="+", help="elements of a LAMMPS file's types")
    parser.add_argument("--replicate", type=int, default=3)
    parser.add_argument("--precision", default="float64")
    parser.add_argument("--skins", type=float, nargs="+", default=[1.0], help="Å")
    parser.add_argument("--temperature", type=float, default=330.0, help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="ase_calculator")
    args = parser.parse_args()
    atoms = atoms_of(args.structure, args.types, args.replicate)
    runs: dict[str, list[dict[str, float]]] = {str(skin): [] for skin in args.skins}
    for _ in range(args.repeat):
        for skin in args.skins:
            runs[str(skin)].append(measure(atoms, args, skin))
    print(
        f"{len(atoms)} atoms, {args.model.name}, {args.precision}, {args.threads} thread(s); medians of {args.repeat}"
    )
    print(f"{'skin/Å':>8}{'evaluate/ms':>13}{'calculator/ms':>15}{'step/ms':>10}{'overhead':>10}{'steps/build':>13}")
    for skin, found in runs.items():
        m = {key: statistics.median(run[key] for run in found) for key in found[0]}
        print(
            f"{skin:>8}{m['evaluate_ms']:13.3f}{m['calculator_ms']:15.3f}{m['step_ms']:10.3f}{m['overhead']:10.1%}"
            f"{m['steps_between_builds']:13.0f}"
        )
    path = store(
        args.name, model=args.model.name, structure=args.structure.name, n_atoms=len(atoms), precision=args.precision,
        threads=args.threads, temperature_K=args.temperature, timestep_fs=args.timestep, steps=args.steps,
        by_skin_A=runs,
    )  # fmt: skip
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
