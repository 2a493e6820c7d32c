"""Runs that a signal ends: in order, on all ranks at the same step, and to be taken up again."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.md.run import run_md
from dphpc.parallel.comm import Communicator
from dphpc.potential.contract import Outputs
from tests.lennard_jones import IMPORT, LennardJones

pytestmark = pytest.mark.two_ranks

Make = Callable[..., dict[str, Any]]

PROGRAM = (
    IMPORT
    + """
import os
from dphpc.cli.main import main
from dphpc.md import run
from dphpc.parallel.comm import world
open(f"pid.{world().rank}", "w").write(str(os.getpid()))
run.load_potential = lambda path, settings, device: LennardJones(["Ar"], cutoff=6.5, cutoff_smooth=5.0)
main(["md", "run.json"])
"""
)
"""`dphpc md` with argon in the place of a model file; leaves each rank's process id in a file."""


class Signalled:
    """A potential in whose n-th call the last rank sends itself a signal."""

    def __init__(self, inner: LennardJones, comm: Communicator, call: int, number: int) -> None:
        self.inner, self.cutoff, self.type_map = inner, inner.cutoff, inner.type_map
        self.mine, self.left, self.number = comm.rank == comm.size - 1, call, number

    def memory_per_atom(self) -> float:
        return 0.0

    def compute(self, state: Any, neighbors: Any, halo: Any, outputs: Outputs, centers: Any = None) -> None:
        self.left -= 1
        if self.left == 0 and self.mine:
            os.kill(os.getpid(), self.number)
        self.inner.compute(state, neighbors, halo, outputs, centers)


@pytest.mark.mpi
@pytest.mark.parametrize("thermostat", [None, "bussi", "langevin"])
def test_a_signal_to_one_rank_ends_all_at_the_same_step(
    comm: Communicator, config: Make, argon: LennardJones, thermostat: str | None
) -> None:
    folder = Path(config()["structure"]).parent
    stage: dict[str, Any] = {"ensemble": "nve", "steps": 30}
    if thermostat:
        stage |= {"ensemble": "nvt", "thermostat": thermostat, "temperature_K": 60}
    restart = {"every": 1000, "file": str(folder / "stop.h5")}
    plan = {"stages": [{"ensemble": "nve", "steps": 2}, stage], "restart": restart}
    whole = run_md(config(**plan, thermo={"every": 5, "file": None}), comm=comm, potential=argon)
    assert whole.stopped_by == 0
    assert whole.steps == 32
    # Call 1 is the start, call 10 step 9; what was asked there is agreed on in step 10.
    asked = Signalled(argon, comm, 10, signal.SIGUSR1)
    before = signal.getsignal(signal.SIGUSR1)
    stopped = run_md(config(**plan, thermo={"every": 5, "file": None}), comm=comm, potential=asked)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert stopped.stopped_by == signal.SIGUSR1
    assert comm.allgather(stopped.steps) == [10] * comm.size
    assert stopped.files["restart"] == restart["file"]
    again = config(**plan, structure=restart["file"], replicate=None, thermo={"every": 5, "file": None})
    rest = run_md(again, comm=comm, potential=argon)
    assert rest.steps == 22
    for name in ("potential_eV", "kinetic_eV", "conserved_eV"):
        # Measured: 3e-15; the restart sorts atoms anew.
        np.testing.assert_allclose(rest.thermo[name], whole.thermo[name][2:], rtol=1e-10, err_msg=name)


