"""dphpc: train neural-network potentials on ab-initio data and run molecular dynamics with them.

    dphpc.train("input.json")                     # as `dphpc train input.json`
    dphpc.md("run.yaml")                          # as `dphpc md run.yaml`
    dphpc.learn("learn.yaml")                     # as `dphpc learn learn.yaml`
    dphpc.DeepPot("model.dp").eval(coords, cells, atom_types)

Importing this package is cheap: what a name stands for is imported when the name is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dphpc import md, train
    from dphpc.active.loop import learn
    from dphpc.potential.deep_pot import DeepPot

# GNU OpenMP's threads spin for milliseconds between parallel loops and hold cores that others may want; put to sleep at
# once, they wake too late for the next of many short loops.  Some 0.1 ms is enough for those.  Read once, when the
# first OpenMP library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

__all__ = ["DeepPot", "__version__", "learn", "md", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "DeepPot":
        return importlib.import_module("dphpc.potential.deep_pot").DeepPot
    if name == "learn":
        return importlib.import_module("dphpc.active.loop").learn
    if name in ("md", "train"):
        return importlib.import_module(f"dphpc.{name}")
    raise AttributeError(f"module 'dphpc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
