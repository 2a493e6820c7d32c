"""The choices for summing gradients over ranks; apart from `gradients`, so that reading an input needs no torch."""

from __future__ import annotations

from typing import Literal

DataParallel = Literal["auto", "mpi", "torch", "horovod"]
Compression = Literal["none", "fp16", "bf16"]
