"""NVIDIA's run-time compiler, which needs no GPU, through ctypes: the wheel nvidia-cuda-nvrtc-cu12 brings it."""

from __future__ import annotations

import ctypes
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a GPU: registers a thread, bytes of shared memory a block, bytes of spilled registers."""

    registers: int
    shared: int
    spilled: int


def compile_cubin(text: str, architecture: str) -> tuple[bytes, dict[str, Resources]]:
    """The program for one architecture (`sm_90`), and what its kernels take; raises RuntimeError with the log."""
    with _compiled(text, architecture, "--ptxas-options=-v") as (nvrtc, program, log):
        return read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), _resources(log)


def compile_ptx(text: str) -> str:
    """The program in NVIDIA's assembly language, for any GPU from sm_70 on."""
    with _compiled(text, "compute_70") as (nvrtc, program, _):
        return read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()


@contextmanager
def _compiled(text: str, architecture: str, *options: str):
    nvrtc, program = _library(), ctypes.c_void_p()
    raw = [option.encode() for option in (f"--gpu-architecture={architecture}", "-std=c++17", *options)]
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(raw), (ctypes.c_char_p * len(raw))(*raw))
        log = read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        if failed:
            raise RuntimeError(log)
        yield nvrtc, program, log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    files = metadata.files("nvidia-cuda-nvrtc-cu12") or []
    path = next(Path(str(f.locate())) for f in files if f.name.startswith("libnvrtc.so"))
    return ctypes.CDLL(str(path))


def read(size_of, copy, program) -> bytes:
    """What a run-time compiler has of a program: its size is asked for, then it is copied."""
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert copy(program, buffer) == 0
    return buffer.raw


def _resources(log: str) -> dict[str, Resources]:
    found = {}
    for name, part in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", log, re.DOTALL
    ):
        numbers = [
            re.search(p, part) for p in (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill stores")
        ]
        found[name] = Resources(*(int(n[1]) if n else 0 for n in numbers))
    return found
