"""dphpc test, model-devi, eval-desc, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dphpc.cli.app import DataFile, Device, command, progress_bar, show_result, systems_of


@command("test")
def evaluate(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model file.")] = Path("frozen_model.dp"),
    system: Annotated[str, typer.Option("--system", "-s", help="System, or directory searched for systems.")] = ".",
    datafile: DataFile = None,
    n_frames: Annotated[int, typer.Option("--numb-test", "-n", min=0, help="Frames of each system; 0 means all.")] = 0,
    seed: Annotated[int, typer.Option("--rand-seed", "-r", min=0, help="Seed of --shuffle-test.")] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle-test", help="Take frames at random.")] = False,
    detail_prefix: Annotated[
        Path | None, typer.Option("--detail-file", "-d", help="Prefix of files with every label and prediction.")
    ] = None,
    atomic: Annotated[
        bool, typer.Option("--atomic", "-a", help="Errors of the atoms' energies, too: labels atom_ener.npy.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Errors of a model on labelled data."""
    from dphpc.train.evaluate import test

    systems = system if datafile is None else systems_of(datafile)
    with progress_bar("testing") as progress:
        chosen = seed if shuffle else None
        report = test(model, systems, n_frames, detail_prefix, chosen, progress, atomic=atomic, device=device)
    show_result(str(report))


@command("model-devi", repeated=("-m", "--models"))
def compare_models(
    models: Annotated[list[Path], typer.Option("--models", "-m", help="Two or more model files: -m A.dp B.dp.")],
    system: Annotated[str, typer.Option("--system", "-s", help="System, or directory searched for systems.")] = ".",
    output: Annotated[Path, typer.Option("--output", "-o", help="Table of deviations.")] = Path("model_devi.out"),
    frequency: Annotated[int, typer.Option("--frequency", "-f", min=1, help="Steps between the system's frames.")] = 1,
    real_error: Annotated[bool, typer.Option("--real_error", help="Deviations from the system's labels.")] = False,
    atomic: Annotated[bool, typer.Option("--atomic", help="Columns for the force of each atom, too.")] = False,
    relative: Annotated[
        float | None, typer.Option("--relative", help="Divide those of forces by their magnitude plus this, in eV/Å.")
    ] = None,
    relative_v: Annotated[
        float | None,
        typer.Option("--relative_v", help="Divide those of virials by their magnitude plus this, in eV per atom."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """How far several models disagree on the frames of a system."""
    from dphpc.potential.committee import Measure
    from dphpc.train.evaluate import model_devi

    measure = Measure(atomic, relative, relative_v, real_error)
    with progress_bar("comparing models") as progress:
        model_devi(models, system, output, frequency, progress, measure=measure, device=device)
    print(output)


@command("eval-desc")
def write_descriptors(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model file.")] = Path("frozen_model.dp"),
    system: Annotated[str, typer.Option("--system", "-s", help="System, or directory searched for systems.")] = ".",
    datafile: DataFile = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files, NAME.npy.")] = Path("desc"),
    dtype: Annotated[Literal["fp32", "fp64", "native"], typer.Option("--dtype", help="Precision.")] = "native",
) -> None:
    """Write the descriptors of the atoms of systems."""
    from dphpc.train.evaluate import eval_desc

    systems = system if datafile is None else systems_of(datafile)
    with progress_bar("evaluating descriptors") as progress:
        written = eval_desc(model, systems, output, "f4" if dtype == "fp32" else "f8", progress)
    show_result("\n".join(map(str, written)))


@command("show")
def show_model(
    model: Annotated[Path, typer.Argument(metavar="INPUT", help="Model file.")],
    attributes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[type-map|descriptor|fitting-net|size]...", help="What to show; a summary if not given."
        ),
    ] = None,
) -> None:
    """What a model file holds."""
    from dphpc.model.show import show

    print(show(model, attributes))
