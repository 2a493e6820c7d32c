"""GPUs: how one is found and what it is used through; beside the `cuda.py` files the only importer of CuPy."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dphpc.core.cublas import Cublas, cublas_of, fix_order_of
from dphpc.core.errors import DeviceError, InputError
from dphpc.core.graphs import Graphs, Work, recorded

DEVICES = ("cpu", "cuda", "auto")

TF32_GPUS = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities of GPUs whose TF32 is more than six times as fast as float32: A100, H100, H200, B200, B300."""

MOST_HIP_THREADS = 2**32 - 1
"""Threads of one launch, all blocks together, that HIP accepts."""

NULL = np.uint64(0)
"""A null pointer as CuPy takes it."""

Array = Any
"""An array in a device's memory, with `shape`, `size`, `reshape`, `fill` and slices as NumPy's."""


class Event(Protocol):
    """A point in a GPU's stream of work."""

    @property
    def done(self) -> bool:
        """Whether the GPU has reached it."""

    def synchronize(self) -> None:
        """Wait until the GPU has reached it."""


class Device(Protocol):
    """Memory, matrix products and kernels of a GPU.

    `name` is for people; `warp` is the number of threads of a warp; `has_tf32` tells whether TF32 products are many
    times as fast as those of float32.
    """

    name: str
    warp: int
    has_tf32: bool

    def zeros(self, size: int, dtype: Any) -> Array:
        """A new array (size,) of zeros; DeviceError if the memory is full."""

    def upload(self, values: NDArray, to: Array) -> None:
        """Copy a host's array to one of the same shape and type."""

    def download(self, array: Array) -> NDArray:
        """A copy on the host, made when everything launched before is done."""

    def copy(self, source: Array, to: Array) -> None:
        """Copy an array to one of the same shape and type; does not wait."""

    def fill(self, array: Array, value: float) -> None:
        """Set all elements; does not wait."""

    def address(self, array: Array) -> int:
        """Address of the first element."""

    def free_memory(self) -> int:
        """Free bytes of the GPU's memory."""

    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transposed: bool = False,
        left_transposed: bool = False,
        add: bool = False,
        tf32: bool = False,
    ) -> None:
        """`out` (n, m) = a (n, k) · b (k, m); with `add` the product is added to `out`.

        `transposed` takes bᵀ, with b (m, k), and `left_transposed` aᵀ, with a (k, n).  Rows of all three arrays are
        contiguous, and may be parts of a wider array's rows.  `tf32` allows float32 factors to be rounded to TF32.
        """

    def pinned(self, size: int, dtype: Any) -> NDArray:
        """A new array (size,) in page-locked host memory, which is copied while host and GPU do other work."""

    def start_upload(self, values: NDArray, to: Array) -> None:
        """Begin to copy a pinned array to one of the same shape and type; do not change it until that is done."""

    def start_download(self, array: Array, to: NDArray) -> None:
        """Begin to copy an array to a pinned one of the same shape and type."""

    def mark(self) -> Event:
        """An event after everything that was launched so far."""

    def launch(self, text: str, kernel: str, grid: int, block: int, *arguments: Any) -> None:
        """Start a kernel of a source text, which is compiled at its first use.

        Arguments are arrays, None for a null pointer, NumPy scalars, and arrays (1,) of a structured type for structs
        that are passed by value.
        """

    def replay(self, key: Hashable, work: Work) -> None:
        """Do what `work` launches; from the second time with the same key on, as one CUDA graph.

        At the first use of a key `work` is called; at the second it is called and captured as a graph, which later uses
        launch.  So the key must hold everything that decides what is launched: addresses and sizes of arrays, and
        numbers passed by value.  `work` may call `launch`, `product`, `copy`, `fill` and `beside` and nothing else of a
        device: it allocates nothing and waits for nothing.  A `replay` inside another's work becomes a part of that
        graph.  The graphs of the most recently used keys are kept.
        """

    def beside(self, works: Sequence[Work]) -> None:
        """Do independent works, side by side in a graph; none may write what another reads or writes."""


