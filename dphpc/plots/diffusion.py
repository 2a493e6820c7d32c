"""Mean squared displacements and diffusion coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import fft  # type: ignore[import-untyped]

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.plots.frames import Frame
from dphpc.plots.style import COLORS, GREY, panels
from dphpc.plots.tables import write_curves

FIT = 0.1, 0.5
"""Where the line is fitted, as fractions of the longest time: in between neither ballistic nor of few samples."""

FEWEST = 10
"""Frames that a diffusion coefficient takes."""

_BLOCK = 256
"""Atoms transformed at once."""

_A2_PER_PS = 10.0
"""10⁻⁹ m²/s."""


class Msd(NamedTuple):
    """Mean squared displacements.

    Attributes
    ----------
    time
        (n_frames,) ps.
    of
        Species -> (n_frames,) Å².
    """

    time: Doubles
    of: dict[str, Doubles]


class Diffusion(NamedTuple):
    """A diffusion coefficient in 10⁻⁹ m²/s, and how much it differs between the halves of the fitted times."""

    value: float
    difference: float


def mean_squared_displacement(frames: Sequence[Frame], interval: float | None = None) -> Msd:
    """⟨|r(t₀ + t) − r(t₀)|²⟩ over the atoms of a species and all t₀.

    An atom's way is the sum of its displacements from frame to frame, each to the nearest image in the later frame's
    box (von Bülow, Bullerjahn and Hummer, J. Chem. Phys. 153, 021101, 2020).  So positions may be wrapped or not, and
    the box may change; between two frames no atom may go further than half of it.  The mean over all t₀ is computed by
    Fourier transforms (Calandrini et al., Collection SFN 12, 201, 2011).

    Parameters
    ----------
    interval
        fs between frames, for files that have no times.

    Raises
    ------
    DataError
        There are fewer than two frames, their atoms differ, or their times are unknown or not equally spaced.
    """
    first, n_frames = frames[0], len(frames)
    if n_frames < 2:
        raise DataError("one frame, which nothing is displaced in", expected="two or more")
    for k, frame in enumerate(frames):
        if not np.array_equal(frame.species, first.species):
            raise DataError(
                f"the atoms of frame {k} are not those of the first", expected="the same, in the same order"
            )
    time, ways = _times(frames, interval), _ways(frames)
    sums = {name: np.zeros(n_frames) for name in dict.fromkeys(first.species.tolist())}
    for name, total in sums.items():
        atoms = np.flatnonzero(first.species == name)
        for start in range(0, len(atoms), _BLOCK):
            total += _squares(ways[:, atoms[start : start + _BLOCK]]).sum(axis=0)
        total /= len(atoms)
    return Msd(time, sums)


def _times(frames: Sequence[Frame], interval: float | None) -> Doubles:
    """(n_frames,) ps from the first frame on."""
    n_frames = len(frames)
    if interval is not None:
        return 1e-3 * interval * np.arange(n_frames, dtype=np.float64)
    times = [frame.time for frame in frames if frame.time is not None]
    if len(times) < n_frames:
        raise DataError(
            "the file does not tell the times of its frames", expected="H5MD, or extxyz of `dphpc md`",
            remedy="--interval FS, the time between frames: the steps between them times the time step",
        )  # fmt: skip
    time: Doubles = np.array(times, np.float64) - times[0]
    steps = np.diff(time)
    unequal = ~np.isclose(steps, steps[0], rtol=1e-3, atol=0.0)
    if unequal.any() or steps[0] <= 0:
        k = int(unequal.argmax())
        raise DataError(
            f"{steps[k]:g} ps pass between frames {k} and {k + 1}, and {steps[0]:g} ps between the first two",
            expected="frames that are equally spaced in time", remedy="--skip what is before them",
        )  # fmt: skip
    return time


def _ways(frames: Sequence[Frame]) -> Doubles:
    """(n_frames, n, 3) Å: how far each atom has gone since the first frame."""
    ways = np.zeros((len(frames), *frames[0].positions.shape))
    before = frames[0].box.wrap(frames[0].positions)
    for k, (positions, box, *_) in enumerate(frames[1:], 1):
        now = box.wrap(positions)
        move = now - before
        images = np.rint(move @ box.inverse) * box.periodic
        ways[k] = ways[k - 1] + move - images @ box.matrix
        before = now
    return ways


def _squares(ways: Doubles) -> Doubles:
    """(n, n_frames) Å²: mean squared displacement of each atom over all origins, from its ways (n_frames, n, 3)."""
    n_frames = len(ways)
    n_origins = n_frames - np.arange(n_frames)
    ways = ways - ways.mean(axis=0)
    size = fft.next_fast_len(2 * n_frames, real=True)
    power = np.abs(fft.rfft(ways, size, axis=0)) ** 2
    products = fft.irfft(power, size, axis=0)[:n_frames].sum(axis=2).T / n_origins
    lengths = (ways**2).sum(axis=2).T
    # Sums of |r(t₀)|² over the origins, and of |r(t₀ + t)|² over the ends.
    sums = np.cumsum(lengths, axis=1)[:, ::-1] + np.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]
    squares = sums / n_origins - 2.0 * products
    squares[:, 0] = 0.0
    return np.asarray(squares)


def diffusion(time: Doubles, msd: Doubles) -> Diffusion | None:
    """D of ⟨r²⟩ = 6 D t + constant (Einstein), by a line through the times of `FIT`; None if frames are too few.

    It is that of the simulated box: in an infinite one it is larger by 2.837 kT/(6πηL) (Yeh and Hummer, J. Phys. Chem.
    B 108, 15873, 2004).
    """
    first, last = (round(f * (len(time) - 1)) for f in FIT)
    if len(time) < FEWEST:
        return None
    middle = (first + last + 1) // 2

    def slope(start: int, end: int) -> float:
        return float(np.polynomial.Polynomial.fit(time[start:end], msd[start:end], 1).deriv()(0.0)) / 6.0 * _A2_PER_PS

    early, late = slope(first, middle + 1), slope(middle, last + 1)
    return Diffusion(slope(first, last + 1), abs(late - early))


def write_msd(path: Path, curves: Mapping[str, Msd]) -> Path:
    """Write curves as a CSV file with a column of times and one for each species of each source.

    Raises
    ------
    DataError
        Their times differ.
    """
    time = next(iter(curves.values())).time
    for label, curve in curves.items():
        if len(curve.time) != len(time) or not np.allclose(curve.time, time):
            raise DataError(f"the times of '{label}' are others than those of the first file", remedy="a table of each")
    return write_curves(
        path, ("time_ps", time),
        {label: {f"msd_{name}_A2": msd for name, msd in curve.of.items()} for label, curve in curves.items()},
    )  # fmt: skip


def draw_msd(curves: Mapping[str, Msd]) -> Figure:
    """A figure of displacements up to half the time, with diffusion coefficients; grey where lines are fitted."""
    with panels(1, 1, size=(5.4, 3.8)) as (figure, (ax,)):
        lines = [(label, curve.time, *one) for label, curve in curves.items() for one in curve.of.items()]
        for i, (label, time, name, msd) in enumerate(lines):
            end = len(time) // 2 + 1
            found = diffusion(time, msd)
            text = f"{label}: {name}" if len(curves) > 1 else name
            if found:
                text += f", D = ({found.value:.3g} ± {found.difference:.1g})·10⁻⁹ m²/s"
                ax.axvspan(*(f * time[-1] for f in FIT), color=GREY, alpha=0.12 / len(lines), lw=0)
            ax.plot(time[:end], msd[:end], label=text, color=COLORS[i % len(COLORS)])
        ax.set(title="Mean squared displacement", xlabel="time (ps)", ylabel="⟨|r(t) − r(0)|²⟩ (Å²)")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.legend()
    return figure