@pytest.mark.mpi
def test_the_same_run_file_continues_its_run(comm: Communicator, config: Make, argon: LennardJones) -> None:
    folder = Path(config()["structure"]).parent
    restart = {"every": 1000, "file": str(folder / "chain.h5")}

    def steps(potential: Any = argon, last: int = 30, **changes: Any) -> int:
        stages = [{"ensemble": "nve", "steps": 2}, {"ensemble": "nve", "steps": last}]
        result = run_md(
            config(**{"stages": stages, "restart": restart} | changes), resume=True, comm=comm, potential=potential
        )
        return result.steps

    assert steps(Signalled(argon, comm, 10, signal.SIGUSR1)) == 10  # nothing to go on from: from the beginning
    assert steps(Signalled(argon, comm, 5, signal.SIGUSR1)) == 5
    assert steps() == 32 - 15
    with pytest.raises(InputError, match="the run is complete"):
        steps()
    assert steps(last=34) == 4
    with pytest.raises(InputError, match="other stages"):
        steps(stages=[{"ensemble": "nve", "steps": 3}, {"ensemble": "nve", "steps": 40}])
    with pytest.raises(InputError, match="'restart' is missing"):
        steps(restart=None)
    old, restart = restart["file"], {"every": 1000, "file": str(folder / "new.h5")}
    new = {"structure": old, "replicate": None, "stages": [{"ensemble": "nve", "steps": 10}], "thermo": {"file": None}}
    assert steps(Signalled(argon, comm, 5, signal.SIGUSR1), restart=restart, **new) == 5  # a new plan begins there
    assert steps(restart=restart, **new) == 5
    if comm.rank == 0:
        table = np.genfromtxt(folder / "thermo.csv", delimiter=",", names=True)
        assert table["step"].tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 36]


@pytest.mark.mpi
def test_a_stop_without_restart_says_so(
    comm: Communicator, config: Make, argon: LennardJones, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Signalled(argon, comm, 4, signal.SIGINT)
    result = run_md(config(), comm=comm, potential=asked)
    assert (result.stopped_by, result.steps) == (signal.SIGINT, 4)
    message = "stopped by SIGINT after 4 of 20 steps; no restart was written: the run file has no 'restart'"
    assert (message in capsys.readouterr().out) == (comm.rank == 0)


@pytest.mark.mpi
def test_a_signal_in_the_last_step_changes_nothing(comm: Communicator, config: Make, argon: LennardJones) -> None:
    result = run_md(config(), comm=comm, potential=Signalled(argon, comm, 21, signal.SIGTERM))
    assert (result.stopped_by, result.steps) == (0, 20)


@pytest.mark.parametrize(
    ("n_ranks", "to", "number"),
    [
        (1, [0], signal.SIGTERM),
        (1, [0], signal.SIGINT),
        (2, [1], signal.SIGTERM),
        (2, [0, 1], signal.SIGUSR1),
    ],
)
def test_the_command_ends_with_the_signals_status(
    n_ranks: int, to: list[int], number: signal.Signals, config: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    restart = {"every": 10**7, "file": "stop.h5"}
    run = config(stages=[{"ensemble": "nve", "steps": 10**7}], model="none.dp", restart=restart, thermo={"every": 1})
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "none.dp").touch()
    start = [*request.getfixturevalue("mpirun"), "-n", str(n_ranks)] if n_ranks > 1 else []
    # Each rank tells its status, in one write, as ranks' lines are mixed: a launcher's own is another.
    tell = "print(f'STATUS {e.code}\\n', end='', flush=True)"
    program = f"try:\n exec({PROGRAM!r})\nexcept SystemExit as e:\n {tell}\n"
    command = [*start, sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(300, process.kill)  # a run that does not stop must fail this test, not hang it
        watchdog.start()
        assert process.stdout is not None
        # Step 5, 0.02 ps; Open MPI gives ranks a terminal, and lines there begin with its codes.
        started = any(re.search(r" 5 +0\.02 ", line) for line in process.stdout)
        assert started, process.communicate()
        for rank in to:
            os.kill(int((tmp_path / f"pid.{rank}").read_text()), number)
        out, err = process.communicate()
        watchdog.cancel()
    assert out.count(f"STATUS {128 + number}") == n_ranks, out + err
    assert "Traceback" not in err
    found = re.search(rf"stopped by {number.name} after (\d+) of 10000000 steps; go on with structure: stop.h5", out)
    assert found, out
    with h5py.File(tmp_path / "stop.h5") as file:
        assert json.loads(file.attrs["run"])["step"] == int(found.group(1))
