"""dphpc: train neural-network potentials on ab-initio data and run molecular dynamics with them.

    dphpc.train("input.json")                     # as `dphpc train input.json`
    dphpc.md("run.yaml")                          # as `dphpc md run.yaml`
    dphpc.DeepPot("model.dp").eval(coords, cells, atom_types)

Importing this package is cheap: what a name stands for is imported when the name is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dphpc import md, train
    from dphpc.potential.deep_pot import DeepPot

# OpenMP's threads spin between parallel loops by default and so hold the cores that BLAS's threads wait for: on two
# cores a training step took 124 ms instead of 47.  Read once, when the first OpenMP library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["DeepPot", "__version__", "md", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "DeepPot":
        return importlib.import_module("dphpc.potential.deep_pot").DeepPot
    if name in ("md", "train"):
        return importlib.import_module(f"dphpc.{name}")
    raise AttributeError(f"module 'dphpc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
