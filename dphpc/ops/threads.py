"""How many threads the native kernels use in this process.

Commands call `set_threads` once at start; functions of the Python API restore the former numbers when they return
(`threads_restored`).  Before `set_threads` the kernels use `default_threads()` threads, and NumPy's BLAS its own
default.  Afterwards BLAS has one thread: its products here are small, and its idle threads would spin on the cores that
the kernels' threads need.

A process may be forked (`os.fork`, multiprocessing's `fork`) at any time outside the kernels; both processes can go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController, threadpool_limits

from dphpc.core.cores import n_cores
from dphpc.core.errors import InputError

_threads: int | None = None

_released = True
"""Whether OpenMP's threads had been ended when the process was last forked."""

_one_only = False
"""Whether this process was forked from one whose threads could not be ended: several threads would then deadlock."""


def _before_fork() -> None:
    global _released
    # GNU OpenMP keeps its threads for the next parallel loop.  A forked child lacks them, but would wait for them.
    native = sys.modules.get("dphpc._native")
    _released = native is None or native.kernels.release_threads()


def _after_fork_in_child() -> None:
    global _one_only
    _one_only = _one_only or not _released


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def default_threads(ranks_on_node: int = 1) -> int:
    """OMP_NUM_THREADS where set, else this process's share of the cores it may run on.

    Parameters
    ----------
    ranks_on_node
        MPI ranks that share the cores this process may run on: those of the machine, or 1 where the
        launcher pins every rank to cores of its own.

    Raises
    ------
    InputError
        OMP_NUM_THREADS is not a positive number.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise InputError(f"OMP_NUM_THREADS is '{asked}'", expected="a positive whole number")
        return int(asked)
    return max(1, n_cores() // max(1, ranks_on_node))


def set_threads(n: int) -> None:
    """Set the number of threads of the native kernels; NumPy's BLAS gets one.

    Raises
    ------
    InputError
        `n` is less than 1.
    """
    global _threads
    if n < 1:
        raise InputError(f"{n} threads were asked for", expected="at least 1")
    _threads = n
    threadpool_limits(limits=1, user_api="blas")


@contextmanager
def threads_restored() -> Iterator[None]:
    """Restore the numbers of threads of kernels and BLAS at the end, whatever `set_threads` did inside."""
    global _threads
    before = _threads
    with ThreadpoolController().select(user_api="blas").limit(limits=None):
        try:
            yield
        finally:
            _threads = before


def get_threads() -> int:
    """Number of threads of the native kernels."""
    if _one_only:
        return 1
    return _threads if _threads is not None else default_threads()
