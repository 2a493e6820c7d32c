"""Products as cuBLAS is asked for them; `cublas.cpp` plays it on the host and refuses what it refuses."""

from __future__ import annotations

import ctypes
import gc
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dphpc.core.cublas import WORKSPACE, Cublas, cublas_of, fix_order_of, row_step
from dphpc.core.errors import RunError


def built(library: Path, source: Path, *flags: str) -> Path:
    compiler = shutil.which("g++") or "c++"
    subprocess.run([compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-o", library, source, *flags], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    file = built(tmp_path_factory.mktemp("cublas") / "libcublas.so.99", Path(__file__).with_name("cublas.cpp"))
    return ctypes.CDLL(str(file))


class Host:
    """The host's memory as a GPU's."""

    def __init__(self, library):
        self.library, self.made = library, []
        self.cublas = Cublas(library, lambda x: x.ctypes.data, self._memory)

    def _memory(self, size):
        self.made.append(np.zeros(size, np.uint8))
        return self.made[-1]

    def count(self, name):
        return ctypes.c_int.in_dll(self.library, name)

    def users(self):
        """The stream that worked last in each workspace."""
        return [int(memory[:8].view(np.int64)[0]) for memory in self.made]


@pytest.fixture
def host(library):
    return Host(library)


def matrices(shape, dtype, seed):
    """Numbers in an array of its own, in rows of a longer one, and in columns of a wider one."""
    n, m = shape
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    whole = [np.empty(shape, dtype), np.full((n + 5, m), np.nan, dtype)[2 : n + 2], np.full((n, m + 3), np.nan, dtype)]
    whole[2] = whole[2][:, 2 : m + 2]
    for x in whole:
        x[...] = values
    return whole


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", [(7, 5, 4), (6, 9, 1), (1, 3, 5), (1, 1, 1), (4, 1, 3)], ids=str)
def test_products_of_matrices_and_of_parts_of_them(host, sizes, dtype):
    n, k, m = sizes
    for transposed, left_transposed, add in itertools.product([False, True], repeat=3):
        lefts = matrices((k, n) if left_transposed else (n, k), dtype, 1)
        rights = matrices((m, k) if transposed else (k, m), dtype, 2)
        expected = (lefts[0].T if left_transposed else lefts[0]) @ (rights[0].T if transposed else rights[0])
        for a, b, which in itertools.product(lefts, rights, range(3)):
            out = matrices((n, m), dtype, 3)[which]
            around = out if out.base is None else out.base
            before, n_set = out.copy(), np.isfinite(around).sum()
            if not add:
                out[...] = np.nan  # must not be read
            host.cublas.product(8, a, b, out, transposed=transposed, left_transposed=left_transposed, add=add)
            scale = np.finfo(dtype).eps * 4 * (k + 1)
            assert np.allclose(out, expected + before if add else expected, rtol=scale, atol=scale)
            assert np.isfinite(around).sum() == n_set, "written beside what was asked for"


def test_nothing_is_done_for_nothing(host):
    host.cublas.product(8, np.ones((0, 3)), np.ones((3, 2)), np.ones((0, 2)))
    assert not host.made
    out = np.ones((2, 2))
    host.cublas.product(8, np.ones((2, 0)), np.ones((0, 2)), out)
    assert not out.any(), "a sum of no terms"


def test_rows_that_cublas_cannot_step_through():
    assert row_step(np.ones((3, 4))[:, :1]) == row_step(np.ones((3, 4))[1:2]) == 4
    for bad in (np.ones((3, 4)).T, np.ones((3, 4))[:, ::2], np.broadcast_to(np.ones(4), (3, 4))):
        with pytest.raises(AssertionError):
            row_step(bad)


def test_factors_are_rounded_only_where_that_is_asked_for(host):
    a, b = matrices((5, 6), np.float32, 1)[0], matrices((6, 4), np.float32, 2)[0]
    out, rounded = np.empty((5, 4), np.float32), np.empty((5, 4), np.float32)
    host.cublas.product(8, a, b, out)
    host.cublas.product(8, a, b, rounded, tf32=True)
    assert np.allclose(out, a @ b, rtol=1e-6, atol=1e-6)
    assert 1e-5 < abs(rounded - out).max() < 1e-2
    wide, same = np.empty((5, 4)), np.empty((5, 4))
    host.cublas.product(8, a.astype(float), b.astype(float), wide)
    host.cublas.product(8, a.astype(float), b.astype(float), same, tf32=True)
    assert np.array_equal(wide, same), "float64 has no such"


def test_a_stream_has_memory_of_its_own(host):
    """Given after each turn to a stream, as the turn takes it away: without, the library refuses."""
    a, out = np.eye(2), np.empty((2, 2))
    turns = host.count("turns").value
    for stream in (8, 8, 0, 16, 8, 8):
        host.cublas.product(stream, a, a, out)
    assert host.count("turns").value - turns == 4
    assert host.users() == [8, 0, 16]
    assert [memory.size for memory in host.made] == [WORKSPACE] * 3
    host.cublas.reserve(24)
    host.cublas.reserve(24)
    assert len(host.made) == 4
    host.cublas.product(24, a, a, out)
    assert host.users() == [8, 0, 16, 24]


def test_a_handle_lives_as_long_as_its_owner(library):
    host = Host(library)
    gc.collect()
    before = host.count("handles").value
    for _ in range(2):
        host.cublas.product(8, np.eye(2), np.eye(2), np.empty((2, 2)))
    count = host.count("handles")
    assert count.value == before + 1
    del host
    gc.collect()
    assert count.value == before


def test_what_cublas_reports_is_said(host):
    a, out = np.eye(2), np.empty((2, 2))
    fail = host.count("fail_next")
    fail.value = 3
    with pytest.raises(RunError, match=r"cublasCreate_v2 of cuBLAS failed with status 3 \(ALLOC_FAILED\)") as caught:
        host.cublas.product(8, a, a, out)
    assert "fewer atoms" in str(caught.value)
    host.cublas.product(8, a, a, out)
    fail.value = 13
    with pytest.raises(RunError, match=r"cublasGemmEx of cuBLAS failed with status 13 \(EXECUTION_FAILED\)$"):
        host.cublas.product(8, a, a, out)
    for stream, name in ((16, "cublasSetStream_v2"), (24, "cublasSetStream_v2"), (8, "cublasSetStream_v2")):
        fail.value = 99
        with pytest.raises(RunError, match=rf"{name} of cuBLAS failed with status 99 \(unknown\)"):
            host.cublas.product(stream, a, a, out)
    host.cublas.product(8, a, a, out)  # its memory is set again
    assert np.array_equal(out, a)


def test_the_library_is_the_one_that_another_is_linked_with(library, tmp_path):
    """CuPy's file has a cuBLAS among what it needs, wherever that was found; a process may hold two."""
    source, another = tmp_path / "extension.cpp", tmp_path / "another.cpp"
    source.write_text('extern "C" int cublasDestroy_v2(void *); extern "C" int use() { return cublasDestroy_v2(0); }')
    another.write_text("int nothing;")
    folder = str(Path(library._name).parent)
    linked = built(tmp_path / "linked.so", source, f"-L{folder}", "-l:libcublas.so.99", f"-Wl,-rpath,{folder}")
    found = cublas_of(str(linked))
    address = [ctypes.cast(x.cublasGemmEx, ctypes.c_void_p).value for x in (found, library)]
    assert address[0] == address[1]
    assert cublas_of(str(built(tmp_path / "without.so", another))) is None


def test_hipblas_is_told_to_keep_an_order(tmp_path):
    source = tmp_path / "hipblas.cpp"
    source.write_text(
        "static int mode = 1;"
        'extern "C" int hipblasSetAtomicsMode(void *handle, int to) { return handle ? mode = to, 0 : 1; }'
        'extern "C" int mode_now() { return mode; }'
    )
    hipblas = ctypes.CDLL(str(built(tmp_path / "hipblas.so", source)))
    with pytest.raises(RunError, match="hipblasSetAtomicsMode of hipBLAS failed with status 1"):
        fix_order_of(hipblas, 0)
    assert hipblas.mode_now() == 1
    fix_order_of(hipblas, 1 << 40)  # a handle is an address
    assert hipblas.mode_now() == 0
