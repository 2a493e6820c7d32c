"""Errors of a run that cannot go on: they tell the atom, the step, and the restart file to go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import AstrayError, DeviceError, DphpcError, RunError
from dphpc.core.exact_sum import FORCE_LIMIT

if TYPE_CHECKING:
    from dphpc.md.engine import Engine


def too_large(engine: Engine) -> AstrayError | None:
    """The error if a force of this rank is not finite, or too large for exact sums; else None."""
    forces = engine.state.forces[: engine.state.n_local]
    largest = float(np.abs(forces).max(initial=0.0))
    if largest < FORCE_LIMIT or (not engine.deterministic and np.isfinite(largest)):
        return None
    atom = int(engine.state.ids[np.argmax(np.where(np.isnan(forces), np.inf, np.abs(forces)).max(axis=1))])
    if not np.isfinite(largest):
        return located(engine, AstrayError(f"the force on atom {atom} is not a finite number"))
    limit = f"less than {FORCE_LIMIT:g} eV/Å in a deterministic run"
    remedy = "look for atoms that overlap, or set deterministic: false"
    what = f"the force on atom {atom} is {largest:.3g} eV/Å"
    return located(engine, AstrayError(what, expected=limit, remedy=remedy))


def wild_atom(engine: Engine, moved2: NDArray[np.float64]) -> AstrayError:
    """The error for the atom that moved farthest, from squared displacements (n_local,) in Å²."""
    worst = int(np.argmax(np.where(np.isnan(moved2), np.inf, moved2)))
    atom, far = int(engine.state.ids[worst]), np.sqrt(moved2[worst])
    flew = f"atom {atom} flew {far:.3g} Å within a step or two"
    return located(engine, AstrayError(flew if far < np.inf else f"the position of atom {atom} is not a finite number"))


@overload
def located(engine: Engine, error: AstrayError) -> AstrayError: ...
@overload
def located(engine: Engine, error: DphpcError) -> RunError: ...
def located(engine: Engine, error: DphpcError) -> RunError:
    """The error with step and last restart added, of the class that `kind_of` gives."""
    step, time = engine.step + engine.moving, engine.time + engine.moving * engine.timestep
    where = f"step {step}, {time:.6g} ps" + (f"; {error.where}" if error.where else "")
    shorter = "try a shorter timestep_fs; " * engine.moving
    remedy = error.remedy or f"{shorter}look for atoms that overlap or leave what the model knows"
    remedy += f"; {last_restart_of(engine) or 'no restart file was written yet'}"
    error_here = kind_of(error)(error.what, where=where, expected=error.expected, remedy=remedy)
    error_here.agreed, error_here.speaks = error.agreed, error.speaks
    return error_here


def last_restart_of(engine: Engine) -> str | None:
    """The restart file to go on from: the run's last one, or that from which it went on; None if there is neither."""
    if engine.last_restart:
        return f"the last good restart is {engine.last_restart}"
    first = engine.first_restart
    return f"the last good restart is {first}, from which the run went on" if first else None


def kind_of(error: DphpcError) -> type[RunError]:
    """The class of an error during a run: a failed evaluation is the atoms' doing, unless it is a GPU's."""
    if isinstance(error, DeviceError):
        return DeviceError
    return AstrayError if isinstance(error, RunError) else RunError
