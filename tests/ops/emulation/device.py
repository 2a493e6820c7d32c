"""A card that is not there: CUDA text compiled by g++ through `host.h`, its memory NumPy's."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("host.h")


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
    """See `dphpc.core.device.Device`; `folder` keeps what is compiled, `backward` runs the last block first."""

    name = "emulated card"

    def __init__(self, folder: Path, warp: int = 32, backward: bool = False) -> None:
        self.folder, self.warp, self.backward = folder, warp, backward
        self.launched: list[str] = []
        self.uploaded = self.downloaded = 0  # bytes
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._under_way: list = []

    def zeros(self, size, dtype):
        return np.zeros(size, dtype)

    def upload(self, values, to):
        assert values.shape == to.shape
        self.uploaded += values.nbytes
        to[...] = values

    def download(self, array):
        self.downloaded += array.nbytes
        return array.copy()

    def copy(self, source, to):
        assert source.shape == to.shape
        assert source.dtype == to.dtype
        to[...] = source

    def free_memory(self):
        return 2**34

    def address(self, array):
        assert array.flags.c_contiguous
        return array.ctypes.data

    def product(self, a, b, out, *, transposed=False, left_transposed=False, add=False):
        result = np.matmul(a.T if left_transposed else a, b.T if transposed else b)
        out[...] = out + result if add else result

    def pinned(self, size, dtype):
        return np.zeros(size, dtype)

    def start_upload(self, values, to):
        self.upload(values, to)

    def start_download(self, array, to):
        self._under_way.append((array.copy(), to))

    def mark(self):
        copies, self._under_way = self._under_way, []
        return LateEvent(copies)

    def order(self, keys):
        return np.argsort(keys, kind="stable").astype(np.int32)

    def launch(self, text, kernel, grid, block, *arguments):
        self.launched.append(kernel)
        if text not in self._libraries:
            self._libraries[text] = ctypes.CDLL(str(self._compiled(text)))
        # A pointer argument is the address of an address, as the driver has it; structs and numbers are themselves.
        values = [a if a.dtype.names or not a.ndim else np.array(self.address(a)) for a in map(np.asarray, arguments)]
        places = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        run = self._libraries[text][f"run_{kernel}"]
        run.restype = ctypes.c_bool
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
        library = self.folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:16]}.so"
        if not library.exists():
            source = library.with_suffix(".cpp")
            source.write_text(whole)
            compiler = shutil.which("g++") or "c++"
            flags = [
                "-std=c++17",
                "-O1",
                "-ffp-contract=off",
                "-U_FORTIFY_SOURCE",
                "-Wall",
                "-Wno-unknown-pragmas",
                "-fPIC",
                "-shared",
            ]
            subprocess.run([compiler, *flags, "-o", library, source], check=True)
        return library
