"""The compiled kernels: the build that this CPU runs fastest.

`kernels` is the extension module and `isa` its name: v2, v3 (AVX2, FMA) or v4 (AVX-512) of x86-64, or generic.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from dphpc._native import _cpu  # type: ignore[attr-defined]

builds: list[str] = _cpu.builds()
isa: str = builds[-1]
kernels: Any = import_module(f"dphpc._native._{isa}")
has_openmp: bool = kernels.has_openmp


def kernels_of(dtype: Any) -> Any:
    """The kernels of a precision: `kernels.float32` or `kernels.float64`."""
    return kernels.float32 if dtype == np.float32 else kernels.float64
