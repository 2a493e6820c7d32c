"""DeePMD-kit's PyTorch files: the models are those of its `.dp` files, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dphpc
from dphpc.core.errors import ModelFileError
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model, write_model
from dphpc.model.torch_archive import Item, read_archive

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pth") if path.stem != "trained")


def arrays(model: DPModel) -> dict[str, np.ndarray]:
    d, f = model.descriptor, model.fitting
    found = {name: np.asarray(array) for name, array in model.parameters()}
    found |= {"davg": d.davg, "dstd": d.dstd, "bias": f.bias_atom_e, "out_bias": model.out_bias}
    for name in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std"):
        if getattr(f, name) is not None:
            found[name] = getattr(f, name)
    return found


def settings(model: DPModel) -> dict[str, Any]:
    """All settings but whether layers were trained, of which a frozen model has a single word."""
    found = {
        f"{part}.{field.name}": getattr(getattr(model, part), field.name)
        for part in ("descriptor", "fitting")
        for field in fields(getattr(model, part))
        if field.name not in ("networks", "trainable")
    }
    found |= {name: getattr(model, name) for name in ("type_map", "pair_exclude_types", "atom_exclude_types")}
    networks = [*model.descriptor.networks, *model.fitting.networks]
    found["layers"] = [[(layer.activation, layer.resnet) for layer in net.layers] for net in networks]
    return {key: value for key, value in found.items() if not isinstance(value, np.ndarray)}


def require_same(one: DPModel, other: DPModel) -> None:
    ours, theirs = arrays(one), arrays(other)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert settings(one) == settings(other)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_model_is_that_of_the_dp_file(name: str, tmp_path: Path) -> None:
    model = read_model(GOLDEN / f"{name}.pth")
    require_same(model, read_model(GOLDEN / f"{name}.dp"))
    write_model(model, tmp_path / "a.dp")
    written = read_model(tmp_path / "a.dp")
    if model.shared is None:
        require_same(written, model)
    found, before = arrays(written), arrays(model)
    assert all(np.array_equal(found[key], before[key]) for key in before)


def test_checkpoint_frozen_and_compressed_model() -> None:
    converted = read_model(GOLDEN / "trained.dp")
    require_same(read_model(GOLDEN / "trained.pt"), converted)
    compressed = read_model(GOLDEN / "trained.pth")
    require_same(compressed, converted)
    assert converted.table is None
    assert compressed.table is not None
    with np.load(GOLDEN / "trained.npz") as given:
        dp = dphpc.DeepPot(GOLDEN / "trained.pth")
        found = dict(
            zip(("energy", "force", "virial"), dp.eval(given["coord"], given["box"], given["types"]), strict=True)
        )
        for key, array in found.items():  # measured 4e-15, 2e-15, 2e-14
            np.testing.assert_allclose(array, given[key].reshape(array.shape), rtol=0, atol=1e-12)


def test_the_old_word_for_stripped_embeddings() -> None:
    """The input's `stripped_type_embedding` stands beside a `tebd_input_mode` that then says nothing."""
    require_same(read_model(GOLDEN / "stripped.pt"), read_model(GOLDEN / "stripped.dp"))


def rewritten(tmp_path: Path, source: Path, change: Callable[[dict[str, bytes]], None], packed: bool = False) -> Path:
    """The archive with other members, their checksums right."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    path = tmp_path / f"forged{source.suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_nothing_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"model": Harmful(), "_extra_state": [1, (2.5, "three")]}, protocol=2)
    path = rewritten(tmp_path, GOLDEN / "trained.pt", lambda members: members.update({name_of(members): program}))
    pickle.loads(program)
    assert Path("harm").exists()
    Path("harm").rmdir()
    found = read_archive(path)
    assert isinstance(found["model"], Item)
    assert found["_extra_state"] == [1, (2.5, "three")]
    with pytest.raises(ModelFileError, match="holds no model of DeePMD-kit"):
        read_model(path)
    assert not Path("harm").exists()


def name_of(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("/data.pkl"))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("file", ["trained.pt", "dpa1_strip_resnet_dt.pth"])
def test_damaged_programs_are_refused(tmp_path: Path, file: str) -> None:
    random.seed(3)
    refused = 0
    for _ in range(100):

        def damage(members: dict[str, bytes]) -> None:
            program = bytearray(members[name_of(members)])
            for _ in range(3):
                program[random.randrange(len(program))] = random.randrange(256)
            members[name_of(members)] = bytes(program)

        try:
            read_model(rewritten(tmp_path, GOLDEN / file, damage))
        except ModelFileError:
            refused += 1
    assert refused > 50


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    def shorten(members: dict[str, bytes]) -> None:
        name = max((name for name in members if "/data/" in name), key=lambda name: len(members[name]))
        members[name] = members[name][:-8]

    with pytest.raises(ModelFileError, match="larger than what is stored"):
        read_model(rewritten(tmp_path, GOLDEN / "trained.pth", shorten))
    with pytest.raises(ModelFileError, match="packed"):
        read_model(rewritten(tmp_path, GOLDEN / "trained.pth", lambda members: None, packed=True))
    big = (GOLDEN / "trained.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(big[: len(big) // 2])
    with pytest.raises(ModelFileError, match="damaged or none of PyTorch"):
        read_model(tmp_path / "half.pth")
    with pytest.raises(ModelFileError, match="no such model file"):
        read_model(tmp_path / "absent.pth")


def checkpoint_with(tmp_path: Path, section: Any) -> Path:
    program = pickle.dumps({"model": {"_extra_state": {"model_params": section}}}, protocol=2)
    program = program.replace(pickle.BINUNICODE + b"\x04\0\0\0deep", 5000 * b"]" + 4999 * b"a")  # lists in lists
    return rewritten(tmp_path, GOLDEN / "trained.pt", lambda members: members.update({name_of(members): program}))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    kinds = {
        "several models: a, b": {"model_dict": {"a": {}, "b": {}}},
        "a model with use_srtab": {"use_srtab": "zbl.txt"},
        "a model of type 'linear_ener'": {"type": "linear_ener"},
        "descriptor 'dpa2'": {"descriptor": {"type": "dpa2"}, "fitting_net": {}, "type_map": ["H"]},
        "fitting 'dipole'": {"descriptor": {"type": "se_e2_a"}, "fitting_net": {"type": "dipole"}, "type_map": ["H"]},
    }
    for message, section in kinds.items():
        with pytest.raises(ModelFileError, match=message):
            read_model(checkpoint_with(tmp_path, section))


def test_sections_without_end(tmp_path: Path) -> None:
    within: list[Any] = []
    within.append(within)
    shared: list[Any] = ["long" * 10]
    for _ in range(60):
        shared = [shared, shared]
    for section in (within, shared, "deep"):
        with pytest.raises(ModelFileError):
            read_model(checkpoint_with(tmp_path, {"descriptor": section}))
