from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dphpc.core.errors import ModelFileError
from dphpc.model.radial_table import Grid
from dphpc.train.checkpoint import Checkpoint, CheckpointFolder, find_checkpoint
from dphpc.train.initial import initial_model, model_arrays
from dphpc.train.schema import parse_input
from dphpc.train.statistics import Statistics
from tests.train.systems import small_input


def checkpoint(step: int = 3) -> Checkpoint:
    given = small_input()
    given["model"]["descriptor"]["sel"] = [20, 20]
    config = parse_input(given)
    rng = np.random.default_rng(0)
    statistics = Statistics(rng.normal(size=2), rng.uniform(1, 2, (2, 2)), rng.normal(size=2))
    model = initial_model(config.model, statistics, seed=3, min_distance=0.9)
    moments = {f"exp_avg.{name}": rng.normal(size=value.shape) for name, value in model.parameters()}
    return Checkpoint(step, config, model_arrays(model), moments, Grid(-1.0, (0.5, 1.0), (20, 3)), 0.9)


def test_round_trip(tmp_path: Path) -> None:
    written = checkpoint()
    written.save(tmp_path / "x.safetensors")
    read = Checkpoint.load(tmp_path / "x.safetensors")
    assert read.step == 3
    assert read.config == written.config
    assert read.grid == written.grid
    for name, value in {**written.arrays, **written.optimizer}.items():
        assert np.array_equal({**read.arrays, **read.optimizer}[name], value)
    for name, value in model_arrays(read.model()).items():
        assert np.array_equal(value, written.arrays[name])
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_grid_from_before_tables_had_parts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"lower": -1.0, "step_fine": 0.5, "n_fine": 20, "step_coarse": 1.0, "n_coarse": 0}
    monkeypatch.setattr(Grid, "numbers", lambda _: old)
    checkpoint().save(tmp_path / "x.safetensors")
    assert Checkpoint.load(tmp_path / "x.safetensors").grid == Grid(-1.0, (0.5,), (20,))


def test_the_folder_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CheckpointFolder("out/model.ckpt", None, max_keep=2)
    for step in (10, 20, 30, 40):
        folder.save(checkpoint(step))
    kept = sorted(path.name for path in Path("out").iterdir())
    assert kept == ["model.ckpt-30.safetensors", "model.ckpt-40.safetensors", "model.ckpt.safetensors"]
    assert find_checkpoint(".") == Path("out/model.ckpt-40.safetensors")
    assert find_checkpoint("out/model.ckpt-30") == Path("out/model.ckpt-30.safetensors")
    assert Checkpoint.load(find_checkpoint("out/model.ckpt")).step == 40


@pytest.mark.parametrize(("restart", "left"), [(None, [10, 20, 30, 40]), (20, [30, 40])])
def test_the_folder_keeps_what_another_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: int | None, left: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (10, 20, 30, 40):
        checkpoint(step).save(Path(f"model.ckpt-{step}.safetensors"))
    folder = CheckpointFolder("model.ckpt", None, max_keep=2, restart=restart)
    assert sorted(folder.others) == left
    for step in (25, 30, 35):
        folder.save(checkpoint(step))
    kept = {path.name for path in Path().glob("model.ckpt-*")}
    assert kept == {f"model.ckpt-{step}.safetensors" for step in {*left, 30, 35}}
    assert find_checkpoint(".") == Path("model.ckpt-35.safetensors")


def test_damaged_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ModelFileError, match="no such checkpoint"):
        Checkpoint.load(path)
    checkpoint().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        Checkpoint.load(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="no checkpoint"):
        Checkpoint.load(path)
    save_file({"a": np.zeros(2)}, path, metadata={"dphpc": json.dumps({"format": 99})})
    with pytest.raises(ModelFileError, match="newer"):
        Checkpoint.load(path)
    with pytest.raises(ModelFileError, match="has no file 'checkpoint'"):
        find_checkpoint(tmp_path)
