"""Mean squared displacements against plain sums over origins, and diffusion coefficients of walks that are known."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.plots.diffusion import diffusion, mean_squared_displacement
from dphpc.plots.draw import Options, draw
from dphpc.plots.frames import Frame
from dphpc.plots.tables import read_table

SPECIES = np.array(["O", "H", "H"] * 100)
SKEWED = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [-2.0, 1.0, 7.0]])


def walk(n_frames: int, lengths: np.ndarray, seed: int = 1) -> np.ndarray:
    """(n_frames, n, 3) Å of atoms that take independent steps of given lengths (n,)."""
    rng = np.random.default_rng(seed)
    return rng.random((len(lengths), 3)) * 9.0 + (
        rng.normal(size=(n_frames, len(lengths), 3)) * lengths[:, None]
    ).cumsum(0)


def frames_of(walks: np.ndarray, boxes: list[Box], species: np.ndarray = SPECIES, step: float = 0.1) -> list[Frame]:
    """Frames with all atoms in the box."""
    return [
        Frame(box.wrap(r), box, species, 1.0 + step * k) for k, (r, box) in enumerate(zip(walks, boxes, strict=True))
    ]


@pytest.mark.parametrize("periodic", [(True, True, True), (True, True, False)])
def test_all_origins_count_alike(periodic: tuple[bool, bool, bool]) -> None:
    walks = walk(37, np.full(300, 0.5))
    if not periodic[2]:
        walks[:, :, 2] += 6.0 * np.arange(37)[:, None]  # most of the box each time, in the direction that is open
    time, curves = mean_squared_displacement(frames_of(walks, [Box(SKEWED, periodic)] * 37))
    np.testing.assert_allclose(time, 0.1 * np.arange(37))
    for name in ("O", "H"):
        ways = walks[:, name == SPECIES]
        for m in range(37):
            expected = ((ways[m:] - ways[: 37 - m]) ** 2).sum(axis=2).mean()
            assert curves[name][m] == pytest.approx(expected, rel=1e-10)  # measured 2e-13


def test_atoms_at_rest_in_a_box_that_breathes_have_gone_nowhere() -> None:
    rng = np.random.default_rng(3)
    boxes = [Box(np.diag([10.0, 11.0, 12.0]) * x) for x in 1.0 + 0.02 * rng.random(50)]
    places = rng.random((300, 3)) * 9.0 + 0.2
    _, curves = mean_squared_displacement(frames_of(np.repeat(places[None], 50, 0), boxes))
    assert max(curves["O"].max(), curves["H"].max()) < 1e-12


def test_a_walk_has_its_coefficient() -> None:
    """⟨r²⟩ = 3 σ² of each step; several species, times in ps."""
    lengths = np.where(SPECIES == "O", 0.3, 0.6)
    box = Box(9.0 * np.eye(3))
    time, curves = mean_squared_displacement(frames_of(walk(1500, lengths), [box] * 1500))
    for name, length in (("O", 0.3), ("H", 0.6)):
        found = diffusion(time, curves[name])
        expected = 3.0 * length**2 / 0.1 / 6.0 * 10.0  # 10⁻⁹ m²/s
        assert found is not None
        assert found.value == pytest.approx(expected, rel=0.15)  # measured 3 and 5 %
        assert found.difference < 0.3 * expected


def test_a_straight_line_has_its_slope() -> None:
    time = 0.5 * np.arange(40)
    found = diffusion(time, 6.0 * 0.23 * time + 0.7)  # 0.23 Å²/ps
    assert found is not None
    assert found.value == pytest.approx(2.3)
    assert found.difference < 1e-12


def test_what_cannot_be_said_is_refused() -> None:
    box = Box(9.0 * np.eye(3))
    frames = frames_of(walk(12, np.full(300, 0.1)), [box] * 12)
    with pytest.raises(DataError, match="one frame"):
        mean_squared_displacement(frames[:1])
    with pytest.raises(DataError, match=r"(?s)0.2 ps pass between frames 3 and 4, and 0.1 ps.*--skip"):
        mean_squared_displacement(frames[:4] + frames[5:])
    with pytest.raises(DataError, match="frame 2 are not those"):
        mean_squared_displacement([*frames[:2], frames[2]._replace(species=SPECIES[::-1])])
    unknown = [frame._replace(time=None) for frame in frames]
    with pytest.raises(DataError, match=r"(?s)times.*--interval"):
        mean_squared_displacement(unknown)
    time, _ = mean_squared_displacement(unknown, interval=50.0)
    np.testing.assert_allclose(time, 0.05 * np.arange(12))
    assert diffusion(time[:9], time[:9]) is None


def test_figure_and_table(tmp_path: Path) -> None:
    names = []
    for seed in (1, 2):
        walks = walk(40, np.full(300, 0.3), seed)
        trajectory = [Atoms("OH2" * 100, positions=r % 9.0, cell=[9] * 3, pbc=True) for r in walks]
        for k, atoms in enumerate(trajectory):
            atoms.info |= {"Step": 10 * k, "Time": 0.02 * k}
        names.append(str(tmp_path / f"run{seed}.extxyz"))
        ase.io.write(names[-1], trajectory)
    kind, figure = draw("msd", names[:1], options=Options(table=tmp_path / "msd.csv"))
    assert kind == "msd"
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.split(",")[0] for text in texts] == ["O", "H"]
    assert all("10⁻⁹ m²/s" in text for text in texts)
    table = read_table(tmp_path / "msd.csv")
    assert list(table) == ["time_ps", "msd_O_A2", "msd_H_A2"]
    assert table["time_ps"][-1] == pytest.approx(0.02 * 39)
    draw("msd", names, ["a", "b,c"], Options(table=tmp_path / "both.csv"))
    wanted = ["time_ps", "msd_O_A2 a", "msd_H_A2 a", "msd_O_A2 b c", "msd_H_A2 b c"]
    assert list(read_table(tmp_path / "both.csv")) == wanted
    ase.io.write(tmp_path / "short.extxyz", ase.io.read(names[1], ":20"))
    with pytest.raises(DataError, match=r"the times of 'short\.extxyz'"):
        draw("msd", [names[0], str(tmp_path / "short.extxyz")], options=Options(table=tmp_path / "no.csv"))
    assert not (tmp_path / "no.csv").exists()
