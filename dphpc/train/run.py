"""`dphpc train`: from an input file to a trained model's checkpoints and learning curve."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dphpc.core.config import parse_config, read_mapping
from dphpc.core.device import find_device
from dphpc.core.errors import DphpcError, InputError
from dphpc.core.files import claimed
from dphpc.model.dp_model import DPModel
from dphpc.ops.threads import default_threads, set_threads, threads_restored
from dphpc.parallel.back_ends import DataParallel
from dphpc.parallel.comm import Communicator, Serial, ends_together, from_first, together, world
from dphpc.parallel.gradients import gradient_sum
from dphpc.parallel.launch import launched, without_mpi
from dphpc.parallel.placement import placement, ranks_on_same_cores
from dphpc.parallel.process_group import slurm_ranks
from dphpc.train.bias import with_bias
from dphpc.train.checkpoint import SUFFIX, Checkpoint, find_checkpoint, newest_of, read_any_model
from dphpc.train.data import Dataset
from dphpc.train.finetune import changes, shaped_as, shifted_bias, with_section_of
from dphpc.train.initial import initial_model, model_arrays, model_of
from dphpc.train.loss import require_labels
from dphpc.train.neighbor_stat import neighbor_stat, resolve_sel, sel_warnings
from dphpc.train.parameters import torch_device
from dphpc.train.result import TrainResult
from dphpc.train.sampler import Sampler
from dphpc.train.schema import TrainInput, load_input, parse_input, write_input
from dphpc.train.schema.optimization import LkfConfig
from dphpc.train.schema.training import DphpcConfig, TrainingConfig
from dphpc.train.statistics import Statistics, load_or_compute
from dphpc.train.trainer import Trainer

log = logging.getLogger(__name__)

PathLike = str | Path

MAX_NAMES = 10
"""Most types that a warning names."""


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    """Restore the numbers of threads of kernels, BLAS and torch at the end."""
    before = torch.get_num_threads()
    with threads_restored():
        try:
            yield
        finally:
            torch.set_num_threads(before)


@_threads_restored()
def train(
    input: PathLike | Mapping[str, Any] | TrainInput,
    *,
    restart: PathLike | None = None,
    resume: bool = False,
    init_model: PathLike | None = None,
    finetune: PathLike | None = None,
    use_pretrain_script: bool = False,
    skip_neighbor_stat: bool = False,
    output: PathLike | None = "out.json",
    comm: Communicator | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model.

    Files are written to the working directory, and relative paths in the input count from it, as with `dp train`.

    Parameters
    ----------
    input
        DeePMD-kit's training input: a JSON or YAML file, or its contents.
    restart
        A checkpoint (or a folder with one) whose training is continued, bit for bit.
    resume
        Restart from the newest checkpoint of the input's `save_ckpt` if there is one; else start anew.
    init_model
        A checkpoint or model file whose weights, statistics and biases are taken; optimizer and schedule start anew.
    finetune
        The same, and the energy bias is corrected by a fit to the training data's energies.
    use_pretrain_script
        Take the input's `model/descriptor` and `model/fitting_net` from that model.
    skip_neighbor_stat
        Do not compute the smallest distance and the numbers of neighbors in the data.
    output
        Where the complete input is written; None writes none.
    comm
        The ranks that train together; by default those that were started together.
    options
        Keys of the input's section `dphpc` that replace its own: `device`, `data_parallel`, …

    Raises
    ------
    InputError, DataError, ModelFileError
        Something is wrong with the input, the data or the checkpoint; nothing has been trained.
    RunError
        Training cannot go on; the last checkpoint stays.
    """
    if comm is None:
        comm = _ranks(input, options.get("data_parallel"))
    with ends_together(comm):
        with together(comm):
            _require_one_start({"--restart": restart, "--init-model": init_model, "--finetune": finetune})
        if resume and (newest := from_first(comm, lambda: _newest_checkpoint(input))):
            restart, init_model, finetune = newest, None, None  # the checkpoint continues what these began
        with together(comm):
            checkpoint = None if restart is None else Checkpoint.load(find_checkpoint(restart))
            path = finetune if init_model is None else init_model
            source = None if path is None else _trainable_model(path)
            script = _script(checkpoint, source) if use_pretrain_script else None
        config = from_first(comm, lambda: _read(input, script))
        with together(comm):
            config = config.updated(dphpc=_with_options(config.dphpc, options))
            _require_one_batch(config, comm)
            device = find_device(config.dphpc.device, comm.node_rank)
            threads = config.dphpc.n_threads or default_threads(ranks_on_same_cores(comm))
        _use_threads(threads, comm)
        config = comm.bcast(_with_seed(config, checkpoint))
        with together(comm):
            training, validation = _load_data(config)
            config = _with_steps(config, training, comm.size)
            if finetune is not None and source is not None:
                config = shaped_as(source, config, str(finetune))
        config, min_distance = from_first(comm, lambda: _with_sel(config, training, checkpoint, skip_neighbor_stat))
        model = None
        with together(comm):
            if checkpoint is not None:
                model = _restarted(config, checkpoint)
            elif source is not None:
                model = _with_weights_of(source, config, min_distance, str(path))
        if finetune is not None and model is not None:
            pretrained = model
            bias = from_first(comm, lambda: shifted_bias(pretrained, config, training, device))
            model = with_bias(model, bias)
        if model is None:
            model = _new_model(config, from_first(comm, lambda: _statistics(config, training)), min_distance)
        with together(comm):
            place = torch_device(device)
        sums = gradient_sum(config.dphpc.data_parallel, comm, config.dphpc.gradient_compression, place)
        with sums as gradients, contextlib.ExitStack() as claims:
            with together(comm):
                trainer = Trainer(config, model, training, validation, checkpoint, comm, gradients, device)
                if comm.rank == 0:
                    claims.enter_context(claimed([config.training.disp_file]))
                    if output is not None:  # last: a refused run overwrites nothing
                        write_input(config, output)
            _introduce(trainer)
            result = trainer.run()
        for name, value in result.rows():
            log.info("%s: %s", name, value)
        return result


