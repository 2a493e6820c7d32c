"""Training on several ranks against training on one."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dphpc
from dphpc.core.errors import DataError, InputError, RunError
from dphpc.parallel.comm import Communicator, Serial
from dphpc.parallel.gradients import MpiSum, difference_from_mpi, gradient_sum
from dphpc.train.checkpoint import Checkpoint
from dphpc.train.convert import convert
from dphpc.train.data import Dataset
from dphpc.train.initial import initial_model
from dphpc.train.schema import parse_input
from dphpc.train.statistics import load_or_compute
from dphpc.train.trainer import Trainer
from tests.train.systems import small_input, write_padded

BATCHES = [1, 2, 3, 5]
HOROVOD = pytest.param("horovod", marks=pytest.mark.skipif(not find_spec("horovod"), reason="make horovod builds it"))
KINDS = ["mpi", "torch", HOROVOD]

pytestmark = pytest.mark.mpi


def new_trainer(given: dict[str, Any], comm: Communicator, gradients: Any = None) -> Trainer:
    """A trainer as `train` makes it, without its files."""
    given["model"]["descriptor"]["sel"] = [40, 40]
    config = parse_input(given)
    data = Dataset.load(config.training.training_data, config.model)
    statistics = load_or_compute(data, config.model, batch_sizes=np.array([2, 2]))
    model = initial_model(config.model, statistics, 7, None)
    return Trainer(config, model, data, None, None, comm, gradients)


def gradient(
    trainer: Trainer, system: int, frames: list[int], part: tuple[int, int], *, own: bool = False
) -> list[Any]:
    """Loss, errors and flat gradient of one batch."""
    batch = trainer.training.batch(system, frames, part)
    n_pairs = batch.n_own_pairs if own else int(trainer.comm.allreduce(np.array([batch.n_own_pairs]))[0])
    engine = trainer.engine(batch, n_pairs, own=own)
    result = trainer.loss(engine.forward(batch), batch, 1e-3)
    engine.backward(result.gradient)
    return [
        result.value,
        *[x for _, x in sorted(result.errors.items())],
        trainer.parameters.flats[0].grad.numpy().copy(),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("embedding", ["table", "network"])
def test_gradient_is_that_of_one_rank(comm: Communicator, common_folder: Path, kind: Any, embedding: str) -> None:
    given = small_input()
    given["model"]["descriptor"]["type_one_side"] = False
    given["dphpc"] = {"embedding": embedding}
    with gradient_sum(kind, comm) as gradients:
        ours, alone = new_trainer(given, comm, gradients), new_trainer(given, Serial())
        for n in BATCHES:  # fewer frames than ranks, and numbers that they do not divide
            frames = list(range(n))
            got = gradient(ours, 0, frames, (comm.rank, comm.size))
            for a, b in zip(got, gradient(alone, 0, frames, (0, 1)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.two_ranks
def test_an_error_of_one_rank_is_everybodys(
    comm: Communicator, common_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(small_input(), comm)
    drawn = trainer._draw()
    assert drawn is not None
    if comm.rank == comm.size - 1:

        def fail(_: Any) -> None:
            raise RunError("two atoms are so close", remedy="remove the frame")

        for engine in (trainer._table, trainer._network):
            monkeypatch.setattr(engine, "forward", fail)
    with pytest.raises(RunError) as caught:
        trainer._train_one(drawn, 1e-3)
    assert caught.value.what == "two atoms are so close"
    assert "step 1, system" in str(caught.value.where)
    assert comm.allgather(trainer.step) == [0] * comm.size


def test_a_rank_whose_batches_reach_farther_is_followed(comm: Communicator, common_folder: Path) -> None:
    trainer = new_trainer(small_input(), comm)
    table, drawn = trainer._table, trainer._draw()
    assert table is not None
    assert drawn is not None
    n = table.grid.n_intervals
    if comm.rank == comm.size - 1:
        table.grid = table.grid.extended(table.grid.upper + 20.3 * table.grid.steps[-1])
    for n_pairs in (2 * n, 3 * n, 4 * n + 4, 5 * n):  # some of which pay for a table with the knots of one rank only
        assert len(set(comm.allgather(table.pays(drawn.batch, n_pairs)))) == 1
    trainer.save()
    assert comm.allgather(table.grid) == [table.grid] * comm.size
    assert table.grid.n_intervals == n + 21
    assert Checkpoint.load(trainer.folder.path(0)).grid == table.grid


@pytest.mark.two_ranks
def test_a_checkpoint_more_changes_no_bit_where_a_table_has_grown(comm: Communicator, common_folder: Path) -> None:
    """A table that one rank extends is all ranks' from the next step on, be there a checkpoint between or not."""
    found = []
    for saves in (False, True):
        trainer = new_trainer(small_input(), comm)
        table = trainer._table
        assert table is not None
        if comm.rank == comm.size - 1:
            table.grid = table.grid.extended(table.grid.upper + 20.3 * table.grid.steps[-1])
        if saves:
            trainer.save()
        drawn = trainer._draw()
        assert drawn is not None
        assert comm.allgather(table.grid) == [table.grid] * comm.size
        trainer._train_one(drawn, 1e-3)
        found.append(trainer.checkpoint().arrays)
    assert all(np.array_equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.two_ranks
def test_soap_has_the_bases_of_the_first_rank(
    comm: Communicator, common_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eigh = torch.linalg.eigh

    def turned(x: torch.Tensor) -> Any:
        """As on another processor: vectors of other signs."""
        return SimpleNamespace(eigenvectors=(-1.0) ** comm.rank * eigh(x).eigenvectors)

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    given = small_input(numb_steps=2)  # a later basis would have the signs of its own making
    given["optimizer"] = {"type": "SOAP"}
    trainer = new_trainer(given, comm)
    trainer.run()
    bases = {name: value.numpy() for name, value in trainer.optimizer.state().items() if name.startswith("basis")}
    assert bases
    for other in comm.allgather(bases):
        assert all(np.array_equal(other[name], basis) for name, basis in bases.items())


def test_gradient_of_a_batch_for_each_rank_is_the_mean(comm: Communicator, common_folder: Path) -> None:
    given = {**small_input(), "dphpc": {"batch": "per_rank"}}
    ours, alone = new_trainer(given, comm, MpiSum(comm)), new_trainer(given, Serial())
    draws = [ours.sampler.draw(rank) for rank in range(comm.size)]
    *_, got = gradient(ours, *draws[comm.rank], (0, 1), own=True)
    expected = np.mean([gradient(alone, *draw, (0, 1))[-1] for draw in draws], axis=0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("optimizer", ["Adam", "HybridMuon", "LKF"])
def test_hundred_steps_end_where_one_rank_ends(comm: Communicator, common_folder: Path, optimizer: str) -> None:
    steps = 10 if optimizer == "LKF" else 100
    given = {**small_input(numb_steps=steps, disp_freq=steps // 2, save_freq=steps), "optimizer": {"type": optimizer}}
    dphpc.train(given, comm=comm)
    ours = weights(comm, steps)
    curve = Path("lcurve.out").read_text()
    comm.barrier()
    if comm.rank == 0:
        dphpc.train(given, comm=Serial())
        for name, value in weights(Serial(), steps).items():
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9 * np.abs(value).max(initial=1.0))
        assert Path("lcurve.out").read_text() == curve  # three digits


@pytest.mark.parametrize("kind", ["torch", HOROVOD])
def test_weights_are_those_of_mpi(comm: Communicator, common_folder: Path, kind: Any) -> None:
    found = []
    for back_end in ("mpi", kind):
        dphpc.train({**small_input(), "dphpc": {"data_parallel": back_end}}, comm=comm)
        found.append(weights(comm, 12))
    for name, value in found[0].items():
        # Two numbers have one sum, more have one for each order.
        atol = 0.0 if comm.size <= 2 else 1e-9 * np.abs(value).max(initial=1.0)
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=atol)


@pytest.mark.two_ranks
def test_a_fine_tuning_begins_as_on_one_rank(comm: Communicator, common_folder: Path) -> None:
    dphpc.train(small_input(numb_steps=2, save_ckpt="first", seed=3), comm=comm)
    dphpc.train(small_input(numb_steps=0), comm=comm, finetune="first-2")
    ours, first = weights(comm, 0), Checkpoint.load(Path("first-2.safetensors")).arrays
    assert np.abs(ours["out_bias"] - first["out_bias"]).max() > 1e-3
    other = small_input()
    other["model"]["descriptor"]["rcut"] = 4.5
    with pytest.raises(InputError, match="differs"):
        dphpc.train(other, comm=comm, finetune="first-2")
    if comm.rank == 0:
        dphpc.train(small_input(numb_steps=0), comm=Serial(), finetune="first-2")
        for name, value in weights(Serial(), 0).items():
            np.testing.assert_array_equal(ours[name], value)


def test_restart_to_the_bit_and_on_another_number_of_ranks(comm: Communicator, common_folder: Path) -> None:
    given = small_input(save_freq=5)
    dphpc.train(given, comm=comm)
    whole = weights(comm, 12)
    dphpc.train(given, comm=comm, restart="model.ckpt-5")
    again = weights(comm, 12)
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value)
    if comm.rank == 0:
        dphpc.train(given, comm=Serial(), restart="model.ckpt-5")
        for name, value in weights(Serial(), 12).items():
            np.testing.assert_allclose(whole[name], value, rtol=0, atol=1e-9 * np.abs(value).max(initial=1.0))


def test_frames_of_unequal_size_are_divided(comm: Communicator, common_folder: Path) -> None:
    if comm.rank == 0:
        write_padded(common_folder / "mixed")
    comm.barrier()
    given = small_input(save_freq=12)
    for section in ("training_data", "validation_data"):
        given["training"][section] = {"systems": ["mixed"], "batch_size": 3}
    dphpc.train(given, comm=comm)
    ours = weights(comm, 12)
    if comm.rank == 0:
        dphpc.train(given, comm=Serial())
        for name, value in weights(Serial(), 12).items():
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9 * np.abs(value).max(initial=1.0))


@pytest.mark.two_ranks
def test_rates_go_with_ranks_for_a_batch_each(comm: Communicator, common_folder: Path) -> None:
    given = {**small_input(), "dphpc": {"batch": "per_rank"}}
    for rule, factor in (("linear", comm.size), ("sqrt", comm.size**0.5), ("none", 1.0)):
        given["learning_rate"]["scale_by_worker"] = rule
        assert new_trainer(given, comm, MpiSum(comm))._rate_factor == factor


@pytest.mark.two_ranks
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    comm: Communicator, common_folder: Path, monkeypatch: Any
) -> None:
    step = Trainer._train_one

    def interrupted(self: Trainer, *arguments: Any) -> dict[str, float]:
        if self.step == 6 and comm.rank == comm.size - 1:
            self._ask(signal.SIGUSR1)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_one", interrupted)
    result = dphpc.train(small_input(save_freq=100), comm=comm)
    assert result.interrupted
    assert result.step == 7
    comm.barrier()
    assert Checkpoint.load(Path("model.ckpt-7.safetensors")).step == 7


