from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.core.errors import DataError, InputError
from dphpc.train.data import Dataset, open_systems
from dphpc.train.neighbor_stat import neighbor_stat, neighbor_stat_of, resolve_sel, sel_warnings
from dphpc.train.schema.model import ModelConfig
from tests.train.data_systems import TYPE_MAP, make_system, write_npy
from tests.train.make_statistics_golden import model_section
from tests.train.test_statistics import WATER

pytestmark = pytest.mark.usefixtures("inside")


def brute_force(folder: Path, rcut: float, mixed_type: bool = False) -> tuple[float, np.ndarray]:
    shortest, most = np.inf, np.zeros(1 if mixed_type else 3, int)
    for system in open_systems(["."], TYPE_MAP):
        for i in range(system.n_frames):
            f = system.frame(i)
            steps = np.arange(-2, 3) if system.periodic else np.zeros(1)
            shifts = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) @ f.box.matrix
            d = np.linalg.norm(f.positions[None, :, None] + shifts - f.positions[:, None, None], axis=-1)
            d[d == 0.0] = np.inf
            near = (d < rcut).sum(axis=2)
            kinds = [f.types >= 0] if mixed_type else [f.types == t for t in range(3)]
            counts = np.stack([near[:, kind].sum(axis=1) for kind in kinds], axis=1)
            shortest, most = min(shortest, d.min()), np.maximum(most, counts.max(axis=0))
    return shortest, most


@pytest.mark.parametrize("mixed_type", [False, True])
@pytest.mark.parametrize("rcut", [2.6, 4.0, 6.5])
def test_equals_all_distances(folder: Path, rcut: float, mixed_type: bool) -> None:
    stat, names = neighbor_stat_of(["."], rcut, mixed_type=mixed_type)
    shortest, most = brute_force(folder, rcut, mixed_type)
    np.testing.assert_allclose(stat.min_distance, shortest, rtol=1e-12)
    np.testing.assert_array_equal(stat.max_neighbors, most)
    assert names == TYPE_MAP


@pytest.mark.parametrize("rcut", [-1.0, 420.0, np.nan])
def test_a_cutoff_in_another_unit_is_refused(folder: Path, rcut: float) -> None:
    with pytest.raises(InputError, match="length in Å, at most 100"):
        neighbor_stat_of(["."], rcut)


def test_another_cutoff_than_the_data_sets(folder: Path) -> None:
    dataset = Dataset(open_systems(["."], TYPE_MAP), TYPE_MAP, 2.6)
    np.testing.assert_array_equal(neighbor_stat(dataset, 4.0).max_neighbors, brute_force(folder, 4.0)[1])


@pytest.mark.skipif(not WATER.is_dir(), reason="the water data of ../shared are not on this machine")
@pytest.mark.parametrize(("mixed_type", "counts"), [(False, "[38 72]"), (True, "[105]")])
def test_prints_what_dp_neighbor_stat_prints(mixed_type: bool, counts: str) -> None:
    """Lines of `dp --pt neighbor-stat -r 6.0 -t O H` on data_0, without and with `--mixed-type`, by 3.2.0."""
    stat, _ = neighbor_stat_of([str(WATER / "data_0")], 6.0, ["O", "H"], mixed_type=mixed_type)
    assert stat.lines() == [
        "Neighbor statistics: training data with minimal neighbor distance: 0.892452",
        f"Neighbor statistics: training data with maximum neighbor size: {counts} (cutoff radius: 6.000000)",
        "min_nbor_dist: 0.892452",
        f"max_nbor_size: {counts}",
    ]


def test_lonely_atoms_are_named(tmp_path: Path) -> None:
    write_npy(tmp_path / "one", make_system(1, n_frames=1, types=[0], box=None))
    stat, _ = neighbor_stat_of(["one"], 6.0, TYPE_MAP)
    assert stat.min_distance == np.inf
    assert stat.lines()[0].startswith("Atoms with no neighbors found in one")


def test_positions_in_another_unit_are_told(tmp_path: Path) -> None:
    """Those of a set in nm: the system and the frame are named."""
    for name, unit in (("a", 1.0), ("b", 0.1)):
        system = make_system(1, n_frames=2, types=[0, 1, 1], box=None)
        write_npy(tmp_path / name, system | {"coord": system["coord"] * unit})
    first, *_ = neighbor_stat_of(["a", "b"], 4.0, TYPE_MAP, tmp_path)[0].lines()
    assert "apart in b, frame 1. Are its positions in Å?" in first


def test_systems_that_name_no_types_need_a_type_map(folder: Path) -> None:
    (folder / "a/type_map.raw").unlink()
    with pytest.raises(DataError, match="does not name its types"):
        neighbor_stat_of(["a"], 4.0)
    assert neighbor_stat_of(["a"], 4.0, ["O", "H"])[0].max_neighbors.shape == (2,)


def test_auto_sel_and_warnings(folder: Path) -> None:
    section = model_section("plain")
    stat, _ = neighbor_stat_of(["."], 4.0)
    assert stat.max_neighbors.tolist() == brute_force(folder, 4.0)[1].tolist()
    for sel, factor in (("auto", 1.1), ("auto:2", 2.0)):
        model = ModelConfig.model_validate({**section, "descriptor": {**section["descriptor"], "sel": sel}})
        numbers = resolve_sel(model, stat).descriptor.sel
        assert numbers == [4 * -(-int(n * factor) // 4) for n in stat.max_neighbors.tolist()]
    model = ModelConfig.model_validate({**section, "descriptor": {**section["descriptor"], "sel": [1, 99, 0]}})
    assert resolve_sel(model, stat) is model
    auto = ModelConfig.model_validate({**section, "descriptor": {**section["descriptor"], "sel": "auto"}})
    with pytest.raises(InputError, match=r"no atom of the data has a neighbor within rcut, 0\.6 Å"):
        resolve_sel(auto, neighbor_stat_of(["."], 0.6)[0])
    for rcut in (-1.0, 0.0, np.nan):
        with pytest.raises(InputError, match="rcut is"):
            neighbor_stat_of(["."], rcut)
    (warning,) = sel_warnings(model, stat)
    assert "sel of type O is 1" in warning
