from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.ops.neighbors.contract import Neighbors
from dphpc.train.data import Batch, Dataset, FrameInputs, System, open_systems
from dphpc.train.data.batch import FrameCache
from dphpc.train.sampler import Sampler
from dphpc.train.schema import parse_input
from dphpc.train.schema.model import ModelConfig
from dphpc.train.schema.training import DataConfig
from tests.train.data_systems import TRICLINIC, TYPE_MAP, make_system, two_systems, write_npy
from tests.train.test_schema import WATER

pytestmark = pytest.mark.usefixtures("inside")

RCUT = 4.0


def model(**fitting: Any) -> ModelConfig:
    data = parse_input(WATER).model
    descriptor = data.descriptor.updated(sel=[30, 30, 30], rcut=RCUT)
    return data.updated(type_map=TYPE_MAP, descriptor=descriptor, fitting_net=data.fitting_net.updated(**fitting))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, system in zip("ab", two_systems(), strict=True):
        write_npy(tmp_path / name, system, sets=2)
    return tmp_path


def load(systems: str | list[str] = ".", **options: Any) -> Dataset:
    return Dataset.load(DataConfig(systems=systems, **options), model())


# -- systems ---------------------------------------------------------------------------------------------------------


def test_frames_are_what_was_written(folder: Path) -> None:
    system = open_systems(["a"], TYPE_MAP)[0]
    data = two_systems()[0]
    assert (system.n_frames, system.n_atoms, system.periodic) == (5, 27, True)
    frame = system.frame(3)
    box = Box(TRICLINIC)
    np.testing.assert_allclose(frame.positions, box.wrap(data["coord"][3].reshape(-1, 3)), atol=1e-12)
    assert frame.energy == data["energy"][3]
    assert frame.forces is not None
    np.testing.assert_array_equal(frame.forces.ravel(), data["force"][3])
    assert frame.virial is not None
    np.testing.assert_array_equal(frame.virial.ravel(), data["virial"][3])
    assert frame.fparam is None


def test_type_map_is_remapped(folder: Path) -> None:
    system = open_systems(["b"], ["X", "H", "O"])[0]
    np.testing.assert_array_equal(system.frame(0).types, 2 - two_systems()[1]["types"])
    with pytest.raises(DataError, match="element 'X' is not in the type map"):
        open_systems(["b"], ["O", "H"])
    open_systems(["a"], ["O", "H"])  # names X, but has no such atom


def test_the_order_of_types_is_told_where_systems_do_not_name_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dphpc.train")
    load()
    assert not caplog.records
    (folder / "b/type_map.raw").unlink()
    load(["a", "b", "b"])
    write_npy(folder / "c", two_systems()[0])
    (folder / "c/type_map.raw").unlink()
    load()
    text = "without type_map.raw: types are taken as 0 O, 1 H, 2 X"
    assert [r.getMessage() for r in caplog.records] == [f"1 system {text}", f"2 systems {text}"]


def test_types_without_atoms_are_known(folder: Path) -> None:
    assert load().absent == []
    assert load("a").absent == ["X"]
    mixed = make_system(4, n_frames=2, types=[0] * 5, box=TRICLINIC)
    place = write_npy(folder / "mixed", mixed)
    slots = np.array([[1, 1, 1, 1, -1], [1, 1, 2, 1, 1]])
    np.save(place / "set.000/real_atom_types.npy", slots)
    assert load("mixed").absent == ["O"]