@pytest.mark.two_ranks
def test_a_step_asks_all_ranks_twice(comm: Communicator, common_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def counted(values: np.ndarray, *operation: Any) -> np.ndarray:
        shapes.append(np.shape(values))
        return allreduce(values, *operation)

    allreduce = comm.allreduce
    monkeypatch.setattr(comm, "allreduce", counted)
    for batch in ("global", "per_rank"):
        trainer = new_trainer({**small_input(numb_steps=3), "dphpc": {"batch": batch}}, comm)
        monkeypatch.setattr(trainer, "_display", lambda *_: ({}, None))
        monkeypatch.setattr(trainer, "save", lambda: None)
        shapes.clear()
        trainer.run()
        in_steps = shapes[shapes.index((6,)) : -1]  # the last is the end's
        assert in_steps.count((6,)) == 3
        # Beside these the predictions of a batch that is divided, or errors where they are shown.
        others = 0 if comm.size == 1 else 3 if batch == "global" else 2
        assert len(in_steps) == 3 + others


@pytest.mark.two_ranks
def test_hidden_messages_are_measured(comm: Communicator, common_folder: Path) -> None:
    result = dphpc.train(small_input(), comm=comm)
    shown = [value for name, value in result.rows() if name == "sums of gradients"]
    if comm.size == 1:
        assert (result.hidden, shown) == (None, [])
    else:
        assert result.hidden is not None
        assert 0.0 < result.hidden <= 1.0
        assert shown == [f"{100 * result.hidden:.0f} % of the messages' time passed behind the backward pass"]


@pytest.mark.two_ranks
def test_errors_are_everybodys(comm: Communicator, common_folder: Path) -> None:
    given = small_input()
    given["training"]["training_data"]["systems"] = ["a", "nowhere"]
    with pytest.raises(DataError, match="nowhere") as caught:
        dphpc.train(given, comm=comm)
    assert caught.value.speaks == (comm.rank == 0)
    if comm.rank == 0:
        convert("a", "cut.lmdb")
        data = Path("cut.lmdb/data.mdb").read_bytes()
        Path("cut.lmdb/data.mdb").write_bytes(data[: len(data) // 2])
    comm.barrier()
    given["training"]["training_data"]["systems"] = "cut.lmdb"
    with pytest.raises(DataError, match="ends early") as caught:
        dphpc.train(given, comm=comm)
    assert caught.value.speaks == (comm.rank == 0)
    given = {**small_input(), "dphpc": {"batch": "per_rank"}, "optimizer": {"type": "LKF"}}
    if comm.size > 1:
        with pytest.raises(InputError, match="LKF measures errors of one batch"):
            dphpc.train(given, comm=comm)
        options = {"gradient_compression": "bf16", "data_parallel": "horovod"}
        with pytest.raises(InputError, match="Horovod has no bf16"):
            dphpc.train({**small_input(), "dphpc": options}, comm=comm)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_mpis(comm: Communicator, kind: Any) -> None:
    assert difference_from_mpi(kind, comm) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("compression", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_sums_in_half_precision(comm: Communicator, kind: Any, compression: Any, tolerance: float) -> None:
    values = torch.from_numpy(np.random.default_rng(comm.rank).normal(size=1000))
    expected = comm.allreduce(values.numpy())
    if (kind, compression) == ("horovod", "bf16"):
        pytest.skip("Horovod has no bf16")
    with gradient_sum(kind, comm, compression) as gradients:
        gradients.start(values).wait()
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def weights(comm: Communicator, step: int) -> dict[str, np.ndarray]:
    """A checkpoint's weights; collective."""
    comm.barrier()
    found = Checkpoint.load(Path(f"model.ckpt-{step}.safetensors")).arrays
    comm.barrier()
    return found
