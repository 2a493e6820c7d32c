import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from dphpc.core.errors import DataError, RunError
from dphpc.parallel.comm import Communicator, Serial, agree, ends_together, together, world
from dphpc.parallel.launch import Launch, launched
from dphpc.parallel.placement import ranks_on_same_cores


@pytest.mark.mpi
def test_collectives(comm: Communicator) -> None:
    rank, size = comm.rank, comm.size
    assert launched().size in (1, size)
    assert comm.allreduce(np.array([rank, 1]))[1] == size
    assert comm.allreduce(np.array([float(rank)]), "max")[0] == size - 1
    assert comm.allreduce(np.array([float(rank)]), "min")[0] == 0
    assert comm.bcast({"a": rank}) == {"a": 0}
    rows = np.zeros(4, [("a", np.int64), ("b", np.float64, (3,))])
    rows["a"] = rank + np.arange(4)
    assert np.array_equal(comm.bcast(rows)["a"], np.arange(4))
    assert comm.allgather(rank) == list(range(size))
    assert 1 <= ranks_on_same_cores(comm) <= size
    places = comm.allgather((platform.node(), comm.node_rank))
    assert len(set(places)) == size
    assert 0 <= comm.node_rank < comm.node_size


@pytest.mark.mpi
def test_messages_round_the_ring(comm: Communicator) -> None:
    up, down = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    received = np.zeros((2, 3))
    ways = [(up, np.full((2, 3), float(comm.rank)))], [(down, received)]
    comm.post(*(ways if comm.size > 1 else ([], []))).wait()
    assert np.all(received == down)


@pytest.mark.mpi
def test_one_failing_rank_raises_on_all_and_one_speaks(comm: Communicator) -> None:
    last = comm.size - 1

    def phase() -> None:
        with together(comm):
            if comm.rank == last:
                raise DataError(f"rank {last} is unhappy", where="here")

    with pytest.raises(DataError, match=f"rank {last} is unhappy") as caught:
        phase()
    assert caught.value.where == "here"
    assert caught.value.speaks == (comm.rank == last)
    assert caught.value.agreed == (comm.size > 1)


@pytest.mark.mpi
def test_a_bug_on_one_rank_reaches_all(comm: Communicator) -> None:
    error = ZeroDivisionError("oops") if comm.rank == 0 else None
    with pytest.raises((RunError, ZeroDivisionError), match="oops"):
        agree(comm, error)
    agree(comm, None)


def test_one_process_needs_no_mpi() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "PMIX", "MPI", "SLURM", "HYDRA"))}
    code = (
        "import sys; from dphpc.parallel.comm import world; c = world(); "
        "assert c.size == 1 and 'mpi4py' not in sys.modules, c"
    )
    subprocess.run([sys.executable, "-c", code], env=clean, check=True)


def test_ranks_without_mpi4py_are_an_error_not_copies_of_one_run() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from dphpc.parallel.comm import world\n"
        "from dphpc.core.errors import InputError\n"
        "try: world()\n"
        "except InputError as e: print(e)\n"
    )
    env = {**os.environ, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert "3 ranks were started, but mpi4py cannot be used" in out
    assert "dphpc[mpi]" in out


def test_launchers_are_told_by_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI", "SLURM", "PALS", "MV2")):
            monkeypatch.delenv(name)
    assert launched() == Launch("", 0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a batch script, not srun
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launched() == Launch()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert launched() == ("srun", 5, 8)


def test_serial_world_raises_what_happened() -> None:
    with pytest.raises(ZeroDivisionError), ends_together(Serial()):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), together(Serial()):
        raise ZeroDivisionError
    assert world().size >= 1


def test_a_rank_that_fails_alone_ends_the_job_with_one_message(mpirun: list[str]) -> None:
    code = (
        "from dphpc.parallel.comm import world, ends_together\n"
        "from dphpc.core.errors import RunError\n"
        "c = world()\n"
        "with ends_together(c):\n"
        "    if c.rank == 1: raise RunError('the disk is full')\n"
        "    c.barrier(); c.barrier()\n"
    )
    done = subprocess.run([*mpirun, "-n", "3", sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count("the disk is full") == 1
    assert "Traceback" not in done.stderr
