"""Training data in LMDB, as dpdata and `dphpc data convert` write them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dpdata
import lmdb
import msgpack
import numpy as np
import pytest

import dphpc
from dphpc.core.errors import DataError, InputError
from dphpc.model.model_file import read_model
from dphpc.train import evaluate
from dphpc.train.bias import change_bias
from dphpc.train.convert import convert
from dphpc.train.data import Dataset, System, open_systems
from dphpc.train.data.lmdb_file import LmdbFile
from dphpc.train.data.lmdb_frames import Database
from dphpc.train.freeze import freeze
from dphpc.train.neighbor_stat import neighbor_stat_of
from dphpc.train.sampler import Sampler
from dphpc.train.schema import parse_input
from tests.train.data_systems import TRICLINIC, make_system, write_npy
from tests.train.systems import small_input, write_padded, write_system

pytestmark = pytest.mark.usefixtures("inside")


def encoded(array: Any, dtype: Any = np.float64) -> dict[str, Any]:
    array = np.asarray(array, dtype)
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def water(n: int = 3, **changed: Any) -> dict[str, Any]:
    """A frame of n atoms in a box of 9 Å; a field that is None is left out."""
    rng = np.random.default_rng(n)
    frame = {
        "coords": encoded(9.0 * rng.random((n, 3))),
        "cells": encoded(9.0 * np.eye(3)),
        "energies": encoded(-1.5 * n),
        "forces": encoded(rng.normal(size=(n, 3))),
        "atom_types": encoded([0, *[1] * (n - 1)], np.int32),
        **changed,
    }
    return {name: value for name, value in frame.items() if value is not None}


def written(path: Path, frames: list[Any], **metadata: Any) -> Path:
    """A database of frames; metadata that are None are left out."""
    known = {"nframes": len(frames), "frame_idx_fmt": "012d", "type_map": ["O", "H"], **metadata}
    pairs = {f"{i:012d}".encode(): frame for i, frame in enumerate(frames)}
    pairs[b"__metadata__"] = {name: value for name, value in known.items() if value is not None}
    with lmdb.open(str(path), map_size=2**27, lock=False) as database, database.begin(write=True) as transaction:
        for key, value in pairs.items():
            transaction.put(key, value if isinstance(value, bytes) else msgpack.packb(value))
    return path


def assert_same_frames(a: System, b: System) -> None:
    assert (a.n_frames, a.n_atoms, a.labels, a.periodic) == (b.n_frames, b.n_atoms, b.labels, b.periodic)
    for i in range(a.n_frames):
        one, other = a.frame(i), b.frame(i)
        np.testing.assert_array_equal(one.types, other.types)
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.box.matrix, other.box.matrix)
        for name, value in a.values(i).items():
            np.testing.assert_array_equal(value, b.values(i)[name], err_msg=name)


@pytest.mark.parametrize("writer", ["dpdata", "dphpc"])
def test_frames_are_those_of_npy(tmp_path: Path, writer: str) -> None:
    """Two systems of other sizes, one without boundaries."""
    periodic = make_system(1, n_frames=5, types=[0] * 12 + [1] * 15, box=TRICLINIC)
    for data in (periodic, make_system(2, n_frames=3, types=[0] * 3 + [1] * 4, box=None)):
        kept = {k: v for k, v in data.items() if k not in ("fparam", "aparam", "atom_ener", "atom_pref")}
        write_npy(tmp_path / f"{len(data['types'])}", kept, type_map=["O", "H"])
    folders = [str(tmp_path / name) for name in ("7", "27")]
    if writer == "dpdata":
        loaded = [dpdata.LabeledSystem(folder, fmt="deepmd/npy") for folder in folders]
        dpdata.MultiSystems(*loaded).to("deepmd/lmdb", str(tmp_path / "out.lmdb"))
    else:
        convert(folders, tmp_path / "out.lmdb")
    found = open_systems(["out.lmdb"], ["H", "O"])
    assert [s.name for s in found] == ["out.lmdb#7_nopbc", "out.lmdb#27"]
    for a, b in zip(found, open_systems(folders, ["H", "O"]), strict=True):
        assert a.sources is not None
        assert b.sources is None
        assert_same_frames(a, b)
    (alone,) = open_systems(["out.lmdb#27"], ["H", "O"])
    assert alone.n_atoms == 27


def test_dpdata_reads_what_we_write(tmp_path: Path) -> None:
    write_system(tmp_path / "a", 12, 3, seed=1)
    convert(tmp_path / "a", tmp_path / "out.lmdb")
    theirs = dpdata.LabeledSystem(str(tmp_path / "out.lmdb"), fmt="deepmd/lmdb")
    convert(tmp_path / "a", tmp_path / "npy")  # atoms sorted by type, as in the database
    (ours,) = open_systems(["npy"], ["O", "H"])
    np.testing.assert_array_equal(theirs["energies"], [ours.frame(i).energy for i in range(3)])
    np.testing.assert_array_equal(theirs["forces"], [ours.frame(i).forces for i in range(3)])
    np.testing.assert_array_equal(theirs["virials"], [ours.frame(i).virial for i in range(3)])
    metadata = metadata_of(tmp_path / "out.lmdb")
    assert metadata["frame_nlocs"] == [12] * 3
    assert metadata["frame_system_ids"] == [0] * 3


def metadata_of(path: Path) -> dict[str, Any]:
    with lmdb.open(str(path), readonly=True, lock=False) as database, database.begin() as transaction:
        return msgpack.unpackb(transaction.get(b"__metadata__"))


def test_parameters_and_weights_too(tmp_path: Path) -> None:
    data = make_system(1, n_frames=2, types=[0] * 3 + [1] * 4 + [2], box=TRICLINIC)
    write_npy(tmp_path / "a", data)
    convert(tmp_path / "a", tmp_path / "out.lmdb")
    convert(tmp_path / "out.lmdb", tmp_path / "back")
    for name in ("fparam", "aparam", "atom_ener", "atom_pref"):
        back = np.load(tmp_path / f"back/set.000/{name}.npy")
        np.testing.assert_array_equal(back.ravel(), data[name].ravel(), err_msg=name)


def test_frames_are_grouped_by_size_boundaries_and_labels(tmp_path: Path) -> None:
    frames = [
        water(3), water(5), water(3, energies=None), water(3, cells=None), water(3, cells=encoded(np.zeros((3, 3)))),
        water(3, find_energy=0.0), water(3, atom_types=encoded([1, 0, 1], np.int32)),
    ]  # fmt: skip
    written(tmp_path / "a.lmdb", frames)
    found = {s.name: s for s in open_systems(["a.lmdb"], ["O", "H"])}
    sizes = {"a.lmdb#3": 2, "a.lmdb#3_v1": 2, "a.lmdb#3_nopbc": 2, "a.lmdb#5": 1}
    assert {name: s.n_frames for name, s in found.items()} == sizes
    assert found["a.lmdb#3_v1"].labels == {"forces"}
    assert found["a.lmdb#3"].mixed
    assert found["a.lmdb#3"].frame(1).types.tolist() == [1, 0, 1]
    assert not found["a.lmdb#3_v1"].mixed


def test_older_names_and_numbers(tmp_path: Path) -> None:
    """What DeePMD-kit's reader takes beside dpdata's format: singular names, bytes as keys, plain numbers."""
    frame = water(3)
    old = {name.removesuffix("s"): frame[name] for name in ("coords", "forces")}
    old |= {"atype": frame["atom_types"], "energy": -4.5, "box": {k.encode(): v for k, v in frame["cells"].items()}}
    written(tmp_path / "a", [old], frame_idx_fmt=None, type_map=None)
    written(tmp_path / "b", [frame])
    (a,) = open_systems(["a"], ["O", "H"])
    (b,) = open_systems(["b"], ["O", "H"])
    assert_same_frames(a, b)


def test_slots_without_atoms(tmp_path: Path) -> None:
    write_padded(tmp_path / "npy")
    source = tmp_path / "npy/set.000"
    arrays = {name: np.load(source / f"{name}.npy") for name in ("coord", "box", "energy", "force", "virial")}
    slots = np.load(source / "real_atom_types.npy")
    theirs = dict(zip(arrays, ("coords", "cells", "energies", "forces", "virials"), strict=True))
    frames = [
        {theirs[name]: encoded(array[i]) for name, array in arrays.items()} | {"atom_types": encoded(s, np.int64)}
        for i, s in enumerate(slots)
    ]
    written(tmp_path / "a.lmdb", frames)
    (a,) = open_systems(["a.lmdb"], ["O", "H"])
    (b,) = open_systems(["npy"], ["O", "H"])
    assert_same_frames(a, b)


def bad_array(**changed: Any) -> dict[str, Any]:
    return {**encoded(np.zeros((3, 3))), **changed}


@pytest.mark.parametrize(
    ("frames", "metadata", "what", "where"),
    [
        ([water(3)], {"nframes": 2}, "'nframes' is 2", "__metadata__"),
        ([water(3)], {"nframes": None}, "'nframes' is None", "__metadata__"),
        ([water(3)], {"nframes": 10**15}, "'nframes' is 1000000000000000", "__metadata__"),
        ([water(3)], {"frame_idx_fmt": "999999999d"}, "'frame_idx_fmt' is 999999999d", "__metadata__"),
        ([water(3)], {"frame_idx_fmt": "06d"}, "frame 0 of 1 is missing", "key 000000"),
        ([water(3)], {"frame_nlocs": [4]}, "the frame has 3 atoms", "key 000000000000"),
        ([water(3)], {"frame_nlocs": [3, 3]}, "'frame_nlocs' is 2", "__metadata__"),
        ([water(3)], {"frame_system_ids": [10**9]}, "'frame_system_ids' is [1000000000]", "__metadata__"),
        ([water(3)], {"type_map": "OH"}, "'type_map' is OH", "__metadata__"),
        ([water(3), b"\xc1"], {}, "is not a msgpack map", "key 000000000001"),
        ([water(3), b"\x93\x01"], {}, "is not a msgpack map", "key 000000000001"),
        ([water(3), [1]], {}, "is not a msgpack map", "key 000000000001"),
        ([water(3, coords=None)], {}, "the frame lacks this", "000000000000, coords"),
        ([water(3, atom_types=None)], {}, "the frame lacks this", "000000000000, atom_types"),
        ([water(3, coords=encoded(np.zeros((4, 3))))], {}, "has 12 values", "000000000000, coords"),
        ([water(3, cells=encoded(np.eye(2)))], {}, "has 4 values", "000000000000, cells"),
        ([water(3, coords=bad_array(shape=[10**9, 10**9]))], {}, "has 72 bytes for float64", "000000000000, coords"),
        ([water(3, coords=bad_array(shape=[-3, -3]))], {}, "is no array of numbers", "000000000000, coords"),
        ([water(3, coords=bad_array(type="object"))], {}, "is no array of numbers", "000000000000, coords"),
        ([water(3, coords=[[0.0] * 3] * 3)], {}, "is no array of numbers", "000000000000, coords"),
        ([water(3, atom_types=encoded([0, 1, 1]))], {}, "types are not integers", "000000000000, atom_types"),
        ([water(3, atom_types=encoded([0, 1, 2], np.int32))], {}, "type 2 is used", "atom_types"),
        ([water(3), water(3, forces=encoded(np.full((3, 3), np.nan)))], {}, "frame 000000000001 holds NaN", "forces"),
        ([water(3), water(3, coords=encoded([[1e9] * 3] * 3))], {}, "frame 000000000001 has coordinates", "coords"),
        ([water(3, cells=encoded(0.1 * np.eye(3)))], {}, "frame 000000000000 is a box thinner than", "cells"),
        ([water(3)], {"type_map": ["O", "X"]}, "the element 'X' is not in the type map", "__metadata__, type_map"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, frames: list, metadata: dict, what: str, where: str) -> None:
    written(tmp_path / "a.lmdb", frames, **metadata)
    with pytest.raises(DataError) as caught:
        open_systems(["a.lmdb"], ["O", "H"])
    assert what in caught.value.what
    assert "a.lmdb" in str(caught.value.where)
    assert where in str(caught.value.where)


def test_each_frame_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one composition, frames of several, and open ones."""
    frames = [*[water(3)] * 4, *[water(4)] * 3, water(4, atom_types=encoded([0, 0, 1, 1], np.int32))]
    written(tmp_path / "a.lmdb", [*frames, water(5, cells=None)])
    read: list[str] = []
    unpack = Database._unpack
    monkeypatch.setattr(Database, "_unpack", lambda self, key, *place: read.append(key) or unpack(self, key, *place))
    systems = open_systems(["a.lmdb"], ["O", "H"])
    assert [system.n_frames for system in systems] == [4, 4, 1]
    assert sorted(read) == [*(f"{i:012d}" for i in range(9)), "__metadata__"]


