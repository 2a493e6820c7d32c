"""AMD's run-time compiler, which needs no GPU, through ctypes: it comes with ROCm, and with Debian's package hipcc."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.ops.emulation.nvrtc import read

OPTIONS = ("-std=c++17", "-fcuda-flush-denormals-to-zero")
"""Those of `Cupy.launch`, and what CuPy adds to them."""


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a GPU: vector registers a thread, bytes of shared memory a block, of scratch a thread."""

    registers: int
    shared: int
    scratch: int


def missing() -> str | None:
    """What is not here of the compiler and its tools, if anything."""
    if _library() is None:
        return "AMD's run-time compiler is not here (Debian: apt-get install hipcc)"
    return next((f"{tool} is not here" for tool in ("llvm-readelf", "llvm-objdump") if _tool(tool) is None), None)


def compile_object(text: str, architecture: str, *options: str) -> bytes:
    """The program for one architecture (`gfx90a`); raises RuntimeError with the log."""
    hiprtc, program = _library(), ctypes.c_void_p()
    assert hiprtc is not None
    raw = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS, *options)]
    assert hiprtc.hiprtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    try:
        failed = hiprtc.hiprtcCompileProgram(program, len(raw), (ctypes.c_char_p * len(raw))(*raw))
        if failed:
            raise RuntimeError(read(hiprtc.hiprtcGetProgramLogSize, hiprtc.hiprtcGetProgramLog, program).decode())
        return read(hiprtc.hiprtcGetCodeSize, hiprtc.hiprtcGetCode, program)
    finally:
        hiprtc.hiprtcDestroyProgram(ctypes.byref(program))


def resources(program: bytes) -> dict[str, Resources]:
    """Of each kernel, as the program's notes tell the driver."""
    notes = _asked("llvm-readelf", "--notes", program)
    kernels = notes.partition("amdhsa.kernels:")[2].partition("amdhsa.target:")[0].split("\n  - ")[1:]
    keys = "name", "vgpr_count", "group_segment_fixed_size", "private_segment_fixed_size"
    found = [[re.search(rf"^ *\.{key}: +(\w+)$", kernel, re.MULTILINE)[1] for key in keys] for kernel in kernels]
    return {name: Resources(*map(int, numbers)) for name, *numbers in found}


def assembly(program: bytes) -> str:
    """Its instructions."""
    return _asked("llvm-objdump", "--disassemble", program)


def _asked(tool: str, option: str, program: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(program)
        file.flush()
        return subprocess.run([_tool(tool), option, file.name], check=True, capture_output=True, text=True).stdout


@cache
def _library() -> ctypes.CDLL | None:
    for name in ("hiprtc", "amdhip64"):  # it has a library of its own, or as with Debian's is a part of HIP's
        path = ctypes.util.find_library(name)
        if path and hasattr(library := ctypes.CDLL(path), "hiprtcCompileProgram"):
            return library
    return None


@cache
def _tool(name: str) -> str | None:
    """A tool of the LLVM that HIP compiles with; Debian writes versions behind their names."""
    config = shutil.which("hipconfig")
    if not config:
        return None
    folder = Path(subprocess.run([config, "--hipclangpath"], check=True, capture_output=True, text=True).stdout.strip())
    return next((str(path) for path in (folder / name, *sorted(folder.glob(f"{name}-[0-9]*"))) if path.exists()), None)
