"""Model files: there and back, and what damaged or foreign ones say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dphpc.core.errors import ModelFileError
from dphpc.model.compress import compress
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.model.radial_table import Grid
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure

FPARAM = {"numb_fparam": 2, "fparam_avg": np.array([0.1, 0.2]), "fparam_inv_std": np.array([1.5, 2.0])}


@pytest.mark.parametrize("suffix", [".dp", ".yaml"])
@pytest.mark.parametrize("compressed", [False, True])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, compressed: bool) -> None:
    model = random_model(
        0, exclude_types=frozenset({(0, 1)}), fitting={**FPARAM, "atom_ener": [None, 1.0]}, env_protection=0.1
    )
    if compressed:
        model = compress(model)[0]
    write_model(model, tmp_path / f"model{suffix}")
    again = read_model(tmp_path / f"model{suffix}")
    for (name, a), (_, b) in zip(model.parameters(), again.parameters(), strict=True):
        assert np.array_equal(a, b), name
    x, cell, types = random_structure()
    results = [DeepPot(m).eval(x[None], cell[None], types, fparam=[0.3, 0.4]) for m in (model, again)]
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    assert (again.table is not None) == compressed
    assert again.table is None or again.table.grids == model.table.grids
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    "numbers",
    [[0.0], [0.0, 0.1], [0.0, -0.1, 9], [0.0, 0.1, -9], [0.0, math.nan, 9], [0.0, *(0.1, 9) * 5], [0.0, "x", 9]],
)
def test_grids_that_are_none_are_refused(tmp_path: Path, numbers: list[object]) -> None:
    def change(tree: dict) -> None:
        tree["dphpc"]["table"]["grids"][0] = numbers

    with pytest.raises(ModelFileError, match="do not fit together"):
        read_model(edited(tmp_path, change, compress(random_model(0))[0]))


def test_parts_of_a_grid_without_intervals_are_left_out() -> None:
    grid = Grid.from_numbers(-0.5, 0.1, 4, 0.2, 0)
    assert (grid.steps, grid.counts) == ((0.1,), (4,))


def edited(tmp_path: Path, change: object, model: DPModel | None = None) -> Path:
    """A written model whose JSON went through `change`."""
    path = tmp_path / "model.dp"
    write_model(model or random_model(0), path)
    with h5py.File(path, "a") as file:
        tree = json.loads(file.attrs["json"])
        change(tree)  # type: ignore[operator]
        file.attrs["json"] = json.dumps(tree)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["descriptor"].update(type="dpa3"), "descriptor 'dpa3' is not supported"),
        (lambda t: t["model"]["fitting"].update(type="dipole"), "fitting 'dipole' is not supported"),
        (lambda t: t["model"]["descriptor"].update({"@version": 9}), "version 9, newer"),
        (lambda t: t["model"].pop("type_map"), "no entry 'type_map'"),
        (lambda t: t["model"].update(type_map=["O"]), "type_map names 1 types, sel 2"),
        (lambda t: t["model"]["descriptor"].update(sel=[24, 25]), "do not fit together"),
        (lambda t: t["model"]["descriptor"]["embeddings"]["networks"].pop(), "3 embedding networks, expected 4"),
        (lambda t: t["model"]["descriptor"]["@variables"].update(davg="/../x"), "does not stand in the file"),
        (lambda t: t["model"]["descriptor"]["@variables"].update(dstd="/variable_0000"), "do not fit together"),
        (lambda t: t.update(model={"type": "zbl"}), "a model of type 'zbl' is not supported"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(edited(tmp_path, change))


Change = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    ("network", "layer", "change", "message"),
    [
        (1, 0, lambda w: w[:0], r"shape \(0, 4\)"),
        (1, 0, lambda w: w.ravel(), r"shape \(4,\)"),
        (1, 1, lambda w: w[..., None], r"shape \(4, 8, 1\)"),
        (1, 0, lambda w: np.repeat(w, 2, axis=0), "do not take one number"),
        (3, 2, lambda w: w[:, :8], "to equally many channels"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_networks_that_are_none(
    tmp_path: Path, network: int, layer: int, change: Change, message: str, compressed: bool
) -> None:
    path = tmp_path / "model.dp"
    write_model(compress(random_model(0))[0] if compressed else random_model(0), path)
    with h5py.File(path, "a") as file:
        tree = json.loads(file.attrs["json"])
        variables = tree["model"]["descriptor"]["embeddings"]["networks"][network]["layers"][layer]["@variables"]
        name, variables["b"] = variables["w"], None
        changed = change(file[name][()])
        del file[name]
        file[name] = changed
        file.attrs["json"] = json.dumps(tree)
    with pytest.raises(ModelFileError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sel", [math.inf, 24], "do not fit together"),
        ("sel", [-1, 49], r"sel is \[-1, 49\]"),
        ("axis_neuron", 17, "axis_neuron is 17 of 16"),
        ("axis_neuron", -4, "axis_neuron is -4"),
        ("rcut", math.nan, "rcut nan"),
        ("rcut", 1.5, "rcut 1.5, rcut_smth 1.5"),
        ("env_protection", math.inf, "protection inf"),
    ],
)
def test_numbers_that_no_kernel_takes(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(edited(tmp_path, lambda tree: tree["model"]["descriptor"].update({key: value})))


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "model.dp"
    write_model(random_model(0), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        read_model(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="damaged"):
        read_model(path)
    with pytest.raises(ModelFileError, match="no such"):
        read_model(tmp_path / "absent.dp")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.pt2", "convert it with DeePMD-kit: dp convert-backend a.pt2 a.dp"),
        ("model.ckpt-3.safetensors", "dphpc freeze -c model.ckpt-3.safetensors -o model.dp"),
        ("figure.png", None),
    ],
)
def test_what_makes_a_model_of_other_files(tmp_path: Path, name: str, remedy: str | None) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match="files are not read") as caught:
        read_model(tmp_path / name)
    assert caught.value.remedy is None if remedy is None else remedy in str(caught.value.remedy)


def test_bits_that_h5py_stumbles_over(tmp_path: Path) -> None:
    path = tmp_path / "model.dp"
    write_model(random_model(0), path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(7), 0
    for _ in range(60):  # h5py says RuntimeError to some, and OSError, KeyError, … to others
        damaged = bytearray(whole)
        for place in rng.integers(0, 2000, 3):  # where the tree of groups is
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read_model(path)
        except ModelFileError:
            refused += 1
    assert refused > 10


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("model: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ModelFileError, match="damaged"):
        read_model(path)


def test_a_forged_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.dp"
    write_model(random_model(0), path)
    with h5py.File(path, "a") as file:
        del file["variable_0000"]
        file.create_dataset("variable_0000", shape=(1 << 40,), chunks=(1 << 20,), dtype="f8")
    with pytest.raises(ModelFileError, match="claims more data"):
        read_model(path)
