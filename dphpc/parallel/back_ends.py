"""Names of what adds up gradients between ranks, and how; apart from `gradients`, as that needs torch."""

from __future__ import annotations

from typing import Literal

DataParallel = Literal["auto", "mpi", "torch", "horovod"]
Compression = Literal["none", "fp16", "bf16"]
