"""The kernels compiled for AMD's GPUs as CuPy has them compiled there, and what they take of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest

from dphpc.core.units import BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops import gpu
from dphpc.ops.energy.cuda import FEW_ROWS_SHAPE, MOST_CHANNELS
from dphpc.ops.energy.tiles import BLOCK, WIDE_BLOCK
from dphpc.ops.gpu import KEYS
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.motion.cuda import BLOCK as BLOCK_OF_MOVES
from dphpc.ops.neighbors.cuda import ROOM
from dphpc.ops.workspace import ELEMENTWISE, REAL
from tests.ops.emulation.hiprtc import assembly, compile_object, missing, resources

compiled = pytest.mark.skipif(missing() is not None, reason=missing() or "")

ARCHITECTURES = {"gfx908": 64, "gfx90a": 64, "gfx1030": 32}
"""Of MI100, MI200 and RDNA 2, with how many threads go in step: some that compilers of all years know."""

SHARED = 64 * 1024
"""Of a block."""


def descriptor(
    name: str, real: str, warp: int, shape: tuple[int, int, int] = (100, 16, 2), parts: int = 1, block: int = BLOCK
) -> str:
    channels, axis, n_types = shape
    return kernel_text(
        name, Real=real, CHANNELS=channels, AXIS=axis, N_TYPES=n_types, PARTS=parts, WARP=warp, BLOCK=block
    )


def fitting(real: str, warp: int, parts: int = 1) -> str:
    return kernel_text("fitting.cu", Real=real, PARTS=parts, WARP=warp, BLOCK=ELEMENTWISE)


def texts(warp: int) -> Iterator[tuple[str, str]]:
    """Each with its name, in all types of numbers that are asked for."""
    for real in REAL.values():
        one = {"Real": real}
        yield "descriptor.cu", descriptor("descriptor.cu", real, warp)
        yield "descriptor.cu", descriptor("descriptor.cu", real, warp, block=WIDE_BLOCK)
        yield "training.cu", descriptor("training.cu", real, warp)
        yield "fitting.cu", fitting(real, warp)
        yield "few_rows.cu", kernel_text("few_rows.cu", PARTS=1, **one, **FEW_ROWS_SHAPE)
        yield "fitting_tape.cu", kernel_text("fitting_tape.cu", **one)
        yield "adam.cu", kernel_text("adam.cu", **one)
        yield "knots.cu", kernel_text("knots.cu", Real="double", Table=real)
    yield "descriptor.cu", descriptor("descriptor.cu", "float", warp, parts=3)
    yield "fitting.cu", fitting("float", warp, parts=3)
    moves = {"WARP": warp, "BLOCK": BLOCK_OF_MOVES}
    yield "motion.cu", kernel_text("motion.cu", FIELDS=6, KINETIC=repr(KINETIC), **moves)
    yield "thermostats.cu", kernel_text("thermostats.cu", BOLTZMANN=repr(BOLTZMANN_EV_PER_K))
    in_step = {"WARP": warp, "BLOCK": gpu.BLOCK}
    yield "neighbors.cu", kernel_text("neighbors.cu", ROOM=ROOM, **in_step)
    yield "ghosts.cu", kernel_text("ghosts.cu", **in_step)
    for key in KEYS.values():
        yield "order.cu", kernel_text("order.cu", Key=key, **in_step)


def test_all_kernels_are_here():
    folder = files("dphpc") / "_kernels" / "cuda"
    assert {name for name, _ in texts(64)} == {file.name for file in folder.iterdir() if file.name.endswith(".cu")}


def test_constants_are_formed_on_the_host_too():
    """Later compilers than Debian's ask for it."""
    assert not [line for _, text in texts(64) for line in text.splitlines() if line.startswith("__device__ constexpr")]


@compiled
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_goes_to_scratch_memory(architecture):
    found = {}
    for name, text in texts(ARCHITECTURES[architecture]):
        program = compile_object(text, architecture)
        assert program.startswith(b"\x7fELF")
        n_blocks = 1 if f"#define BLOCK {WIDE_BLOCK}" in text else 2  # that fit
        for kernel, taken in resources(program).items():
            print(f"{architecture} {name} {kernel}: {taken}")
            assert taken.shared <= SHARED // n_blocks, kernel  # measured 30,464, of wide blocks 36,840
            found.setdefault(kernel, []).append(taken)
    assert {"describe", "exert", "forces", "table_adjoint", "fill_rows", "randomize", "nose_hoover"} < set(found)
    for kernel, all_taken in found.items():
        for taken in all_taken:
            assert taken.scratch == 0, kernel
            assert taken.registers <= 192, kernel  # measured: 168 of 256 in `tangent` on gfx1030, 128 elsewhere


@compiled
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 5, 3), (240, 32, 10), (MOST_CHANNELS, 16, 4)])
def test_models_of_other_shapes(shape):
    for name in ("descriptor.cu", "training.cu"):
        for taken in resources(compile_object(descriptor(name, "double", 64, shape), "gfx90a")).values():
            assert taken.scratch == 0
            assert taken.shared <= SHARED


@compiled
def test_what_does_not_compile_is_told():
    text = descriptor("descriptor.cu", "double", 64).replace("reader.gather(system", "reader.gathers(system")
    with pytest.raises(RuntimeError, match="no member named 'gathers'"):
        compile_object(text, "gfx90a")


@compiled
@pytest.mark.parametrize("name", ["neighbors.cu", "ghosts.cu"])
def test_distances_and_images_have_the_hosts_bits(name):
    """No product is fused with a sum; what is left of such instructions makes whole numbers of 64 bits."""

    def fused(text: str, *options: str) -> int:
        return len(re.findall(r"v_(?:pk_)?fmac?_f64", assembly(compile_object(text, "gfx90a", *options))))

    text, pragma = kernel_text(name, WARP=64, BLOCK=gpu.BLOCK, ROOM=ROOM), "#pragma clang fp contract(off)"
    assert text.count(pragma) == 1
    assert fused(text) == fused(text, "-ffp-contract=off") < fused(text.replace(pragma, ""))
