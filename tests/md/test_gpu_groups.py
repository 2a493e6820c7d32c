"""Groups with thermostats in runs whose atoms live on a GPU: the host's results, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dphpc.md.engine import Engine
from dphpc.md.gpu_engine import GpuEngine
from dphpc.parallel.comm import Communicator
from tests.md.test_gpu_engine import ALL, Runs, equal, kind_of
from tests.md.test_gpu_minimize import plan, rattled_runs
from tests.ops.emulation.device import EmulatedDevice

pytestmark = pytest.mark.two_ranks

CHOSEN = {"low": {"below_A": {"z": 2.0}}, "one": {"ids": [5]}, "high": {"above_A": {"z": 3.5}}}
OWN = {name: {k: v for k, v in ALL[k].items() if k not in ("ensemble", "steps")} for k, name in enumerate(CHOSEN)}
BOTH = {"ensemble": "nvt", "steps": 13, "groups": OWN}
SWAPPED = {"ensemble": "nvt", "steps": 8, "groups": {"low": OWN["one"], "high": OWN["low"]}}


@pytest.fixture
def runs(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return rattled_runs(comm, tmp_path, monkeypatch)


def test_all_is_the_hosts(runs: Runs, device: Any) -> None:
    """Also where windows are discarded, and lists built on the GPU, which puts atoms into another order."""
    stages = plan(runs, BOTH, ALL[2] | {"steps": 5}, SWAPPED) | {"groups": CHOSEN, "skin_A": 0.1}
    stages |= {"fixed": {"ids": [1]}}
    gpu = runs(GpuEngine, device, **stages)
    assert runs.engine.rebuilds > 2
    host = runs(Engine, device, **stages)
    assert np.array_equal(gpu["group"], host["group"])
    assert set(host["group"].tolist()) == {0, 1, 2, 3}
    for name, values in host.items():
        # exp, log, sin and cos of two libraries
        np.testing.assert_allclose(gpu[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
    for name in CHOSEN:
        assert np.abs(host[f"heat_{name}_eV"]).max() > 0.01


@pytest.mark.mpi
def test_any_number_of_ranks_gives_the_same_bits(runs: Runs, comm: Communicator, emulated: EmulatedDevice) -> None:
    """Atoms keep their group when they are dealt out on the GPU, in whatever order."""
    runs.velocities = {"temperature_K": 3000, "seed": 3}
    stages = plan(runs, BOTH, SWAPPED) | {"groups": CHOSEN, "replicate": [1, 1, 2], "skin_A": 0.2}
    stages["groups"] = CHOSEN | {"high": {"between_A": {"z": [3.5, 5.5]}}}
    found = runs(kind_of(comm), emulated, comm, **stages)
    assert runs.engine.rebuilds > 1
    if comm.rank == 0:
        equal(found, runs(GpuEngine, emulated, **stages))
    comm.barrier()
