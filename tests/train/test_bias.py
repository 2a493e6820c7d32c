"""`change-bias` on data whose errors are known beforehand, and beside DeePMD-kit's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dphpc
from dphpc.core.errors import DataError, InputError, ModelFileError
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.potential.deep_pot import DeepPot
from dphpc.train.bias import change_bias, fitted_bias, with_bias
from dphpc.train.checkpoint import Checkpoint
from dphpc.train.data import open_systems
from dphpc.train.data.system import System
from tests.models import random_model, random_structure
from tests.train.systems import small_input, write_system

SHIFT = np.array([0.7, -0.2])
"""eV that the labels of an atom of each type lie above the model."""


def shifted_system(folder: Path, model: DPModel, n_oxygen: int, seed: int) -> None:
    """Three frames of 12 atoms whose labels are a model's energies and `SHIFT`."""
    write_system(folder, 12, 3, seed)
    types = np.array(n_oxygen * [0] + (12 - n_oxygen) * [1])
    np.savetxt(folder / "type.raw", types, fmt="%d")
    coord, box = (np.load(folder / f"set.000/{name}.npy") for name in ("coord", "box"))
    energy = DeepPot(model).eval(coord, box, types)[0].ravel()
    np.save(folder / "set.000/energy.npy", energy + SHIFT[types].sum())


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DPModel:
    """A model with biases, in `m.dp`; systems `a` and `b` of two compositions, labelled by it and `SHIFT`."""
    monkeypatch.chdir(tmp_path)
    made = random_model(1)
    assert made.out_bias.any()
    assert made.fitting.bias_atom_e.any()
    write_model(made, "m.dp")
    shifted_system(Path("a"), made, 4, 1)
    shifted_system(Path("b"), made, 7, 2)
    return made


def frames_of(*names: str) -> list[tuple[System, int]]:
    return [(s, i) for s in open_systems(names, ["O", "H"]) for i in range(s.n_frames)]


def test_change_adds_what_the_model_misses(model: DPModel) -> None:
    written = change_bias("m.dp", ["a", "b"])
    assert written == Path("m_updated.dp")
    new = read_model(written)
    assert new.energy_bias == pytest.approx(model.energy_bias + SHIFT, abs=1e-9)  # measured: 1e-14
    x, cell, types = random_structure(12, 6.0, seed=9)
    before, after = (DeepPot(name).eval(x, cell, types) for name in ("m.dp", written))
    assert after[0] - before[0] == pytest.approx(SHIFT[types].sum(), abs=1e-9)
    assert np.array_equal(after[1], before[1])


def test_set_takes_the_labels_themselves(model: DPModel) -> None:
    change_bias("m.dp", ["a", "b"], "set", output="set.yaml")
    systems = open_systems(["a", "b"], ["O", "H"])
    counts = np.array([np.bincount(s.types(i), minlength=2) for s in systems for i in range(3)])
    labels = np.concatenate([np.load(f"{name}/set.000/energy.npy") for name in "ab"])
    expected = np.linalg.lstsq(counts.astype(float), labels, rcond=None)[0]
    assert read_model("set.yaml").energy_bias == pytest.approx(expected, abs=1e-9)


def test_values_replace_the_bias(model: DPModel) -> None:
    new = read_model(change_bias("m.dp", values=[-93.5, 2.0], output="v.dp"))
    assert np.array_equal(new.energy_bias, [-93.5, 2.0])


def test_a_part_of_the_frames(model: DPModel) -> None:
    energy = Path("a/set.000/energy.npy")
    np.save(energy, np.load(energy) + np.array([0.0, 50.0, 0.0]))  # first and last are taken
    seen: list[tuple[int, int]] = []
    change_bias("m.dp", ["a", "b"], n_frames=2, progress=lambda *n: seen.append(n))
    assert seen[-1] == (4, 4)
    assert read_model("m_updated.dp").energy_bias == pytest.approx(model.energy_bias + SHIFT, abs=1e-9)


def test_types_that_the_data_lack_keep_their_bias(model: DPModel) -> None:
    for name in ("a", "b"):
        Path(name, "type.raw").write_text(Path(name, "type.raw").read_text().replace("1", "0"))
    frames = frames_of("a", "b")
    assert fitted_bias(model, frames)[1] == pytest.approx(model.energy_bias[1], abs=1e-12)
    assert fitted_bias(model, frames, "set")[1] == 0.0


def test_given_energies_of_lone_atoms_stay(model: DPModel) -> None:
    fixed = replace(with_bias(model, [-3.0, 1.0]), fitting=replace(model.fitting, atom_ener=[-3.0, None]))
    fixed = with_bias(fixed, [-3.0, 1.0])
    for mode in ("change", "set"):
        bias = fitted_bias(fixed, frames_of("a", "b"), mode)
        assert bias[0] == -3.0
        assert bias[1] != pytest.approx(1.0, abs=0.01)


def test_excluded_atoms_have_no_part_in_it(model: DPModel) -> None:
    without = replace(model, atom_exclude_types=frozenset({1}))
    bias = fitted_bias(without, frames_of("a", "b"))
    assert bias[1] == pytest.approx(model.energy_bias[1], abs=1e-12)


def test_checkpoints(model: DPModel) -> None:
    write_system(Path("c"), 11, 1, seed=3)
    dphpc.train(small_input(numb_steps=2))
    before = Checkpoint.load(Path("model.ckpt-2.safetensors"))
    written = change_bias("model.ckpt-2", values=[1.0, 2.0])
    assert written == Path("model.ckpt-2_updated.safetensors")
    after = Checkpoint.load(written)
    assert np.array_equal(after.arrays["out_bias"], [1.0, 2.0])
    assert after.step == 2
    assert all(np.array_equal(after.optimizer[name], value) for name, value in before.optimizer.items())
    assert np.array_equal(read_model(change_bias(".", values=[1.0, 2.0], output="f.dp")).energy_bias, [1.0, 2.0])


def test_users_mistakes(model: DPModel) -> None:
    for wrong in ([1.0], [1.0, 2.0, 3.0], [1.0, np.nan]):
        with pytest.raises(InputError, match=r"(?s)2 finite numbers, for O H"):
            change_bias("m.dp", values=wrong)
    with pytest.raises(InputError, match="both systems and values"):
        change_bias("m.dp", "a", values=[1.0, 2.0])
    with pytest.raises(InputError, match="no mode"):
        change_bias("m.dp", "a", "shift")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names no file"):
        change_bias("m.dp", "a", output="m.safetensors")
    with pytest.raises(InputError, match="no folder 'new'"):
        change_bias("m.dp", "a", output="new/m.dp")
    Path("frozen.pt2").touch()
    with pytest.raises(ModelFileError, match=r"(?s)no checkpoint.*dp convert-backend frozen\.pt2 frozen\.dp"):
        change_bias("frozen.pt2", "a")
    Path("b/set.000/energy.npy").unlink()
    seen: list[int] = []
    with pytest.raises(DataError, match=r"(?s)no energy\.npy.*where: +b"):
        change_bias("m.dp", ["a", "b"], progress=lambda done, total: seen.append(done))
    assert not seen
    Path("a/type_map.raw").write_text("O\nXe\n")
    with pytest.raises(DataError, match="'Xe' is not in the type map"):
        change_bias("m.dp", "a")
    assert not list(Path().glob("*updated*"))
