"""How a GPU is found, and what is said where there is none."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from dphpc.core.device import find_device
from dphpc.core.errors import InputError
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.structs import LAYER


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # its import fails


def test_the_cpu_needs_nothing(no_cupy):
    assert find_device("cpu") is None


def test_auto_goes_without(no_cupy):
    assert find_device("auto") is None


def test_a_gpu_that_cannot_be_had(no_cupy):
    with pytest.raises(InputError, match="CuPy is not installed") as caught:
        find_device("cuda", 3)
    assert "pip install 'dphpc[cuda]'" in str(caught.value)


def test_an_unknown_device():
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        find_device("gpu")


def test_rocm_without_its_compiler(monkeypatch, tmp_path):
    """CuPy would fail at the first kernel; what is played is what it says of itself."""
    runtime = SimpleNamespace(is_hip=True, getDeviceCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setenv("PATH", str(tmp_path))
    for choice in ("cuda", "auto"):
        with pytest.raises(InputError, match="hipcc, which is not in PATH"):
            find_device(choice)


def test_processes_of_a_node_take_its_gpus_in_turn(gpu):
    import cupy

    n = cupy.cuda.runtime.getDeviceCount()
    assert find_device("cuda", n).name == gpu.name
    assert all(find_device("cuda", k).name.startswith(f"GPU {k}, ") for k in range(n))


def test_copies_that_are_not_waited_for(device):
    values, array = device.pinned(1000, np.int64), device.zeros(1000, np.int64)
    values[:] = np.arange(1000)
    device.start_upload(values, array)
    back = device.pinned(1000, np.int64)
    back[:] = 0
    device.start_download(array, back)
    event = device.mark()
    while not event.done:
        pass
    assert np.array_equal(back, values)
    device.start_download(array[10:20], back[:10])
    device.mark().synchronize()
    assert np.array_equal(back[:10], values[10:20])


def test_arrays_are_copied_and_memory_is_counted(device):
    a, b = device.zeros(6, np.float64), device.zeros(4, np.float64)
    device.upload(np.arange(6.0), a)
    device.copy(a[2:], b)
    device.upload(np.zeros(6), a)
    assert device.download(b).tolist() == [2.0, 3.0, 4.0, 5.0]
    assert device.free_memory() > 2**20


def test_work_is_replayed_with_the_addresses_and_numbers_of_its_key(device):
    """A graph of all that may be in one."""
    text = kernel_text("fitting_tape.cu", Real="double")
    a, b, w, product = (device.zeros(4, np.float64).reshape(2, 2) for _ in range(4))
    device.upload(np.array([[1.0, 2.0], [3.0, 4.0]]), w)
    struct = np.zeros(1, LAYER)
    struct["n_in"], struct["n_out"], struct["skip"] = 2, 2, 1
    worked = []

    def work(value=1.0):
        worked.append(value)
        device.beside([lambda: device.fill(product, value), lambda: device.copy(a, b)])
        device.product(b, w, product, add=True)
        device.launch(text, "add_skip", 1, 256, struct, np.int64(2), w, product)

    for k in range(5):
        device.upload(np.full((2, 2), float(k)), a)
        device.replay("a key", work)
        found = device.download(product)
        assert np.array_equal(found, 1.0 + k * np.array([[4.0, 6.0]] * 2) + device.download(w))
    assert len(worked) == 2, "once to be done and once to be recorded"
    device.replay("a key", lambda: work(7.0))
    assert np.array_equal(device.download(product), found), "the key did not say that the number is another"
    device.replay("another key", lambda: work(7.0))
    assert np.array_equal(device.download(product), found + 6.0)


def test_a_product_is_the_same_in_a_graph_and_beside_others(device):
    """To the bit: also of rows of a larger array, and where products go on at the same time."""
    rng = np.random.default_rng(5)
    x, w = device.zeros(700 * 240, np.float64).reshape(700, 240), device.zeros(240 * 240, np.float64).reshape(240, 240)
    outs = [device.zeros(700 * 240, np.float64).reshape(700, 240) for _ in range(3)]
    last = device.zeros(700, np.float64).reshape(700, 1)
    device.upload(rng.standard_normal(x.shape), x)
    device.upload(rng.standard_normal(w.shape), w)

    def work():
        parts = slice(0, 100), slice(100, 500), slice(500, 700)
        each = zip(outs, parts, strict=True)
        device.beside([partial(device.product, x[p], w, out[p], transposed=True) for out, p in each])
        device.product(outs[1][100:500], w[:, :1], last[100:500])

    found = []
    for _ in range(4):
        for out in (*outs, last):
            device.fill(out, 0.0)
        device.replay("products", work)
        found.append([device.download(out) for out in (*outs, last)])
    expected = device.download(x) @ device.download(w).T
    assert np.allclose(sum(found[0][:3]), expected, rtol=1e-12, atol=1e-11)
    for again in found[1:]:
        assert all(map(np.array_equal, again, found[0]))


def test_an_error_while_a_graph_is_recorded_is_the_one_that_is_seen(device):
    a, b = device.zeros(4, np.float64), device.zeros(4, np.float64)
    calls = []

    def side():
        device.fill(b, 2.0)
        if len(calls) == 2:
            raise ZeroDivisionError("of the work's")

    def work():
        calls.append(1)
        device.beside([lambda: device.fill(a, 1.0), side])

    device.replay("an error", work)
    with pytest.raises(ZeroDivisionError, match="of the work's"):
        device.replay("an error", work)
    for _ in range(3):  # all is as if it had never been met
        device.fill(a, 0.0)
        device.replay("an error", work)
        assert device.download(a).tolist() == [1.0] * 4
    assert len(calls) == 4
