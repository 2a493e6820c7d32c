"""Matrix products on a GPU by direct calls of cuBLAS.

CuPy calls the same library, but not while a CUDA graph is captured, and takes some 15 µs a call.  With ROCm the
products are CuPy's, by hipBLAS; here hipBLAS is only told to sum in a fixed order.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from ctypes import c_double, c_float, c_int, c_size_t, c_void_p
from typing import Any

from dphpc.core.errors import DeviceError

Array = Any
"""An array in a device's memory, with `shape`, `strides`, `dtype` and `itemsize` as NumPy's."""

WORKSPACE = 32 * 2**20
"""Bytes of workspace for each stream: what NVIDIA recommends for its largest GPUs."""

# As cublas_api.h declares them; the enumerations are ints.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (ctypes.POINTER(c_void_p),),
    "cublasDestroy_v2": (c_void_p,),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    "cublasGemmEx": (
        c_void_p, c_int, c_int, c_int, c_int, c_int, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int,
        c_void_p, c_void_p, c_int, c_int, c_int, c_int,
    ),
}  # fmt: skip
_STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip
_NO_MEMORY = (1, 3)
_DEFAULT_ALGORITHM, _TF32 = -1, 77
_NO_ATOMICS = 0  # HIPBLAS_ATOMICS_NOT_ALLOWED of hipblas.h
_ZEROS, _ONES = {"d": c_double(0), "f": c_float(0)}, {"d": c_double(1), "f": c_float(1)}
# By a dtype's character: cudaDataType, cublasComputeType_t, and the addresses of 0 and 1 in that type.
_KINDS = {
    char: (data, compute, ctypes.addressof(_ZEROS[char]), ctypes.addressof(_ONES[char]))
    for char, data, compute in (("d", 1, 70), ("f", 0, 68))
}


def cublas_of(file: str) -> ctypes.CDLL | None:
    """The cuBLAS that the library `file` is linked with; None if it is linked with none, as with ROCm.

    Symbols are looked up in what a library was linked with, too.  So CuPy's extension module leads to the very cuBLAS
    that CuPy loaded, even where torch has brought another version into the process.
    """
    library = ctypes.CDLL(file)
    return library if all(hasattr(library, name) for name in _ARGUMENTS) else None


def fix_order_of(hipblas: ctypes.CDLL, handle: int) -> None:
    """Make the matrix products of a hipBLAS handle sum in the same order every time.

    Raises
    ------
    DeviceError
        hipBLAS reports a failure.
    """
    function = hipblas.hipblasSetAtomicsMode
    function.argtypes, function.restype = (c_void_p, c_int), c_int
    status = function(handle, _NO_ATOMICS)
    if status:
        raise DeviceError(f"hipblasSetAtomicsMode of hipBLAS failed with status {status}")


def row_step(x: Array) -> int:
    """Leading dimension: elements from one row to the next of a matrix (n, m) whose rows are contiguous."""
    (n, m), (down, right) = x.shape, x.strides
    assert not n or m < 2 or right == x.itemsize, "elements of a row are not neighbors"
    if n < 2 or not m:
        return max(m, 1)  # the stride means nothing
    step: int = down // x.itemsize
    assert step >= m, "rows overlap"
    return step


class Cublas:
    """Matrix products on the GPU that is current at the first call of `product`.

    The result depends neither on the stream nor on whether the call is captured: there is one handle, and each stream
    has a workspace of its own, all of one size, so that products on two streams may run at the same time.

    Parameters
    ----------
    library
        cuBLAS.
    address
        Gives the address of an array's first element.
    memory
        Allocates an array of so many bytes on the GPU.
    """

    def __init__(self, library: ctypes.CDLL, address: Callable[[Array], int], memory: Callable[[int], Array]) -> None:
        self._address, self._memory = address, memory
        self._functions: dict[str, Any] = {}
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self._gemm = self._functions["cublasGemmEx"]
        self._handle: int | None = None
        self._stream: int | None = None
        self._workspaces: dict[int, Array] = {}

    def reserve(self, stream: int) -> None:
        """Allocate the workspace of a stream (given by its address) now, as none can be allocated during a capture.

        Raises
        ------
        DeviceError
            The GPU's memory is full.
        """
        if stream not in self._workspaces:
            self._workspaces[stream] = self._memory(WORKSPACE)

    def product(
        self,
        stream: int,
        a: Array,
        b: Array,
        out: Array,
        *,
        transposed: bool = False,
        left_transposed: bool = False,
        add: bool = False,
        tf32: bool = False,
    ) -> None:
        """See `Device.product`; float32 or float64, rows contiguous.

        `tf32` lets float32 factors be rounded to 11 significant bits, which is several times as fast.

        Raises
        ------
        DeviceError
            cuBLAS reports a failure.
        """
        n, m = out.shape
        k = a.shape[0 if left_transposed else 1]
        assert a.shape == ((k, n) if left_transposed else (n, k)), "shapes of a product"
        assert b.shape == ((m, k) if transposed else (k, m)), "shapes of a product"
        char = out.dtype.char
        assert a.dtype.char == b.dtype.char == char, "types of a product"
        if not (n and m):
            return
        if stream != self._stream:
            self._turn_to(stream)
        kind, compute, zero, one = _KINDS[char]
        # cuBLAS counts along columns, where each of these is its transpose: outᵀ = bᵀ·aᵀ.
        status = self._gemm(
            self._handle, transposed, left_transposed, m, n, k, one, self._address(b), kind, row_step(b),
            self._address(a), kind, row_step(a), one if add else zero, self._address(out), kind, row_step(out),
            _TF32 if tf32 and char == "f" else compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip
        if status:
            raise _failure("cublasGemmEx", status)

    def _turn_to(self, stream: int) -> None:
        if self._handle is None:
            handle = c_void_p()
            self._call("cublasCreate_v2", ctypes.byref(handle))
            self._handle = handle.value
            # Not at the interpreter's exit: the driver may be gone by then.
            weakref.finalize(self, self._functions["cublasDestroy_v2"], self._handle).atexit = False
        self.reserve(stream)
        self._stream = None  # in case one of these calls fails
        self._call("cublasSetStream_v2", self._handle, stream)  # resets the workspace
        self._call("cublasSetWorkspace_v2", self._handle, self._address(self._workspaces[stream]), WORKSPACE)
        self._stream = stream

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._functions[name](*arguments)
        if status:
            raise _failure(name, status)


def _failure(name: str, status: int) -> DeviceError:
    return DeviceError(
        f"{name} of cuBLAS failed with status {status} ({_STATUS.get(status, 'unknown')})",
        remedy="end what else runs on the GPU, or take fewer atoms at a time" if status in _NO_MEMORY else None,
    )
