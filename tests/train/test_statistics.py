from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.errors import DataError, InputError
from dphpc.train.data import Dataset, open_systems
from dphpc.train.schema.model import ModelConfig
from dphpc.train.schema.training import DataConfig
from dphpc.train.statistics import (
    Statistics,
    compute_moments,
    compute_statistics,
    load_or_compute,
    sample_frames,
    spread,
)
from tests.train.data_systems import TYPE_MAP, two_systems, write_npy
from tests.train.make_statistics_golden import CASES, model_section

pytestmark = pytest.mark.usefixtures("inside")

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "statistics_golden.json").read_text())["cases"]
WATER = HERE.parents[2] / "shared/data/water"


def config(case: str, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**model_section(case), **changes})


def load(model: ModelConfig) -> Dataset:
    return Dataset.load(DataConfig(systems=["a", "b"]), model)


@pytest.mark.parametrize("case", list(CASES))
def test_equals_deepmd_kit(folder: Path, case: str) -> None:
    """Measured: 4e-16 relative for davg and dstd, 0 for the others."""
    model = config(case)
    dataset, golden = load(model), GOLDEN[case]
    ours = compute_statistics(dataset, model)
    for field in fields(Statistics):
        value, expected = getattr(ours, field.name), golden[field.name]
        if expected is None:
            assert value is None
        else:
            np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=field.name)
    moments = compute_moments(dataset, model, sample_frames(dataset, model))
    np.testing.assert_allclose(moments.energy_std, golden["energy_std"], rtol=1e-12)


@pytest.mark.skipif(not WATER.is_dir(), reason="the water data of ../shared are not on this machine")
def test_water_equals_the_shipped_model() -> None:
    """Statistics of the frames that `dp train` drew equal those in its model; measured: 3e-17 and 0."""
    shipped = json.loads((HERE / "water_statistics.json").read_text())
    section = {**model_section("plain"), "type_map": ["O", "H"]}
    section["descriptor"] = {**section["descriptor"], "sel": [46, 92], "rcut": 6.0}
    model = ModelConfig.model_validate(section)
    paths = [str(WATER / name) for name in ("data_0", "data_1", "data_2")]
    dataset = Dataset(open_systems(paths, ["O", "H"]), ["O", "H"], 6.0)
    frames = [(system, i) for system, drawn in enumerate(shipped["frames"]) for i in drawn]
    moments = compute_moments(dataset, model, frames)
    ours = Statistics.of(moments, model)
    for name in ("davg", "dstd", "energy_bias"):
        np.testing.assert_allclose(getattr(ours, name), shipped[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(moments.energy_std, shipped["energy_std"], rtol=1e-12)


def test_systems_without_energies_give_no_bias(folder: Path) -> None:
    for file in folder.glob("a/set.*/energy.npy"):
        file.unlink()
    model = config("plain")
    assert compute_statistics(load(model), model).energy_bias[0] != 0.0  # from b alone
    for file in folder.glob("b/set.*/energy.npy"):
        file.unlink()
    np.testing.assert_array_equal(compute_statistics(load(model), model).energy_bias, 0.0)


def test_spread_takes_frames_evenly() -> None:
    np.testing.assert_array_equal(spread(5, 10), np.arange(5))
    np.testing.assert_array_equal(spread(10, 4), [0, 3, 6, 9])
    assert len(spread(1000, 77)) == 77
    np.testing.assert_array_equal(spread(9, 1), [0])


# -- stat_file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stat.hdf5", "stat"])
def test_stat_file_gives_the_same_again(folder: Path, tmp_path: Path, name: str) -> None:
    model, path = config("parameters"), tmp_path / name
    dataset = load(model)
    computed = load_or_compute(dataset, model, path)
    read = load_or_compute(None, model, path, "read")  # type: ignore[arg-type]  # no data are touched
    for field in fields(Statistics):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(computed, field.name))
    other = config("plain")
    with pytest.raises(InputError, match="lacks statistics"):
        load_or_compute(dataset, other.updated(type_map=["O", "H", "Y"]), path, "read")
    protected = model.updated(descriptor=model.descriptor.updated(env_protection=0.2))  # the same hash
    truncated = model.updated(fitting_net=model.fitting_net.updated(rcond=0.1))
    for another in (protected, truncated):
        with pytest.raises(InputError, match="lacks statistics"):
            load_or_compute(dataset, another, path, "read")
    leftovers = [p.name for p in tmp_path.rglob("*") if p.name.startswith(".") or p.suffix.isdigit()]
    assert leftovers == []


def test_stat_file_has_deepmd_kits_layout(folder: Path, tmp_path: Path) -> None:
    """Names as `dp --pt train` 3.2 writes them; the hash is that of the water input's descriptor there."""
    descriptor = {**model_section("plain")["descriptor"], "sel": [46, 92], "rcut": 6.0}
    model = config("plain", type_map=["O", "H"], descriptor=descriptor)
    write_npy(tmp_path / "w", two_systems()[0])
    dataset = Dataset.load(DataConfig(systems=["w"]), model)
    load_or_compute(dataset, model, tmp_path / "stat.hdf5")
    with h5py.File(tmp_path / "stat.hdf5") as file:
        group = file["O H"]
        assert {"bias_atom_energy", "std_atom_energy", "observed_type"} < set(group)
        assert set(group["c11273f3b506e71e40dd8ad97f5d96e2ca26e27e"]) == {"r_0", "r_1", "a_0", "a_1"}
        assert group["bias_atom_energy"].shape == (2, 1)
        assert group["observed_type"][()].tolist() == [b"O", b"H"]
        assert group["c11273f3b506e71e40dd8ad97f5d96e2ca26e27e/a_0"][0] == 5 * 12 * 138 * 3


def test_damaged_stat_file(folder: Path, tmp_path: Path) -> None:
    model = config("plain")
    (tmp_path / "stat.hdf5").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_or_compute(load(model), model, tmp_path / "stat.hdf5")
    (tmp_path / "stat.hdf5").unlink()
    load_or_compute(load(model), model, tmp_path / "stat.hdf5")
    with h5py.File(tmp_path / "stat.hdf5", "a") as file:
        file[f"{' '.join(TYPE_MAP)}/bias_atom_energy"][0] = np.nan
    with pytest.raises(DataError, match="finite numbers"):
        load_or_compute(load(model), model, tmp_path / "stat.hdf5")
