"""The kernels for GPUs compiled for three kinds of them, and what they take of one."""

from __future__ import annotations

import sys

import pytest

from dphpc.core.units import BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops import gpu
from dphpc.ops.energy.cuda import FEW_ROWS_SHAPE, MOST_CHANNELS
from dphpc.ops.energy.tiles import BLOCK, WIDE_BLOCK, WIDE_CHANNELS
from dphpc.ops.gpu import KEYS
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.neighbors.cuda import ROOM
from dphpc.ops.workspace import ELEMENTWISE
from tests.ops.emulation.nvrtc import compile_cubin, compile_ptx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's run-time compiler is for Linux")

REGISTERS = 65536
SHARED = 48 * 1024
"""Of a multiprocessor, and of a block without further ado; the same on all three."""

ARCHITECTURES = ("sm_70", pytest.param("sm_80", marks=pytest.mark.slow), "sm_90")


def descriptor(
    real: str,
    channels: int = 100,
    axis: int = 16,
    n_types: int = 2,
    *,
    parts: int = 1,
    block: int = BLOCK,
    name: str = "descriptor.cu",
) -> str:
    return kernel_text(
        name, Real=real, CHANNELS=channels, AXIS=axis, N_TYPES=n_types, PARTS=parts, WARP=32, BLOCK=block
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("real", "parts"), [("double", 1), ("float", 1), ("float", 3)])
def test_nothing_spills_and_several_blocks_fit(architecture, real, parts):
    program, kernels = compile_cubin(descriptor(real, parts=parts), architecture)
    assert program.startswith(b"\x7fELF")
    assert set(kernels) == {"describe", "exert"}
    hopper = architecture == "sm_90"
    min_blocks = 4 if real == "double" else (8 if hopper else 6)
    for taken in kernels.values():
        assert taken.spilled <= 32  # around the calls of float64's division and square root
        assert REGISTERS // (taken.registers * BLOCK) >= min_blocks
        assert 0 < taken.shared < 31_000
    fitting = kernel_text("fitting.cu", Real=real, PARTS=parts, WARP=32, BLOCK=ELEMENTWISE)
    program, kernels = compile_cubin(fitting, architecture)
    assert set(kernels) == {"activate", "pass_back", "last_layer"}
    assert all(taken.spilled == 0 for taken in kernels.values())
    assert kernels.pop("last_layer").registers <= 80  # three blocks; measured 73, in float32 62
    assert all(taken.registers <= 40 for taken in kernels.values())  # measured 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["double", "float"])
@pytest.mark.parametrize("channels", [100, WIDE_CHANNELS])
def test_wide_blocks_spill_nothing(architecture, real, channels):
    _, kernels = compile_cubin(descriptor(real, channels, block=WIDE_BLOCK), architecture)
    for taken in kernels.values():
        assert taken.spilled <= 32  # around the calls of float64's division and square root
        assert taken.shared <= SHARED


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["double", "float"])
def test_two_blocks_of_few_rows_fit(architecture, real):
    _, kernels = compile_cubin(kernel_text("few_rows.cu", Real=real, PARTS=1, **FEW_ROWS_SHAPE), architecture)
    assert set(kernels) == {"layer_ahead", "layer_back"}
    for taken in kernels.values():
        assert taken.spilled == 0
        assert REGISTERS // (taken.registers * FEW_ROWS_SHAPE["BLOCK"]) >= 2  # measured 64 at most
        assert taken.shared <= SHARED  # measured 14,592


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moves_spill_nothing(architecture):
    definitions = {"WARP": 32, "BLOCK": 256}
    texts = {
        "motion.cu": {"KINETIC": repr(KINETIC), "FIELDS": 6, **definitions},
        "thermostats.cu": {"BOLTZMANN": repr(BOLTZMANN_EV_PER_K)},
    }
    found = {}
    for name, defined in texts.items():
        found |= compile_cubin(kernel_text(name, **defined), architecture)[1]
    assert {"kick", "drift", "scale", "randomize", "nose_hoover", "bussi"} < set(found)
    assert all(taken.spilled == 0 and taken.registers <= 80 for taken in found.values())  # measured 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["double", "float"])
def test_training_spills_nothing(architecture, real):
    _, kernels = compile_cubin(descriptor(real, name="training.cu"), architecture)
    for taken in kernels.values():
        assert taken.spilled <= 32  # around the calls of float64's division and square root
        assert REGISTERS // (taken.registers * BLOCK) >= 3  # measured: 137 on sm_70, 128 at most on others
        assert taken.shared <= 34_000
    one, knots = {"Real": real}, {"Real": "double", "Table": real}
    for name, definitions in (("fitting_tape.cu", one), ("adam.cu", one), ("knots.cu", knots)):
        _, kernels = compile_cubin(kernel_text(name, **definitions), architecture)
        assert all(taken.spilled == 0 and taken.registers <= 64 for taken in kernels.values())


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        pytest.param((37, 5, 3), marks=pytest.mark.slow),
        (240, 32, 10),
        pytest.param((MOST_CHANNELS, 16, 4), marks=pytest.mark.slow),
    ],
)
def test_models_of_other_shapes(shape):
    _, kernels = compile_cubin(descriptor("double", *shape), "sm_80")
    _, training = compile_cubin(descriptor("double", *shape, name="training.cu"), "sm_80")
    for taken in (*kernels.values(), *training.values()):
        assert taken.spilled <= 32  # around calls of division and square root
        assert taken.shared <= SHARED  # measured 44,000 at most


def test_what_does_not_compile_is_told():
    with pytest.raises(RuntimeError, match="no member"):
        compile_cubin(descriptor("double").replace("reader.gather(system", "reader.gathers(system"), "sm_90")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neighbors_and_ghosts(architecture):
    _, neighbors = compile_cubin(kernel_text("neighbors.cu", WARP=32, BLOCK=gpu.BLOCK, ROOM=ROOM), architecture)
    _, ghosts = compile_cubin(kernel_text("ghosts.cu", WARP=32, BLOCK=gpu.BLOCK), architecture)
    orders = [
        compile_cubin(kernel_text("order.cu", Key=key, WARP=32, BLOCK=gpu.BLOCK), architecture)[1]
        for key in KEYS.values()
    ]
    assert {"count_rows", "fill_rows"} < set(neighbors)
    assert {"list_images", "take", "displace", "add_rows"} < set(ghosts)
    for taken in (*neighbors.values(), *ghosts.values(), *orders[0].values(), *orders[1].values()):
        assert taken.spilled == 0
        assert taken.registers <= 64  # measured 60 in fill_rows on sm_70, 52 elsewhere: eight blocks of 128 threads
        assert taken.shared <= 16 * ROOM + 1024


def test_distances_and_images_have_the_hosts_bits():
    """Products that are fused with sums would differ, which the host's emulation cannot show."""
    for name in ("neighbors.cu", "ghosts.cu"):
        text = kernel_text(name, WARP=32, BLOCK=gpu.BLOCK, ROOM=ROOM)
        assert "fma.rn.f64" not in compile_ptx(text)
        assert "fma.rn.f64" in compile_ptx(text.replace("__dmul_rn(a, b)", "a * b").replace("__dadd_rn(a, b)", "a + b"))
