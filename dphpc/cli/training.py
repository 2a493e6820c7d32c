"""dphpc train, freeze, compress, change-bias, neighbor-stat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dphpc.cli.app import (
    DataFile,
    Device,
    DeviceOfInput,
    command,
    exit_if_stopped,
    progress_bar,
    show_result,
    systems_of,
)
from dphpc.parallel.back_ends import DataParallel


@command("train", parallel=True)
def train_model(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Training input, JSON or YAML.")],
    init_model: Annotated[
        Path | None,
        typer.Option(
            "--init-model", "-i", "--init-frz-model", "-f", help="Start from this checkpoint's or model's weights."
        ),
    ] = None,
    finetune: Annotated[
        Path | None,
        typer.Option("--finetune", "-t", help="The same, with the energies of types fitted to the training data."),
    ] = None,
    use_pretrain_script: Annotated[
        bool, typer.Option("--use-pretrain-script", help="Take descriptor and fitting_net from that model.")
    ] = False,
    restart: Annotated[Path | None, typer.Option("--restart", "-r", help="Continue this checkpoint's run.")] = None,
    resume: Annotated[
        bool, typer.Option("--continue", help="Restart from the input's newest checkpoint, if there is one.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the completed input is written.")] = Path(
        "out.json"
    ),
    skip_neighbor_stat: Annotated[
        bool, typer.Option("--skip-neighbor-stat", help="Do not compute neighbor statistics first.")
    ] = False,
    data_parallel: Annotated[
        DataParallel | None,
        typer.Option("--data-parallel", help="What adds up gradients between ranks; the input's choice if not given."),
    ] = None,
    device: DeviceOfInput = None,
) -> None:
    """Train a model; on several ranks as `mpirun -n N dphpc train INPUT`."""
    from dphpc.train.run import train

    result = train(
        input, restart=restart, resume=resume, init_model=init_model, finetune=finetune,
        use_pretrain_script=use_pretrain_script, skip_neighbor_stat=skip_neighbor_stat, output=output,
        data_parallel=data_parallel, device=device,
    )  # fmt: skip
    exit_if_stopped(result.stopped_by)


@command("freeze")
def freeze_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", "--checkpoint-folder", "-c", help="A checkpoint, or a folder with one."),
    ] = Path("."),
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file, .dp or .yaml.")] = Path("frozen_model.dp"),
) -> None:
    """Write the model of a checkpoint as a model file."""
    from dphpc.train.freeze import freeze

    print(freeze(checkpoint, output))


@command("convert-backend")
def convert_model(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Model file, or checkpoint of DeePMD-kit.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Model file, .dp or .yaml.")],
) -> None:
    """Write a model in another format."""
    from dphpc.model.model_file import read_model, write_model

    write_model(read_model(input), output)
    print(output)


@command("compress", repeated=("--types",))
def compress_model(
    input: Annotated[Path, typer.Option("--input", "-i", help="Model file.")] = Path("frozen_model.dp"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Compressed model file.")] = Path(
        "frozen_model_compressed.dp"
    ),
    step: Annotated[
        float | None, typer.Option("--step", "-s", help="Spacing of the table; chosen by measured error if not given.")
    ] = None,
    extrapolate: Annotated[
        float, typer.Option("--extrapolate", "-e", help="The table reaches this many times beyond the data.")
    ] = 5.0,
    types: Annotated[
        list[str] | None,
        typer.Option("--types", help="Keep these types only, as in --types H O: of a dpa1 model with many."),
    ] = None,
    frequency: Annotated[int, typer.Option("--frequency", "-f", hidden=True)] = -1,
) -> None:
    """Replace the embedding network by a table of stated accuracy."""
    from dphpc.model.compress import compress_file

    show_result(str(compress_file(input, output, step=step, extrapolate=extrapolate, types=types)))


@command("change-bias", repeated=("-s", "--system", "-b", "--bias-value"))
def change_energy_bias(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Model file, checkpoint, or folder of checkpoints.")],
    system: Annotated[
        list[str] | None,
        typer.Option("--system", "-s", help="Systems, or directories searched for them; . if none."),
    ] = None,
    datafile: DataFile = None,
    bias_value: Annotated[
        list[float] | None, typer.Option("--bias-value", "-b", help="Energy of each type in eV, in place of data.")
    ] = None,
    n_frames: Annotated[int, typer.Option("--numb-batch", "-n", min=0, help="Frames of each system; 0 means all.")] = 0,
    mode: Annotated[
        Literal["change", "set"],
        typer.Option("--mode", "-m", help="Fit what the model misses of the energies, or the energies themselves."),
    ] = "change",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new model; INPUT_updated if not given.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Change the energy of each type in a model to fit labelled data, or to given values."""
    from dphpc.train.bias import change_bias

    systems = system if datafile is None else systems_of(datafile)
    with progress_bar("predicting") as progress:
        written = change_bias(input, systems, mode, bias_value, n_frames, output, progress, device)
    print(written)


@command("neighbor-stat", repeated=("-t", "--type-map"))
def neighbor_statistics(
    rcut: Annotated[float, typer.Option("--rcut", "-r", help="Cutoff radius in Å.")],
    system: Annotated[str, typer.Option("--system", "-s", help="System, or directory searched for systems.")] = ".",
    type_map: Annotated[
        list[str] | None, typer.Option("--type-map", "-t", help="Species, as in -t O H; the data's own if not given.")
    ] = None,
    mixed_type: Annotated[
        bool, typer.Option("--mixed-type", "--one-type", help="Count neighbors of all types together: one number.")
    ] = False,
) -> None:
    """Smallest distance and largest numbers of neighbors in data (for `sel`)."""
    from dphpc.train.neighbor_stat import neighbor_stat_of

    stat, names = neighbor_stat_of([system], rcut, type_map, mixed_type=mixed_type)
    show_result("\n".join([f"type_map: {names}", *stat.lines()]))