class Cupy:
    """The GPU with this index, through CuPy.

    Where CuPy is not linked with cuBLAS, as with ROCm, matrix products are CuPy's own, by hipBLAS.  It cannot capture
    them, so that `replay` then calls `work` each time.
    """

    def __init__(self, index: int) -> None:
        import cupy
        from cupy import cublas
        from cupy_backends.cuda.libs import cublas as linked

        self._cupy, self._gemm = cupy, cublas.gemm
        library = cublas_of(linked.__file__)
        self._cublas = Cublas(library, self.address, partial(self.zeros, dtype=np.uint8)) if library else None
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}
        self._graphs = Graphs(self._captured)
        self._capturing = False
        self._lanes: list[Any] = []  # streams that `beside` uses next to the current one
        self._gpu = cupy.cuda.Device(index)
        self._gpu.use()
        # The default stream cannot be captured; a blocking stream keeps the order with what others launch there.
        if cupy.cuda.get_current_stream() == cupy.cuda.Stream.null:
            cupy.cuda.Stream(non_blocking=False).use()
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.name = f"GPU {index}, {properties['name'].decode()}"
        self.warp = int(properties["warpSize"])
        self._is_hip = bool(cupy.cuda.runtime.is_hip)
        if self._is_hip:
            fix_order_of(ctypes.CDLL(linked.__file__), cupy.cuda.device.get_cublas_handle())
        self.has_tf32 = library is not None and (properties["major"], properties["minor"]) in TF32_GPUS

    def zeros(self, size: int, dtype: Any) -> Array:
        """See `Device.zeros`."""
        try:
            return self._cupy.zeros(size, dtype)
        except self._cupy.cuda.memory.OutOfMemoryError:
            needed = size * np.dtype(dtype).itemsize / 2**20
            raise DeviceError(
                f"the memory of {self.name} has no room for {needed:.0f} MiB more", remedy="take fewer atoms at a time"
            ) from None

    def upload(self, values: NDArray, to: Array) -> None:
        """See `Device.upload`."""
        to.set(np.ascontiguousarray(values, to.dtype))

    def download(self, array: Array) -> NDArray:
        """See `Device.download`."""
        return self._cupy.asnumpy(array)

    def copy(self, source: Array, to: Array) -> None:
        """See `Device.copy`."""
        to[...] = source

    def fill(self, array: Array, value: float) -> None:
        """See `Device.fill`."""
        array.fill(value)

    def free_memory(self) -> int:
        """See `Device.free_memory`; memory that CuPy's pool keeps for the next array counts as free."""
        return int(self._gpu.mem_info[0]) + int(self._cupy.get_default_memory_pool().free_bytes())

    def address(self, array: Array) -> int:
        """See `Device.address`."""
        return int(array.data.ptr)

    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transposed: bool = False,
        left_transposed: bool = False,
        add: bool = False,
        tf32: bool = False,
    ) -> None:
        """See `Device.product`."""
        if self._cublas:
            self._cublas.product(
                self._cupy.cuda.get_current_stream().ptr, a, b, out,
                transposed=transposed, left_transposed=left_transposed, add=add, tf32=tf32,
            )  # fmt: skip
        elif out.size:
            left, right = ("T" if t else "N" for t in (left_transposed, transposed))
            self._gemm(left, right, a, b, out=out, beta=float(add))

    def pinned(self, size: int, dtype: Any) -> NDArray:
        """See `Device.pinned`."""
        memory = self._cupy.cuda.alloc_pinned_memory(max(size, 1) * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, size)  # keeps the memory

    def start_upload(self, values: NDArray, to: Array) -> None:
        """See `Device.start_upload`."""
        to.set(values, self._cupy.cuda.get_current_stream())

    def start_download(self, array: Array, to: NDArray) -> None:
        """See `Device.start_download`."""
        self._cupy.asnumpy(array, out=to, blocking=False)

    def mark(self) -> Any:
        """See `Device.mark`."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._cupy.cuda.get_current_stream())
        return event

    def launch(self, text: str, kernel: str, grid: int, block: int, *arguments: Any) -> None:
        """See `Device.launch`; DeviceError for more threads than HIP starts at a time."""
        if self._is_hip and grid * block > MOST_HIP_THREADS:
            raise DeviceError(
                f"{self.name} cannot start {grid} times {block} threads: HIP starts fewer than 2³² at a time",
                remedy="give a GPU fewer atoms: run on more of them",
            )
        function = self._functions.get((text, kernel))
        if function is None:
            module = self._modules.get(text)
            if module is None:
                module = self._modules[text] = self._cupy.RawModule(code=text, options=("-std=c++17",))
            function = self._functions[text, kernel] = module.get_function(kernel)
        function((grid,), (block,), tuple(NULL if a is None else a for a in arguments))

    def replay(self, key: Hashable, work: Work) -> None:
        """See `Device.replay`."""
        if self._cublas:
            self._graphs.replay(key, work)
        else:
            work()

    def _captured(self, work: Work) -> Work:
        self._capturing = True
        try:
            return recorded(self._cupy.cuda.get_current_stream(), work)
        finally:
            self._capturing = False

    def beside(self, works: Sequence[Work]) -> None:
        """See `Device.beside`; outside of a graph they run one after the other."""
        cuda = self._cupy.cuda
        own = cuda.get_current_stream()
        while self._cublas and len(self._lanes) < len(works) - 1:  # before a capture, which must not allocate
            self._lanes.append(cuda.Stream(non_blocking=False))
            self._cublas.reserve(self._lanes[-1].ptr)
        if not self._capturing or len(works) < 2:
            for work in works:
                work()
            return
        begin, ends = self.mark(), []
        try:
            for lane, work in zip(self._lanes, works[1:], strict=False):
                lane.wait_event(begin)
                lane.use()  # `with` would go back to the default stream
                work()
                ends.append(self.mark())
        finally:
            own.use()
        works[0]()
        for end in ends:
            own.wait_event(end)


def find_device(choice: str, rank_on_node: int = 0) -> Device | None:
    """The GPU that a process of a node is to take, or None for the CPU.

    Parameters
    ----------
    choice
        One of `DEVICES`; `auto` takes a GPU where there is one.
    rank_on_node
        Processes of a node take its GPUs in turn.

    Raises
    ------
    InputError
        No such choice, or a GPU is wanted and cannot be had.
    """
    if choice not in DEVICES:
        raise InputError(f"unknown device '{choice}'", expected=", ".join(DEVICES))
    if choice == "cpu":
        return None
    n_gpus, missing = _gpus()
    if not n_gpus and choice == "auto":
        return None
    if n_gpus and _lacks_hipcc():
        raise InputError(
            f"device '{choice}' cannot be had: CuPy for ROCm compiles with the help of hipcc, which is not in PATH",
            expected="ROCm with its compiler", remedy="export PATH=/opt/rocm/bin:$PATH, or say device: cpu",
        )  # fmt: skip
    if n_gpus:
        try:
            return Cupy(rank_on_node % n_gpus)
        except ImportError as error:
            missing = f"CuPy lacks a library of CUDA's: {_last_line(error)}"
    raise InputError(
        f"device '{choice}' cannot be had: {missing}",
        expected="CuPy, CUDA's libraries, and a GPU that its driver shows (nvidia-smi)",
        remedy="pip install 'dphpc[cuda]' (or 'dphpc[cuda13]'; AMD's GPUs: cupy-rocm-7-0) on a machine with a GPU, "
        "or say device: cpu",
    )


def _gpus() -> tuple[int, str]:
    """How many GPUs CuPy sees, and the reason if it sees none."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return 0, "CuPy is not installed"
        return 0, f"CuPy is installed and cannot be imported: {_last_line(error)}"
    try:
        return int(cupy.cuda.runtime.getDeviceCount()), "CuPy sees no GPU"
    except Exception as error:  # the driver's failures have a class for each kind
        return 0, f"CuPy sees no GPU ({error})"


def _lacks_hipcc() -> bool:
    """Whether CuPy is ROCm's and would fail when the first kernel is compiled."""
    import cupy

    return bool(cupy.cuda.runtime.is_hip) and shutil.which("hipcc") is None


def _last_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1].strip()