def test_missing_labels_switch_their_terms_off(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in folder.glob("a/set.*/virial.npy"):
        file.unlink()
    (folder / "a/set.001/atom_ener.npy").unlink()
    system = load("a").systems[0]
    assert system.labels == {"energy", "forces", "atom_pref"}
    lost = "a/set.001/atom_ener.npy is missing, while other sets have it"
    assert [lost in record.getMessage() for record in caplog.records] == [True]  # nothing of the virial, which none has
    batch = load("a").batch(0, [0, 4])
    assert batch.virial is None
    assert batch.atom_ener is None
    assert batch.energy is not None


def test_frame_parameters(folder: Path) -> None:
    dataset = Dataset.load(DataConfig(systems=["a"]), model(numb_fparam=2, numb_aparam=1))
    batch = dataset.batch(0, [4, 1])
    data = two_systems()[0]
    assert batch.fparam is not None
    assert batch.aparam is not None
    np.testing.assert_array_equal(batch.fparam, data["fparam"][[4, 1]])
    np.testing.assert_array_equal(batch.aparam, data["aparam"][[4, 1]].reshape(-1, 1))
    for file in folder.glob("a/set.*/fparam.npy"):
        file.unlink()
    with pytest.raises(DataError, match="takes 2 values of fparam"):
        open_systems(["a"], TYPE_MAP, FrameInputs(2, 0))
    system = open_systems(["a"], TYPE_MAP, FrameInputs(2, 0, (1.0, 2.0)))[0]
    np.testing.assert_array_equal(system.frame(0).fparam, [1.0, 2.0])


def test_types_of_the_mixed_format_may_be_stored_as_floats(tmp_path: Path) -> None:
    place = write_npy(tmp_path / "m", make_system(4, n_frames=1, types=[0] * 5, box=TRICLINIC))
    slots = np.array([[1.0, 0.0, -1.0, 2.0, 1.0]])
    np.save(place / "set.000/real_atom_types.npy", slots)
    np.testing.assert_array_equal(load("m").systems[0].frame(0).types, [1, 0, 2, 1])
    for wrong in (0.5, np.nan, 1e12):
        np.save(place / "set.000/real_atom_types.npy", np.where(slots == 2, wrong, slots))
        with pytest.raises(DataError, match="types are not integers"):
            load("m")


def test_mixed_format_drops_virtual_atoms(tmp_path: Path) -> None:
    data = make_system(3, n_frames=2, types=[0] * 6, box=np.eye(3) * 8.0)
    slots = np.array([[1, 0, 0, -1, 1, 2], [0, 0, 1, 1, -1, -1]])
    write_npy(tmp_path / "m", {**data, "real_atom_types": slots}, type_map=["H", "O", "X"])
    system = open_systems(["m"], TYPE_MAP)[0]
    assert (system.mixed, system.n_atoms) == (True, 5)
    frame = system.frame(0)
    np.testing.assert_array_equal(frame.types, [0, 1, 1, 0, 2])
    assert frame.forces is not None
    np.testing.assert_array_equal(frame.forces, data["force"][0].reshape(-1, 3)[[0, 1, 2, 4, 5]])
    batch = Dataset([system], TYPE_MAP, 3.0).batch(0, [0, 1])
    np.testing.assert_array_equal(batch.natoms, [5, 4])
    np.testing.assert_array_equal(batch.frame, [0] * 5 + [1] * 4)
    for n in (1, 2, 3, 4):
        parts = [Dataset([system], TYPE_MAP, 3.0).batch(0, [0, 1], (k, n)) for k in range(n)]
        atoms = [a for part in parts for a in range(batch.n_local)[part.own]]
        assert atoms == list(range(batch.n_local))
        assert sum(part.n_own_pairs for part in parts) == batch.n_own_pairs


def test_hdf5_equals_npy(folder: Path) -> None:
    with h5py.File(folder / "all.hdf5", "w") as file:
        for name, data in zip("ab", two_systems(), strict=True):
            group = file.create_group(f"deep/{name}")
            group["type.raw"] = data["types"]
            group["type_map.raw"] = np.array(TYPE_MAP, dtype="S")
            if "box" not in data:
                group["nopbc"] = True
            for key in data.keys() - {"types"}:
                group[f"set.000/{key}.npy"] = data[key]
    whole = load("all.hdf5")
    assert [s.name for s in whole.systems] == ["all.hdf5#/deep/a", "all.hdf5#/deep/b"]
    one = load("all.hdf5#/deep/b")
    with pytest.raises(DataError, match=r"(?s)no such group.*one of its groups: deep"):
        load("all.hdf5#/deap")
    for dataset, k in ((whole, 1), (one, 0)):
        ours, theirs = dataset.batch(k, [2]), load("b").batch(0, [2])
        for name in ("positions", "types", "energy", "forces", "virial"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_damaged_hdf5_is_refused(folder: Path) -> None:
    data = two_systems()[0]
    with h5py.File(folder / "all.hdf5", "w") as file:
        file["a/type.raw"] = data["types"]
        file["a/type_map.raw"] = np.array(TYPE_MAP, dtype="S")
        for key in ("coord", "box", "energy", "force"):
            file[f"a/set.000/{key}.npy"] = data[key]
    whole, rng, refused = (folder / "all.hdf5").read_bytes(), np.random.default_rng(3), 0
    path = folder / "damaged.hdf5"
    for _ in range(40):  # h5py says RuntimeError, KeyError, ValueError, OSError to it
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 5):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            for system in open_systems([str(path)], TYPE_MAP):
                for index in range(system.n_frames):
                    system.frame(index)
        except DataError:
            refused += 1
    assert refused > 5
    with h5py.File(folder / "all.hdf5", "a") as file:
        file["a"].create_group(b"set.\xff")
    with pytest.raises(DataError, match="no text"):
        open_systems([str(folder / "all.hdf5")], TYPE_MAP)


def test_folders_are_searched_and_patterns_choose(folder: Path) -> None:
    write_npy(folder / "more/a", two_systems()[0])
    assert [s.name for s in load(".").systems] == ["a", "b", "more/a"]
    assert [s.name for s in load(["b", "."]).systems] == ["b", "a", "b", "more/a"]
    assert [s.name for s in load(".", rglob_patterns=["a"]).systems] == ["a", "more/a"]
    assert [s.name for s in load(".", batch_size="filter:20").systems] == ["b"]


def test_a_system_that_is_named_twice_is_drawn_from_twice(folder: Path) -> None:
    """A way to take its frames more often; its neighbor lists are kept once."""
    data = DataConfig(systems=["a", "a", "b"], batch_size=[1, 2, 3], sys_probs=[0.25, 0.25, 0.5])
    dataset = Dataset.load(data, model())
    assert [s.name for s in dataset.systems] == ["a", "a", "b"]
    sampler = Sampler.of(dataset, data, 0)
    assert sampler.n_batches.tolist() == [5, 3, 1]
    assert {sampler.draw(step)[0] for step in range(50)} == {0, 1, 2}
    assert dataset.geometry(0, 2) is dataset.geometry(1, 2)


def no_pickle(folder: Path) -> None:
    np.save(folder / "set.000/energy.npy", np.array([{}, {}, {}]), allow_pickle=True)


def header_that_promises_too_much(folder: Path) -> None:
    with (folder / "set.000/force.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 81)})
        file.write(b"\0" * 648)


def damaged_header(folder: Path) -> None:
    file = folder / "set.000/force.npy"
    file.write_bytes(file.read_bytes().replace(b"}", b"("))


def set_value(name: str, index: Any, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / f"set.000/{name}.npy"
        array = np.load(file)
        array[index] = value
        np.save(file, array)

    return change


def save(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"set.000/{name}.npy", array)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message", "where"),
    [
        (set_value("force", (1, 4), np.nan), "frame 1 holds NaN", "set.000/force.npy"),
        (set_value("coord", (2, 0), np.inf), "frame 2 holds NaN or infinity", "set.000/coord.npy"),
        (set_value("coord", (2, 0), 1e9), "frame 2 has coordinates beyond", "set.000/coord.npy"),
        (set_value("box", (1, slice(0, 3)), 0.1), "frame 1 is a box thinner than 0.5", "set.000/box.npy"),
        (set_value("box", (0, slice(None)), 0.0), "frame 0 is a box thinner", "set.000/box.npy"),
        (lambda f: np.save(f / "set.000/box.npy", np.load(f / "set.000/box.npy") / 10), "Å³ per atom", "box.npy"),
        (save("force", np.zeros((3, 80))), r"shape \(3, 80\)", "set.000/force.npy"),
        (save("energy", np.zeros(2)), r"shape \(2,\)", "set.000/energy.npy"),
        (save("coord", np.zeros((0, 81))), "the set is empty", "set.000/coord.npy"),
        (save("virial", np.zeros((3, 9), complex)), "complex128", "set.000/virial.npy"),
        (no_pickle, "not a plain NumPy array", "set.000/energy.npy"),
        (write("set.000/energy.npy", "no array"), "not a plain NumPy array", "set.000/energy.npy"),
        (header_that_promises_too_much, "not a plain NumPy array", "set.000/force.npy"),
        (damaged_header, "not a plain NumPy array", "set.000/force.npy"),
        (remove("set.000/box.npy"), "the box is missing", "set.000/box.npy"),
        (remove("set.000/coord.npy"), "no coordinates", "set.000/coord.npy"),
        (write("type.raw", ""), "no atoms", "type.raw"),
        (write("type.raw", "0 O 1"), "something else than integers", "type.raw"),
        (write("type.raw", "0 " * 26 + "7"), "type 7 is used", "type.raw"),
        (write("type_map.raw", "O Hx"), "element 'Hx'", "type_map.raw"),
        (save("real_atom_types", np.zeros((3, 27), int)), "some sets have real_atom_types", "set.001"),
    ],
)
def test_damaged_systems_are_refused(folder: Path, damage: Callable[[Path], None], message: str, where: str) -> None:
    damage(folder / "a")
    with pytest.raises(DataError, match=message) as caught:
        load("a")
    assert caught.value.where is not None
    assert where in caught.value.where


def test_missing_or_empty_systems(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load("nowhere")
    with pytest.raises(DataError, match="wildcards are not expanded: name the folder above"):
        load("a*")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data system"):
        load("empty")
    with pytest.raises(DataError, match=r"in a folder that rglob_patterns match \(x\*, y\)"):
        load(rglob_patterns=["x*", "y"])
    write_npy(folder / "c", two_systems()[0], sets=1)
    with pytest.raises(DataError, match=r"name the folder above: .*c$"):
        load("c/set.000")
    with pytest.raises(DataError, match="a file of a data system"):
        load("c/set.000/coord.npy")
    for file in (folder / "c/set.000").iterdir():
        file.unlink()
    (folder / "c/set.000").rmdir()
    with pytest.raises(DataError, match="has no sets"):
        load("c")


def test_two_atoms_at_one_place(folder: Path) -> None:
    coord = np.load(folder / "a/set.000/coord.npy")
    coord[1, 9:12] = coord[1, 3:6] + TRICLINIC[1]
    np.save(folder / "a/set.000/coord.npy", coord)
    dataset = load("a")
    dataset.batch(0, [0])
    with pytest.raises(DataError, match="frame 1 has atoms 1 and 3 at one place"):
        dataset.batch(0, [1])


# -- batches ---------------------------------------------------------------------------------------------------------


def pairs(batch: Batch) -> set[tuple[int, int, tuple[float, ...]]]:
    """(center, owner of the neighbor, displacement) of every pair."""
    n: Neighbors = batch.neighbors
    centers = np.repeat(np.arange(batch.n_local), np.diff(n.offsets))
    owners = np.concatenate((np.arange(batch.n_local), batch.owners))[n.indices]
    moves = np.round(batch.positions[n.indices] - batch.positions[centers], 9) + 0.0
    return {(int(i), int(j), tuple(m.tolist())) for i, j, m in zip(centers, owners, moves, strict=True)}


def expected_pairs(batch: Batch, systems: list[System], frames: list[int]) -> set[tuple[int, int, tuple[float, ...]]]:
    """The same by all images within two cells."""
    found = set()
    for k, (system, i) in enumerate(zip(systems, frames, strict=True)):
        frame, first = system.frame(i), int(batch.frame_offsets[k])
        steps = np.arange(-2, 3) if system.periodic else np.zeros(1)
        for shift in np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3):
            d = frame.positions[None] + shift @ frame.box.matrix - frame.positions[:, None]
            r2 = (d**2).sum(axis=2)
            for a, b in zip(*np.nonzero((r2 < RCUT**2) & (r2 > 0)), strict=True):
                found.add((first + int(a), first + int(b), tuple((np.round(d[a, b], 9) + 0.0).tolist())))
    return found


@pytest.mark.parametrize(("system", "frames"), [(0, [2]), (0, [3, 0, 1]), (1, [1, 0])])
def test_a_batch_has_every_pair_of_its_frames(folder: Path, system: int, frames: list[int]) -> None:
    dataset = load()
    batch = dataset.batch(system, frames)
    assert pairs(batch) == expected_pairs(batch, [dataset.systems[system]] * len(frames), frames)
    assert batch.n_local + len(batch.owners) == len(batch.positions)
    np.testing.assert_array_equal(batch.types[batch.n_local :], batch.types[: batch.n_local][batch.owners])
    owners = np.concatenate((np.arange(batch.n_local), batch.owners))
    for i in range(batch.n_local):  # rows sorted by type, then owner, then position
        row = batch.neighbors.indices[batch.neighbors.offsets[i] : batch.neighbors.offsets[i + 1]]
        x, y, z = batch.positions[row].T
        np.testing.assert_array_equal(row, row[np.lexsort((z, y, x, owners[row], batch.types[row]))])
    for array in (batch.positions, batch.types, batch.owners, batch.neighbors.indices, batch.neighbors.offsets):
        assert array.flags.c_contiguous
    assert (batch.types.dtype, batch.owners.dtype, batch.neighbors.indices.dtype) == (np.int32,) * 3


def test_batch_labels(folder: Path) -> None:
    batch, data = load().batch(0, [4, 2]), two_systems()[0]
    np.testing.assert_array_equal(batch.energy, data["energy"][[4, 2]])
    np.testing.assert_array_equal(batch.forces, data["force"][[4, 2]].reshape(-1, 3))
    np.testing.assert_array_equal(batch.virial, data["virial"][[4, 2]].reshape(-1, 3, 3))
    np.testing.assert_array_equal(batch.atom_pref, data["atom_pref"][[4, 2]].ravel())


def test_cache_stays_within_its_bytes(folder: Path) -> None:
    dataset = load()
    g = [dataset.batch(0, [i]) for i in range(3)]
    cache, built = FrameCache(g[0].nbytes + g[1].nbytes + 1), []

    def get(i: int) -> None:
        cache.get(i, lambda: built.append(i) or g[i])  # type: ignore[func-returns-value]

    for i in (0, 1, 0, 2, 0, 1):
        get(i)
    assert built == [0, 1, 2, 1]  # 2 drove out 1, the least recently used, and not 0
    assert cache.nbytes <= cache.max_bytes


def test_a_batch_of_one_frame_copies_nothing_that_is_kept(folder: Path) -> None:
    dataset = load()
    first, again = dataset.batch(0, [0]), dataset.batch(0, [0])
    for name in ("positions", "types", "owners", "neighbors"):
        assert getattr(again, name) is getattr(first, name)
    assert load().batch(0, [0]).positions is not first.positions
