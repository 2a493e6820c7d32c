"""A GPU that is not there: CUDA text compiled by g++ through `host.h`, its memory NumPy's."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import re
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dphpc.core.cublas import row_step
from dphpc.core.graphs import Graphs

HEADER = Path(__file__).with_name("host.h")
COMPILED = Path(__file__).parents[3] / "build" / "emulated"
"""What has been compiled, for all ranks, all of pytest's processes and the next runs."""
FLAGS = (
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fPIC",
    "-fvisibility=hidden",  # texts have functions of the same names, and these their shared memory
)


def compiled(text: str, kind: str, *flags: str | Path) -> Path:
    """What g++ makes of a text, which is compiled if it has not been before."""
    compiler = shutil.which("g++") or "c++"
    key = "\n".join((compiler, *FLAGS, text))
    target = COMPILED / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}{kind}"
    if not target.exists():
        COMPILED.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first to come compiles
            if not target.exists():
                source, unfinished = target.with_suffix("" if kind == ".h.gch" else ".cpp"), target.with_suffix(".part")
                source.write_text(text)
                subprocess.run([compiler, *FLAGS, *flags, "-o", unfinished, source], check=True)
                unfinished.rename(target)
    return target


@functools.cache
def precompiled() -> Path:
    """What `host.h` includes, of which the compiler would read 30,000 lines anew for each text."""
    headers = "".join(re.findall(r"#include <.*>\n", HEADER.read_text()))
    return compiled(headers, ".h.gch", "-x", "c++-header").with_suffix("")


def cut(x):
    """What TF32 keeps of float32."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


class LateEvent:
    """Copies to the host, which arrive when they are waited for or asked about a second time."""

    def __init__(self, copies) -> None:
        self._copies, self._asked = copies, False

    @property
    def done(self):
        if self._asked:
            self.synchronize()
        asked, self._asked = self._asked, True
        return asked

    def synchronize(self):
        for values, to in self._copies:
            to[...] = values
        self._copies = []


class EmulatedDevice:
    """See `dphpc.core.device.Device`; `backward` runs the last block first.

    `launched` names the kernels that ran, `asked` what the host asked for one by one.  A replay does again what was
    recorded, with the addresses and numbers of then.
    """

    name = "emulated GPU"
    has_tf32 = True

    def __init__(self, warp: int = 32, backward: bool = False) -> None:
        self.warp, self.backward = warp, backward
        self.launched: list[str] = []
        self.uploaded = self.downloaded = 0  # bytes
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._under_way: list = []
        self.asked: list[str] = []
        self._graphs = Graphs(self._captured)
        self._record: list | None = None  # of the work that is being captured

    def replay(self, key, work):
        asked = len(self.asked)
        self._graphs.replay(key, work)
        if len(self.asked) == asked:
            self.asked.append("graph")

    def _captured(self, work):
        assert self._record is None, "a graph within a graph"
        self._record, asked = [], len(self.asked)
        try:
            work()
            record = self._record
        finally:
            self._record = None
            del self.asked[asked:]

        def start():
            for call, arguments in record:
                call(*arguments)

        return start

    def beside(self, works):
        whole, lanes = self._record, []
        for work in works:
            self._record = None if whole is None else []
            work()
            lanes.append(self._record)
        self._record = whole
        if whole is not None:  # one of each in turn
            whole.extend(call for calls in zip_longest(*lanes) for call in calls if call)

    def _do(self, name, call, *arguments):
        """Now, or whenever the graph is launched."""
        self.asked.append(name)
        if self._record is None:
            call(*arguments)
        else:
            self._record.append((call, arguments))

    def _not_in_a_graph(self):
        assert self._record is None, "this cannot be part of a graph"

    def zeros(self, size, dtype):
        self._not_in_a_graph()
        return np.zeros(size, dtype)

    def upload(self, values, to):
        self._not_in_a_graph()
        assert values.shape == to.shape
        self.uploaded += values.nbytes
        to[...] = values

    def download(self, array):
        self._not_in_a_graph()
        self.downloaded += array.nbytes
        return array.copy()

    def copy(self, source, to):
        assert source.shape == to.shape
        assert source.dtype == to.dtype
        self._do("copy", np.copyto, to, source)

    def fill(self, array, value):
        self._do("fill", array.fill, value)

    def free_memory(self):
        return 2**34

    def address(self, array):
        assert array.flags.c_contiguous
        return array.ctypes.data

    def product(self, a, b, out, *, transposed=False, left_transposed=False, add=False, tf32=False):
        for x in (a, b, out):
            row_step(x)  # or a GPU could not

        def multiply():
            left, right = (cut(x) if tf32 and x.dtype == np.float32 else x for x in (a, b))
            left, right = left.T if left_transposed else left, right.T if transposed else right
            # Not by BLAS, which may round the rows of a matrix differently.
            result = np.einsum("ik,kj->ij", left, right, dtype=np.float64, optimize=False).astype(out.dtype)
            out[...] = out + result if add else result

        self._do("product", multiply)

    def pinned(self, size, dtype):
        return np.zeros(size, dtype)

    def start_upload(self, values, to):
        self.upload(values, to)

    def start_download(self, array, to):
        self._not_in_a_graph()
        self.downloaded += array.nbytes
        self._under_way.append((array.copy(), to))

    def mark(self):
        self._not_in_a_graph()
        copies, self._under_way = self._under_way, []
        return LateEvent(copies)

    def launch(self, text, kernel, grid, block, *arguments):
        if text not in self._libraries:
            self._libraries[text] = ctypes.CDLL(str(self._compiled(text)))
        # A pointer argument is the address of an address, as the driver has it; structs and numbers are themselves.
        given = [np.asarray(np.uint64(0) if a is None else a) for a in arguments]
        values = [a.copy() if a.dtype.names or not a.ndim else np.array(self.address(a)) for a in given]
        run = self._libraries[text][f"run_{kernel}"]
        run.restype = ctypes.c_bool
        self._do(kernel, self._run, run, kernel, grid, block, values, arguments)

    def _run(self, run, kernel, grid, block, values, keeps_arrays):
        self.launched.append(kernel)
        places = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        assert run(places, ctypes.c_uint(grid), ctypes.c_uint(block)), (
            f"threads of {kernel} wait for one another for ever"
        )

    def _compiled(self, text: str) -> Path:
        header = HEADER.read_text().replace("#pragma once\n", "")
        kernels = re.findall(r"__global__ void (?:__launch_bounds__\([^\n]*\)\s+)?(\w+)\(", text)
        ends = "".join(f"HOST_KERNEL({kernel})\n" for kernel in kernels)
        # The header needs to know the warp, which not every text defines.
        defined = "" if "#define WARP" in text else f"#define WARP {self.warp}\n"
        defined += f"#define BLOCKS_BACKWARD {int(self.backward)}\n"
        definitions, slashes, rest = text.partition("//")
        whole = defined + definitions + header + slashes + rest + ends
        return compiled(whole, ".so", "-shared", "-include", precompiled())