def _ranks(given: PathLike | Mapping[str, Any] | TrainInput, data_parallel: DataParallel | None) -> Communicator:
    """The ranks that were started together, by MPI, or by torch if that is asked for and srun gave them no MPI."""
    if launched().size == 1:
        return Serial()
    if without_mpi():
        with contextlib.suppress(DphpcError, OSError):  # raised later, on all ranks together
            data_parallel = data_parallel or _read(given).dphpc.data_parallel
        if data_parallel == "torch":
            return slurm_ranks()
    return world()


def _require_one_start(starts: Mapping[str, PathLike | None]) -> None:
    given = [flag for flag, path in starts.items() if path is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other", remedy="use one of them")


def _newest_checkpoint(given: PathLike | Mapping[str, Any] | TrainInput) -> Path | None:
    """The newest checkpoint of the trainings with the input's `save_ckpt`, None if there is none."""
    if isinstance(given, TrainInput):
        section: Any = given.training.model_dump()
    else:  # not parsed as a whole: with --use-pretrain-script it may lack sections
        section = (given if isinstance(given, Mapping) else read_mapping(given)).get("training")
    prefix = section.get("save_ckpt") if isinstance(section, Mapping) else None
    link = newest_of(prefix if isinstance(prefix, str) else TrainingConfig.model_fields["save_ckpt"].default)
    return link if link.is_symlink() or link.is_file() else None


def _script(checkpoint: Checkpoint | None, source: DPModel | None) -> DPModel:
    """The model that `--use-pretrain-script` means."""
    model = source if checkpoint is None else checkpoint.model()
    if model is None:
        raise InputError("--use-pretrain-script without a model", remedy="name one with --finetune or --init-model")
    return model


def _read(given: PathLike | Mapping[str, Any] | TrainInput, script: DPModel | None = None) -> TrainInput:
    """The input, its descriptor and fitting net those of the model `script` if one is given."""
    if script is None:
        if isinstance(given, TrainInput):
            return given
        return parse_input(given) if isinstance(given, Mapping) else load_input(given)
    if isinstance(given, TrainInput):
        given = given.model_dump(mode="json", exclude_none=True)
    source = "input" if isinstance(given, Mapping) else str(given)
    mapping = given if isinstance(given, Mapping) else read_mapping(given)
    return parse_input(with_section_of(script, mapping), source=source)


def _with_options(section: DphpcConfig, options: Mapping[str, Any]) -> DphpcConfig:
    """The section with the options that are not None in place of its own values."""
    given = {key: value for key, value in options.items() if value is not None}
    return parse_config(DphpcConfig, {**section.model_dump(), **given}, source="dphpc") if given else section


def _require_one_batch(config: TrainInput, comm: Communicator) -> None:
    """Raise InputError if LKF, which measures one batch, is asked for with a batch of each rank's own."""
    if comm.size > 1 and config.dphpc.batch == "per_rank" and isinstance(config.optimizer, LkfConfig):
        raise InputError(
            "LKF measures errors of one batch, not of one for each rank", where="dphpc/batch", expected='"global"'
        )


def _use_threads(threads: int, comm: Communicator) -> None:
    set_threads(threads)
    torch.set_num_threads(threads)
    places = placement(comm, threads)
    log.info("processes: %s", places)
    if (text := places.warning()) is not None:
        log.warning("%s", text)


def _with_seed(config: TrainInput, checkpoint: Checkpoint | None) -> TrainInput:
    """The input with a seed: its own, the restarted run's, or a random one."""
    if config.training.seed is not None:
        return config
    seed = checkpoint.config.training.seed if checkpoint else int.from_bytes(os.urandom(4), "little")
    return config.updated(training=config.training.updated(seed=seed))


def _load_data(config: TrainInput) -> tuple[Dataset, Dataset | None]:
    t, cache = config.training, config.dphpc.cache_mb * 2**20
    training = Dataset.load(t.training_data, config.model, cache_bytes=cache)
    if names := training.absent:
        shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")
        text = "no training system has atoms of %s, which type_map names: their networks stay as they are"
        log.warning(text, shown)
    require_labels(config.loss, training)
    validation = None
    if t.validation_data is not None:
        validation = Dataset.load(t.validation_data, config.model, cache_bytes=cache)
    return training, validation


def _with_steps(config: TrainInput, training: Dataset, n_ranks: int) -> TrainInput:
    t = config.training
    if t.numb_steps is not None:
        return config
    assert t.numb_epoch is not None, "the schema asks for one of them"
    batches = t.numb_epoch * Sampler.of(training, t.training_data, t.seed).steps_per_epoch
    steps = math.ceil(batches / (n_ranks if config.dphpc.batch == "per_rank" else 1))
    log.info("numb_epoch %g makes %d steps", t.numb_epoch, steps)
    return config.updated(training=t.updated(numb_steps=steps, numb_epoch=None))


def _with_sel(
    config: TrainInput, training: Dataset, checkpoint: Checkpoint | None, skip: bool
) -> tuple[TrainInput, float | None]:
    """The input with `sel` as numbers, and the smallest distance in the data."""
    if checkpoint is not None:
        sel = checkpoint.config.model.descriptor.sel
        given = config.model.descriptor.sel
        if not isinstance(given, str) and given != sel:
            raise InputError(f"sel is {given}", where="model/descriptor/sel", expected=f"{sel}, as in the checkpoint")
        descriptor = config.model.descriptor.updated(sel=sel)
        return config.updated(model=config.model.updated(descriptor=descriptor)), checkpoint.min_distance
    if skip:
        if isinstance(config.model.descriptor.sel, str):
            raise InputError(
                f"sel is '{config.model.descriptor.sel}', which needs the neighbor statistics",
                where="model/descriptor/sel", remedy="leave out --skip-neighbor-stat, or give numbers",
            )  # fmt: skip
        return config, None
    stat = neighbor_stat(training, config.model.descriptor.rcut, config.model.descriptor.mixed)
    for line in stat.lines():
        log.info("%s", line)
    model = resolve_sel(config.model, stat)
    for warning in sel_warnings(model, stat):
        log.warning("%s", warning)
    if math.isinf(stat.min_distance):
        log.warning("no atom of the training data has a neighbor within rcut, %g Å", stat.rcut)
    return config.updated(model=model), stat.min_distance if math.isfinite(stat.min_distance) else None


def _statistics(config: TrainInput, training: Dataset) -> Statistics:
    t = config.training
    sizes = Sampler.of(training, t.training_data, t.seed).batch_sizes
    return load_or_compute(training, config.model, t.stat_file, t.stat_file_mode, batch_sizes=sizes)


def _new_model(config: TrainInput, statistics: Statistics, min_distance: float | None) -> DPModel:
    assert config.training.seed is not None, "resolved before"
    return initial_model(config.model, statistics, config.training.seed, min_distance)


def _with_weights_of(other: DPModel, config: TrainInput, min_distance: float | None, where: str) -> DPModel:
    """The input's model with another model's weights, statistics and biases."""
    if other.type_map != config.model.type_map:
        raise InputError(f"the model's type_map is {other.type_map}", where=where, expected=f"{config.model.type_map}")
    model = model_of(config.model, model_arrays(other), where, min_distance)
    if other.shared is None and _skips(other) != _skips(model):
        raise InputError(
            "the model's networks have other skip connections than trained ones, as in some graphs of TensorFlow",
            where=where, expected="a skip connection wherever a layer is as wide as the one before, or twice as wide",
            remedy="train a new model",
        )  # fmt: skip
    if other.shared and model.shared and other.shared.smooth != model.shared.smooth:
        raise InputError(
            "the model has another form of its type embedding", where=where,
            expected=f'"smooth_type_embedding": {str(other.shared.smooth).lower()} in the input',
        )  # fmt: skip
    if other.shared and model.shared and other.shared.types.layers[0].skip != model.shared.types.layers[0].skip:
        raise InputError(
            "the types' embedding has no skip connection: the model was cut down to fewer types", where=where,
            expected="the whole model", remedy="fine-tune that one, and take types out afterwards",
        )  # fmt: skip
    return model


def _skips(model: DPModel) -> list[list[int]]:
    """Of each layer of each network, see `Layer.skip`."""
    return [[layer.skip for layer in net.layers] for net in (*model.descriptor.networks, *model.fitting.networks)]


def _trainable_model(source: PathLike) -> DPModel:
    model = read_any_model(source)
    if model.shared is not None and (model.descriptor.kinks or not model.shared.trained):
        reason = model.descriptor.kinks or "its types' embedding is more than one linear layer"
        raise InputError(
            f"a model of kind '{model.descriptor.kind}' cannot be trained: {reason}", where=str(source),
            expected="what a dpa1 model is trained with: a smooth activation and davg 0",
        )  # fmt: skip
    return model


def _restarted(config: TrainInput, checkpoint: Checkpoint) -> DPModel:
    """The checkpoint's model; the input may change everything except what defines the model."""
    assert config.training.numb_steps is not None, "resolved before"
    old = checkpoint.config.model
    new = config.model
    changed = list(changes(new, old, ("seed", "precision")))
    for section in ("descriptor", "fitting_net"):
        if getattr(new, section).numpy_precision != getattr(old, section).numpy_precision:
            changed.append(f"model/{section}/precision")
    if changed:
        raise InputError(
            f"the input differs from the restarted training in {', '.join(changed)}",
            remedy="restore these values, or use --init-model to start a new training",
        )
    if checkpoint.step >= config.training.numb_steps:
        raise InputError(
            f"the checkpoint has done {checkpoint.step} steps", where="training/numb_steps",
            expected=f"more than {checkpoint.step} (it is {config.training.numb_steps})",
        )  # fmt: skip
    return checkpoint.model()


def _introduce(trainer: Trainer) -> None:
    for line in _summary(trainer):
        log.info("%s", line)
    if others := sorted(trainer.folder.others):
        names = f"{trainer.folder.path(others[0])}" + (f" to -{others[-1]}" if len(others) > 1 else "")
        log.warning("checkpoints of another training stay here (%s), but those of the same step are replaced", names)


def _summary(trainer: Trainer) -> list[str]:
    t = trainer.config.training
    lines = ["training data:", *trainer.sampler.summary()]
    if trainer.validation is not None:
        lines += ["validation data:", *trainer.validation_sampler.summary()]
    lines.append(f"parameters: {trainer.parameters.n_values}; seed: {t.seed}")
    if trainer.config.dphpc.device != "cpu":
        lines.append(f"device: {trainer.device.name if trainer.device else 'cpu, no GPU that CuPy sees'}")
    lines += [trainer.describe(), f"optimizer: {trainer.optimizer.describe()}"]
    if trainer.comm.size > 1:
        what = "divide each step's batch" if trainer.config.dphpc.batch == "global" else "have a batch each"
        lines.append(f"data-parallel: {trainer.comm.size} ranks {what}; gradients by {trainer.gradients.describe()}")
    first = f" from step {trainer.step}" if trainer.step else ""
    return [*lines, f"train{first} to step {trainer.n_steps}; checkpoints {trainer.folder.path(0).parent}/*{SUFFIX}"]
