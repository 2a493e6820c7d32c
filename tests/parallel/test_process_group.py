"""Ranks that meet through torch.distributed, and a training of ranks that no MPI joins."""

from __future__ import annotations

import json
import os
import platform
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dphpc.parallel.comm import Communicator
from dphpc.parallel.launch import START_ANYWHERE
from dphpc.parallel.process_group import ProcessGroup
from dphpc.train.checkpoint import Checkpoint
from tests.jobscripts.cluster import free_ports
from tests.parallel import test_comm
from tests.train.systems import small_input, write_systems

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PMI", "OMPI", "PRTE", "MPI", "HYDRA", "SLURM", "PALS", "MV2", "MASTER"))
} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def group(comm: Communicator) -> Iterator[ProcessGroup]:
    """The ranks of MPI once more."""
    found = ProcessGroup.beside(comm)
    yield found
    found.close()


@pytest.mark.mpi
def test_ranks_talk_as_by_mpi(group: ProcessGroup, comm: Communicator) -> None:
    test_comm.test_collectives(group)
    test_comm.test_messages_round_the_ring(group)
    test_comm.test_one_failing_rank_raises_on_all_and_one_speaks(group)
    assert (group.rank, group.size, group.node_size, group.node_rank) == (
        comm.rank, comm.size, comm.node_size, comm.node_rank,
    )  # fmt: skip
    rows = np.arange(2.0 * comm.size).reshape(comm.size, 2) + 10 * comm.rank
    assert np.array_equal(group.exchange(rows), comm.exchange(rows))
    assert np.array_equal(group.stack(rows), comm.stack(rows))
    ours, theirs = rows.copy(), rows.copy()
    group.start_sum(ours).wait()
    comm.start_sum(theirs).wait()
    assert np.array_equal(ours, theirs)
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    received = [np.zeros(3) for _ in others]
    sent = [(rank, np.full(3, 1.0 * comm.rank)) for rank in others]
    group.post(sent, list(zip(others, received, strict=True))).wait()
    assert [array.tolist() for array in received] == [[rank] * 3 for rank in others]
    assert group.allreduce(np.zeros((0, 3))).shape == (0, 3)


def as_srun(command: Sequence[str], folder: Path, n_ranks: int = 2, **variables: str) -> list[tuple[int, str]]:
    """Status and messages of each rank of a command, started with what `srun --mpi=none` sets."""
    job = {
        "SLURM_STEP_NUM_TASKS": str(n_ranks), "SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": platform.node(), "SLURM_STEP_NUM_NODES": "1", **variables,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            command, cwd=folder, env={**CLEAN, **job, "SLURM_PROCID": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(n_ranks)
    ]  # fmt: skip
    texts = [rank.communicate(timeout=300)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, texts, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, and an input of three steps."""
    write_systems(tmp_path)
    (tmp_path / "input.json").write_text(json.dumps(small_input(numb_steps=3, save_freq=3)))
    return tmp_path


TRAIN = [sys.executable, "-m", "dphpc", "train", "input.json"]


def test_training_without_mpi_is_that_with_it(folder: Path, mpirun: list[str]) -> None:
    subprocess.run([*mpirun, "-n", "2", *TRAIN], cwd=folder, env=CLEAN | START_ANYWHERE, check=True, timeout=300)
    expected = Checkpoint.load(folder / "model.ckpt-3.safetensors").arrays
    (folder / "model.ckpt-3.safetensors").unlink()
    given = json.loads((folder / "input.json").read_text())
    (folder / "input.json").write_text(json.dumps({**given, "dphpc": {"data_parallel": "torch"}}))
    (status, log), (other, silence) = as_srun(TRAIN, folder)
    assert (status, other) == (0, 0), log + silence
    assert "2 ranks divide each step's batch; gradients by torch.distributed (Gloo)" in log
    assert silence == ""
    found = Checkpoint.load(folder / "model.ckpt-3.safetensors").arrays
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)  # the sum of two has one order


def test_what_mpi_is_asked_to_do_it_must_be_able_to(folder: Path) -> None:
    ends = as_srun(TRAIN, folder)
    assert [status for status, _ in ends] == [1, 1]
    assert "srun --mpi=none and --data-parallel torch" in ends[0][1]


def test_a_mistake_is_told_once(folder: Path) -> None:
    words = [*TRAIN, "--data-parallel", "torch"]
    (folder / "input.json").write_text('{"modell": {}}')
    ends = as_srun(words, folder)
    assert [status for status, _ in ends] == [1, 1]
    assert "".join(text for _, text in ends).count("error") == 1


def test_ranks_that_cannot_meet_say_where(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ((status, text),) = as_srun(
            [*TRAIN, "--data-parallel", "torch"], folder, 1, MASTER_PORT=port, SLURM_STEP_NUM_TASKS="2"
        )
    assert status == 1
    assert f"cannot meet at 127.0.0.1:{port}" in text
    assert "MASTER_PORT" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_alone_ends_all_with_one_message(folder: Path, failing: int) -> None:
    code = (
        "from dphpc.parallel.process_group import slurm_ranks\n"
        "from dphpc.parallel.comm import ends_together\n"
        "from dphpc.core.errors import RunError\n"
        "c = slurm_ranks()\n"
        "with ends_together(c):\n"
        f"    if c.rank == {failing}: raise RunError('the disk is full')\n"
        "    c.barrier(); c.barrier()\n"
    )
    ends = as_srun([sys.executable, "-c", code], folder, MASTER_PORT=str(free_ports(1)[0]))
    assert all(status for status, _ in ends)
    said = "".join(text for _, text in ends)
    assert said.count("the disk is full") == 1, said
    assert "Traceback" not in said
