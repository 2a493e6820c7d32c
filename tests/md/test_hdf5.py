"""Files that all ranks write at once; needs an h5py with MPI (docs/md.md tells how to get one)."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.errors import RunError
from dphpc.md.run import run_md
from dphpc.md.sealed import damage_of
from dphpc.parallel.comm import Communicator
from tests.lennard_jones import LennardJones
from tests.md.test_restart import DiskFull, step_of

Make = Callable[..., dict[str, Any]]

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not h5py.get_config().mpi, reason="this h5py was built without MPI: rank 0 writes alone"),
]


def outputs(folder: Path, name: str) -> dict[str, Any]:
    trajectory = {"every": 5, "file": str(folder / f"{name}.h5md"), "velocities": True, "forces": True}
    return {"trajectory": trajectory, "restart": {"every": 5, "file": str(folder / f"{name}.h5")}}


def content(path: Path) -> dict[str, Any]:
    """All values and attributes of a file by their names."""
    found: dict[str, Any] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = item[()].tolist() if isinstance(item, h5py.Dataset) else None
        found.update({f"{name}@{key}": np.array(value).tolist() for key, value in item.attrs.items()})

    with h5py.File(path, "r") as file:
        file.visititems(note)  # the first of hard links only
        note("/", file)
    return found


@pytest.mark.parametrize("replicate", [[3, 2, 2], [1, 1, 1]])  # 48 atoms; 4, fewer than some numbers of ranks
def test_all_ranks_write_what_one_writes(
    comm: Communicator, config: Make, argon: LennardJones, monkeypatch: pytest.MonkeyPatch, replicate: list[int]
) -> None:
    folder = Path(config()["structure"]).parent
    run_md(config(replicate=replicate, **outputs(folder, "all")), comm=comm, potential=argon)
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "get_config", lambda: SimpleNamespace(mpi=False))
        run_md(config(replicate=replicate, **outputs(folder, "one")), comm=comm, potential=argon)
    if comm.rank == 0:
        assert content(folder / "all.h5md") == content(folder / "one.h5md")
        both = content(folder / "all.h5"), content(folder / "one.h5")
        # They name the trajectory beside them.
        assert both[0].pop("/@run").replace("all.h5md", "one.h5md") == both[1].pop("/@run")
        assert both[0] == both[1]
        assert len(both[0]["atoms/velocities"]) == 4 * np.prod(replicate)
        assert damage_of(folder / "all.h5") is None
    comm.barrier()


@pytest.mark.parametrize("what", ["restart", "trajectory"])
def test_what_the_last_rank_cannot_write_all_hear_of(
    comm: Communicator, config: Make, argon: LennardJones, what: str
) -> None:
    if comm.size == 1:
        pytest.skip("one rank writes alone")
    folder = Path(config()["structure"]).parent
    run = config(thermo={"every": 5, "file": None}, replicate=[4, 4, 4], **outputs(folder, "r"))
    run.pop("trajectory" if what == "restart" else "restart")
    # Call 1 is step 0: the last rank's disk is full at step 10.
    last = comm.rank == comm.size - 1
    full = DiskFull(argon, 8 if last else 0, 10**6)
    try:
        with pytest.raises(
            RunError, match=rf"(?s){'restart file' if what == 'restart' else 'output'} cannot be written"
        ):
            run_md(run, comm=comm, potential=full)
    finally:
        if last:
            full.context.__exit__(None, None, None)
    if what == "restart":
        assert step_of(folder / "r.h5") == 5
        assert not (folder / ".r.h5.part").exists()
    elif comm.rank == 0:
        with h5py.File(folder / "r.h5md") as file:
            assert file["particles/all/position/step"][:2].tolist() == [0, 5]
            assert np.abs(file["particles/all/position/value"][1]).max(axis=1).all()
    comm.barrier()
