"""Sums of gradients apart from training; between ranks they are tested in tests/train/test_data_parallel.py."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dphpc.parallel.back_ends import DataParallel
from dphpc.parallel.comm import Communicator
from dphpc.parallel.flight import Flight
from dphpc.parallel.gradients import MpiSum, ShortSum, ThroughHost, gradient_sum, one_gpu_each

HOROVOD = pytest.param("horovod", marks=pytest.mark.skipif(not find_spec("horovod"), reason="make horovod builds it"))


@pytest.mark.mpi
def test_a_gpus_gradients_go_through_the_host_where_mpi_adds_them(comm: Communicator) -> None:
    # The host's memory in the place of a GPU's: what is tested is that the sum comes back, and when.
    values = torch.full((5,), float(comm.rank + 1), dtype=torch.float64)
    sums = ThroughHost(MpiSum(comm))
    under_way = sums.start(values)
    assert torch.all(values == comm.rank + 1)
    under_way.wait()
    expected = comm.size * (comm.size + 1) / 2
    assert torch.all(values == expected)
    assert sums.describe() == "MPI through the host"


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["mpi", "torch", HOROVOD])
def test_sums_that_were_seen_to_be_there_come_back_too(comm: Communicator, kind: DataParallel) -> None:
    values = torch.full((5,), float(comm.rank + 1), dtype=torch.float64)
    with gradient_sum(kind, comm) as library:
        flight = Flight(ThroughHost(library).start(values))
        while not flight.seconds:
            flight.poll()
        flight.land()
    assert torch.all(values == comm.size * (comm.size + 1) / 2)


@pytest.mark.mpi
def test_what_is_on_a_gpu_is_made_short_before_it_leaves_it(comm: Communicator) -> None:
    values = torch.full((5,), float(comm.rank + 1), dtype=torch.float64)
    with gradient_sum("torch", comm) as library:
        sums = ShortSum(ThroughHost(library), "fp16")
        sums.start(values).wait()
        assert sums.describe().endswith("through the host in fp16")
    np.testing.assert_allclose(values, comm.size * (comm.size + 1) / 2, rtol=2**-10)


def test_nccl_asks_for_a_gpu_a_rank() -> None:
    assert one_gpu_each([("a", "0"), ("a", "1"), ("b", "0")])
    assert not one_gpu_each([("a", "0"), ("b", "0"), ("a", "0")])