def test_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").mkdir()
    (tmp_path / "text.lmdb").write_text("no database" * 1000)
    (tmp_path / "empty.lmdb").touch()
    written(tmp_path / "b.lmdb", [water(3)])
    for name, what in (
        ("a.lmdb", "cannot be opened as LMDB"), ("empty.lmdb", "cannot be opened as LMDB"),
        ("text.lmdb", "is no LMDB database"), ("b.lmdb#4", "no group '4'"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=what):
            open_systems([name], ["O", "H"])
    with lmdb.open(str(tmp_path / "c.lmdb"), lock=False) as database, database.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with pytest.raises(DataError, match="has no metadata"):
        open_systems(["c.lmdb"], ["O", "H"])


N_KEYS = 6000


def test_many_frames_are_found_as_the_library_finds_them(tmp_path: Path) -> None:
    """Some thousand keys: a tree of three levels; small values in its leaves, large ones in pages of their own."""
    rng = np.random.default_rng(0)
    pairs = {f"{i:012d}".encode(): rng.bytes(int(rng.choice([0, 900, 1900, 3000, 9000]))) for i in range(N_KEYS)}
    with lmdb.open(str(tmp_path / "a"), map_size=2**27, lock=False) as database:
        for k in range(0, N_KEYS, 500):  # several transactions: pages are copied, and freed ones used again
            with database.begin(write=True) as transaction:
                for key in list(pairs)[k : k + 500]:
                    transaction.put(key, pairs[key])
        with database.begin(write=True) as transaction:
            for key in list(pairs)[::7]:
                transaction.delete(key)
                del pairs[key]
        assert database.stat()["depth"] == 3
    file = LmdbFile(tmp_path / "a")
    assert {key: file.value(offset, size) for key, offset, size in file.entries()} == pairs


def test_damaged_files_never_end_the_process(tmp_path: Path) -> None:
    """The library follows page numbers beyond the end of the file, which is a bus error."""
    good = written(tmp_path / "good.lmdb", [water(n, extra=b"x" * 3000) for n in range(3, 60)])
    raw = (good / "data.mdb").read_bytes()
    refused, cut = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        data = bytearray(raw)
        if seed % 5 == 0:
            del data[int(rng.integers(len(data))) :]
        else:
            for page in rng.integers(len(data) // 4096, size=seed % 7 + 1):
                data[page * 4096 + int(rng.integers(200))] = int(rng.integers(256))
        target = tmp_path / f"{seed}.lmdb"
        target.mkdir()
        (target / "data.mdb").write_bytes(data)
        try:
            systems = open_systems([target.name], ["O", "H"])
            assert sum(s.n_frames for s in systems) == 57
        except DataError as error:
            refused.append(error)
            cut += [error.what] if len(data) < len(raw) else []
        shutil.rmtree(target)
    assert len(refused) > 15
    assert len(cut) > 10
    assert all(what.startswith(("ends early", "is no LMDB", "cannot be opened")) for what in cut)
    assert all(".lmdb" in str(error.where) for error in refused)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders a (12 atoms) and b (9 atoms) and databases a.lmdb, b.lmdb, and both.lmdb of the same frames."""
    write_system(tmp_path / "a", 12, 4, seed=1)
    write_system(tmp_path / "b", 9, 3, seed=2)
    for name in "ab":
        convert(tmp_path / name, tmp_path / f"{name}.lmdb", type_map=["O", "H"])
    convert([tmp_path / "a", tmp_path / "b"], tmp_path / "both.lmdb", type_map=["O", "H"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def training_input(systems: Any, **training: Any) -> dict[str, Any]:
    given = small_input(numb_steps=6, disp_freq=1, **training)
    given["training"]["training_data"] = {"systems": systems, "batch_size": 2, **training.get("training_data", {})}
    given["training"]["validation_data"]["systems"] = systems
    return given


def curve_of(systems: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    dphpc.train(training_input(systems))
    return (folder / "lcurve.out").read_text()


def test_training_is_that_of_npy(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit of each printed number, of training and of validation."""
    convert(data / "a", data / "sorted", type_map=["O", "H"])
    curves = {curve_of(systems, data, monkeypatch) for systems in (["sorted"], "a.lmdb", ["a.lmdb"])}
    assert len(curves) == 1


def test_lists_hold_databases_beside_systems(data: Path) -> None:
    model = parse_input(small_input()).model
    both = parse_input(training_input(["b", "both.lmdb"])).training.training_data
    dataset = Dataset.load(both, model)
    assert [s.name for s in dataset.systems] == ["b", "both.lmdb#9", "both.lmdb#12"]
    of_npy, _ = neighbor_stat_of(["a", "b"], 4.0)
    of_lmdb, names = neighbor_stat_of(["both.lmdb"], 4.0)
    assert names == ["O", "H"]
    assert of_lmdb.min_distance == of_npy.min_distance
    np.testing.assert_array_equal(of_lmdb.max_neighbors, of_npy.max_neighbors)
    filtered = both.updated(batch_size="filter:9")
    assert [s.n_atoms for s in Dataset.load(filtered, model).systems] == [9, 9]


def test_one_database_is_opened_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of active learning names each group by itself."""
    opened: list[Path] = []
    entries = LmdbFile.entries
    monkeypatch.setattr(LmdbFile, "entries", lambda self: opened.append(self.path) or entries(self))
    assert [s.n_atoms for s in open_systems(["both.lmdb#9", "both.lmdb#12"], ["O", "H"])] == [9, 12]
    assert len(opened) == 1


def test_every_batch_once_before_any_again(data: Path) -> None:
    model = parse_input(small_input()).model
    config = parse_input(training_input("both.lmdb")).training.training_data
    sampler = Sampler.of(Dataset.load(config, model), config, seed=3)
    assert sampler.steps_per_epoch == 4
    rounds: list[list[tuple[int, int]]] = []
    for first in range(0, 4 * 400, 4):
        drawn = [sampler.draw(step) for step in range(first, first + 4)]
        frames = [(system, int(i)) for system, indices in drawn for i in indices]
        assert sorted(frames) == [*((0, i) for i in range(3)), *((1, i) for i in range(4))]
        rounds.append(frames)
    assert len({tuple(system for system, _ in frames) for frames in rounds}) > 1
    other = Sampler.of(Dataset.load(config, model), config, seed=3)  # as a restarted run has it
    system, indices = other.draw(1599)
    assert (system, int(indices[-1])) == rounds[-1][-1]


@pytest.mark.parametrize(
    ("blocks", "taken"),
    [  # what DeePMD-kit 3.2 takes in one round of these frames: of the systems 0, 1, 2
        ("0:1:0.5;1:2:0.5", [100, 100, 10]),
        ("0:1:0.3;1:3:0.7", [47, 111]),
        ("0:1:3;1:2:7", [43, 100, 10]),
        ("0:1:0;1:2:7", [0, 100, 10]),  # DeePMD-kit takes a block of weight 0 once
    ],
)
def test_blocks_of_auto_prob_repeat_frames(tmp_path: Path, blocks: str, taken: list[int]) -> None:
    """Systems of 10, 100 and 10 frames, of 3 and 5 atoms each."""
    sources = [0] * 10 + [1] * 100 + [2] * 10
    frames = [water(5 if i % 3 == 0 else 3) for i in range(120)]
    written(tmp_path / "a.lmdb", frames, frame_system_ids=sources)
    config = parse_input(training_input(str(tmp_path / "a.lmdb"))).training.training_data
    config = config.updated(auto_prob=f"prob_sys_size;{blocks}", batch_size="auto:12")
    dataset = Dataset.load(config, parse_input(small_input()).model)
    sampler = Sampler.of(dataset, config, seed=3)
    assert sampler.steps_per_epoch == sampler.n_batches.sum()
    for number in range(3):
        counts = np.zeros(120, int)
        first = number * int(sampler.n_batches.sum())
        for step in range(first, first + int(sampler.n_batches.sum())):
            system, indices = sampler.draw(step)
            found = np.flatnonzero(
                [len(dataset.systems[system].types(0)) == (5 if i % 3 == 0 else 3) for i in range(120)]
            )
            np.add.at(counts, found[indices], 1)
        by_source = [counts[np.array(sources) == k] for k in range(3)]
        if len(taken) == 2:  # a block of two systems
            by_source = [by_source[0], np.concatenate(by_source[1:])]
        assert [int(c.sum()) for c in by_source] == taken
        assert all(np.ptp(c) <= 1 for c in by_source)


def test_blocks_count_systems_that_are_filtered_out(tmp_path: Path) -> None:
    written(tmp_path / "a.lmdb", [water(3)] * 2 + [water(5)] * 4, frame_system_ids=[0, 1, 2, 2, 3, 3])
    config = parse_input(training_input(str(tmp_path / "a.lmdb"))).training.training_data
    config = config.updated(auto_prob="prob_sys_size;0:1:0.2;1:2:0.4;2:4:0.4", batch_size="filter:4")
    sampler = Sampler.of(Dataset.load(config, parse_input(small_input()).model), config, seed=3)
    taken = np.concatenate([sampler.draw(step)[1] for step in range(int(sampler.n_batches.sum()))])
    assert sorted(taken) == [0, 1, 1]


def test_blocks_are_checked(data: Path) -> None:
    config = parse_input(training_input("both.lmdb")).training.training_data
    dataset = Dataset.load(config, parse_input(small_input()).model)
    for blocks in ("0:3:1", "0:2:1;1:2:1"):
        with pytest.raises(InputError, match="overlaps another one or goes beyond the 2 systems of the database"):
            Sampler.of(dataset, config.updated(auto_prob=f"prob_sys_size;{blocks}"), seed=3)


def test_blocks_that_leave_nothing(tmp_path: Path) -> None:
    written(tmp_path / "a.lmdb", [water(3)] * 3, frame_system_ids=[0, 2, 2])
    config = parse_input(training_input(str(tmp_path / "a.lmdb"))).training.training_data
    dataset = Dataset.load(config, parse_input(small_input()).model)
    with pytest.raises(InputError, match="leave no frame"):
        Sampler.of(dataset, config.updated(auto_prob="prob_sys_size;0:1:0;1:2:1;2:3:0"), seed=3)


def test_commands_take_databases(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dphpc.train(training_input("both.lmdb"))
    freeze("model.ckpt", "model.dp")
    npy = evaluate.test("model.dp", ["b", "a"])
    report = evaluate.test("model.dp", "both.lmdb", detail_prefix="detail")
    assert list(report.n_frames.values()) == [3, 4]
    assert report.total.measures("f") == pytest.approx(npy.total.measures("f"), rel=1e-12)
    assert Path("detail.e.out").read_text().startswith("# both.lmdb#9: data_e pred_e")
    shutil.copy("model.dp", "twin.dp")
    assert len(evaluate.model_devi(["model.dp", "twin.dp"], "both.lmdb")) == 7
    biases = [
        read_model(change_bias("model.dp", s, output=f"{i}.dp")).out_bias
        for i, s in enumerate((["b", "a"], ["both.lmdb"]))
    ]
    np.testing.assert_allclose(*biases, rtol=1e-12)
