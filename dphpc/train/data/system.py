"""A data system: positions, types, boxes and labels of its frames, checked when it is opened."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.box import MAX_COORDINATE, MIN_HEIGHT, Box
from dphpc.core.errors import DataError
from dphpc.core.state import VIRTUAL
from dphpc.model.fitting import EnergyFitting
from dphpc.train.data.lmdb_store import LmdbStore, Rows
from dphpc.train.data.storage import Store
from dphpc.train.schema.model import FittingConfig

log = logging.getLogger(__name__)


MIN_VOLUME_PER_ATOM = 0.2
"""Å³; less is taken for a mistake of units, as hydrogen at 1 TPa has about 1 Å³."""

_CHUNK = 2**22
_FAR = f"has coordinates beyond {MAX_COORDINATE:g} Å"


@dataclass(frozen=True)
class Label:
    """A kind of `.npy` file with labels: `width` numbers for each frame, or for each atom of each frame."""

    file: str
    width: int
    per_atom: bool


LABELS = {
    "energy": Label("energy.npy", 1, per_atom=False),
    "forces": Label("force.npy", 3, per_atom=True),
    "virial": Label("virial.npy", 9, per_atom=False),
    "atom_ener": Label("atom_ener.npy", 1, per_atom=True),
    "atom_pref": Label("atom_pref.npy", 1, per_atom=True),
}
"""Labels by our name; each is optional, and its loss term is off if it is missing."""


@dataclass(frozen=True)
class FrameInputs:
    """Numbers of frame and atomic parameters that the model takes, and default values of frame parameters."""

    numb_fparam: int = 0
    numb_aparam: int = 0
    default_fparam: tuple[float, ...] | None = None

    def labels(self) -> dict[str, Label]:
        """The files from which they are read."""
        found = {}
        if self.numb_fparam:
            found["fparam"] = Label("fparam.npy", self.numb_fparam, per_atom=False)
        if self.numb_aparam:
            found["aparam"] = Label("aparam.npy", self.numb_aparam, per_atom=True)
        return found

    @classmethod
    def of(cls, fitting: EnergyFitting | FittingConfig) -> FrameInputs:
        """The parameters that a fitting net takes."""
        default = None if fitting.default_fparam is None else tuple(fitting.default_fparam)
        return cls(fitting.numb_fparam, fitting.numb_aparam, default)


@dataclass(frozen=True)
class Frame:
    """One configuration.  Labels that its system lacks are None.

    Attributes
    ----------
    positions
        (n, 3) Å, wrapped into the box along its periodic directions.
    types
        (n,) in the model's type map.
    energy, forces, virial
        eV, (n, 3) eV/Å, (3, 3) eV.
    atom_ener, atom_pref
        (n,) eV, and weights of the forces (n,).
    fparam, aparam
        (numb_fparam,), (n, numb_aparam).
    """

    positions: Doubles
    types: NDArray[np.int32]
    box: Box
    energy: float | None = None
    forces: Doubles | None = None
    virial: Doubles | None = None
    atom_ener: Doubles | None = None
    atom_pref: Doubles | None = None
    fparam: Doubles | None = None
    aparam: Doubles | None = None


@dataclass(frozen=True)
class _Set:
    """Arrays (n_frames, …) of one `set.*`, opened but not copied; `first` is the number of its first frame."""

    first: int
    n_frames: int
    coord: NDArray[Any]
    box: NDArray[Any] | None
    slot_types: NDArray[Any] | None
    labels: dict[str, NDArray[Any]]


class System:
    """A DeePMD-kit system (npy, npy/mixed, HDF5 or LMDB).

    Attributes
    ----------
    name
        Its name in the input.
    n_frames
        Number of frames in all sets.
    n_atoms
        Number of atoms of the largest frame.
    labels
        Names of the labels that every set has.
    present
        The model's types of which there are atoms.
    has_names
        Whether it names its types; if not, they are numbered as in the type map.

    Raises
    ------
    DataError
        Missing or damaged files, wrong shapes, NaN, unknown elements, no frames, or an unphysical box; the message
        names file and frame.
    """

    def __init__(self, name: str, store: Store, type_map: list[str], inputs: FrameInputs | None = None) -> None:
        self.name, self._store = name, store
        self._inputs = inputs or FrameInputs()
        self._files = LABELS | self._inputs.labels()
        self._names: list[str] = []
        self.periodic = not store.has("nopbc")
        self.has_names = store.has("type_map.raw")
        self._types, self._to_model = self._read_types(type_map)
        self._n_slots = len(self._types)
        self._sets: list[_Set] = []
        self.present: set[int] = set()
        names = store.sets()
        if not names:
            raise DataError("the system has no sets", where=store.where(), expected="folders set.000, set.001, …")
        self.mixed = store.has(f"{names[0]}/real_atom_types.npy")
        for set_name in names:
            self._sets.append(self._read_set(set_name, type_map))
        self.n_frames = sum(s.n_frames for s in self._sets)
        common = set.intersection(*(set(s.labels) for s in self._sets))
        self.labels = frozenset(common & set(LABELS))
        self._warn_of_labels(names)
        self._check_inputs(common)

    def __repr__(self) -> str:
        return f"System({self.name!r}, {self.n_frames} frames, {self.n_atoms} atoms)"

    @property
    def sources(self) -> NDArray[np.int64] | None:
        """(n_frames,) for LMDB, the number of the system that each frame came from; None for other systems."""
        return self._store.sources() if isinstance(self._store, LmdbStore) else None

    @property
    def n_sources(self) -> int:
        """For LMDB, the number of systems that the whole database came from; 0 for other systems."""
        return self._store.n_sources if isinstance(self._store, LmdbStore) else 0

    def _warn_of_labels(self, set_names: list[str]) -> None:
        """Warn of labels that are not used because some set lacks them."""
        for label in (name for name in LABELS if name not in self.labels):
            lacking = [name for name, part in zip(set_names, self._sets, strict=True) if label not in part.labels]
            if len(lacking) < len(set_names):
                log.warning(
                    "%s is missing%s, while other sets have it: its loss term is off for the whole system",
                    self._store.where(f"{lacking[0]}/{LABELS[label].file}"),
                    f" (and in {len(lacking) - 1} more sets)" if len(lacking) > 1 else "",
                )

    @cached_property
    def n_atoms(self) -> int:
        """Number of atoms of the largest frame."""
        if not self.mixed:
            return self._n_slots
        return max(int((s.slot_types != VIRTUAL).sum(axis=1).max()) for s in self._sets if s.slot_types is not None)

    def frame(self, index: int) -> Frame:
        """The frame with this number, counted through all sets."""
        part, i = self._locate(index)
        keep, types = self._frame_types(part, i)
        positions = np.asarray(part.coord[i], np.float64).reshape(-1, 3)[keep]
        if part.box is None:
            box = Box.around(positions)
        else:
            box = Box(np.asarray(part.box[i], np.float64).reshape(3, 3))
            positions = box.wrap(positions)
        return Frame(np.ascontiguousarray(positions), types, box, **self._frame_values(part, i, keep))

    def types(self, index: int) -> NDArray[np.int32]:
        """(n,) types of a frame's atoms."""
        return self._frame_types(*self._locate(index))[1]

    def values(self, index: int) -> dict[str, Any]:
        """The labels and parameters of a frame, named as in `Frame`."""
        part, i = self._locate(index)
        return self._frame_values(part, i, self._frame_types(part, i)[0])

    def _locate(self, index: int) -> tuple[_Set, int]:
        if not 0 <= index < self.n_frames:
            raise IndexError(f"frame {index} of {self.n_frames} in {self.name}")
        part = next(s for s in reversed(self._sets) if index >= s.first)
        return part, index - part.first

    def _frame_types(self, part: _Set, i: int) -> tuple[Any, NDArray[np.int32]]:
        """Which slots of a frame hold atoms, and the types of these atoms."""
        if part.slot_types is None:
            return slice(None), self._to_model[self._types]
        slots = np.asarray(part.slot_types[i])
        keep = slots != VIRTUAL
        return keep, self._to_model[slots[keep]]

    def _frame_values(self, part: _Set, i: int, keep: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, label in self._files.items():
            if name in LABELS and name not in self.labels:
                continue
            if name not in part.labels:  # a frame parameter with a default
                values[name] = np.array(self._inputs.default_fparam, np.float64)
                continue
            row = np.array(part.labels[name][i], np.float64)
            if label.per_atom:
                row = row.reshape(self._n_slots, label.width)[keep]
            values[name] = row
        if "energy" in values:
            values["energy"] = float(values["energy"].item())
        if "virial" in values:
            values["virial"] = values["virial"].reshape(3, 3)
        for name in ("atom_ener", "atom_pref"):
            if name in values:
                values[name] = values[name][:, 0]
        return values

    # -- reading and checking ------------------------------------------------------------------------------------

    def _read_types(self, type_map: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The atoms' types in the system's numbering, and the model's type of each (−1: unknown)."""
        where = self._store.where("type.raw")
        try:
            types = np.array([int(float(word)) for word in self._store.words("type.raw")], np.int32)
        except (ValueError, OverflowError):
            raise DataError("holds something else than integers", where=where, expected="one type per atom") from None
        if len(types) == 0:
            raise DataError("the system has no atoms", where=where)
        if types.min() < 0:
            raise DataError(f"atom {int(types.argmin())} has the negative type {types.min()}", where=where)
        if not self.has_names:
            return types, np.arange(len(type_map), dtype=np.int32)
        self._names = names = self._store.words("type_map.raw")
        return types, np.array([type_map.index(n) if n in type_map else -1 for n in names], np.int32)

    def _read_set(self, set_name: str, type_map: list[str]) -> _Set:
        path = f"{set_name}/coord.npy"
        if not self._store.has(path):
            raise DataError("the set has no coordinates", where=self._store.where(path))
        coord = self._open(path, None, 3 * self._n_slots)
        n = len(coord)
        if n == 0:
            raise DataError("the set is empty", where=self._store.where(path), remedy=f"remove {set_name}")
        slot_types = self._read_slot_types(set_name, n)
        self._check_known(slot_types if slot_types is not None else self._types, set_name, type_map)
        labels = {
            name: self._open(f"{set_name}/{label.file}", n, label.width * (self._n_slots if label.per_atom else 1))
            for name, label in self._files.items()
            if self._store.has(f"{set_name}/{label.file}")
        }
        first = self._sets[-1].first + self._sets[-1].n_frames if self._sets else 0
        box = self._read_box(set_name, n, self._n_slots if slot_types is None else (slot_types != VIRTUAL).sum(axis=1))
        part = _Set(first, n, coord, box, slot_types, labels)
        self._check_finite(set_name, part)
        return part

    def _read_slot_types(self, set_name: str, n_frames: int) -> NDArray[Any] | None:
        path = f"{set_name}/real_atom_types.npy"
        if self._store.has(path) != self.mixed:
            raise DataError("some sets have real_atom_types.npy and some have not", where=self._store.where(path))
        if not self.mixed:
            return None
        given = self._open(path, n_frames, self._n_slots)
        with np.errstate(invalid="ignore"):  # NaN is refused below
            slots = np.asarray(given, np.int32)  # from whole numbers in floats, too, as DeePMD-kit reads them
        if (slots != given).any():
            raise DataError("types are not integers", where=self._store.where(path))
        if (empty := (slots == VIRTUAL).all(axis=1)).any():
            raise DataError(
                f"{self._store.frame_name(int(empty.argmax()))} has no atoms", where=self._store.where(path)
            )
        return slots

    def _check_known(self, types: NDArray[Any], set_name: str, type_map: list[str]) -> None:
        """Refuse types of atoms that the model's type map does not name."""
        file = f"{set_name}/real_atom_types.npy" if self.mixed else "type.raw"
        used = np.unique(types[types != VIRTUAL])
        if used.size and (used[0] < 0 or used[-1] >= len(self._to_model)):
            wrong = int(used[0] if used[0] < 0 else used[-1])
            raise DataError(
                f"type {wrong} is used, but there are {len(self._to_model)} types",
                where=self._store.where(file),
                expected=f"types 0 to {len(self._to_model) - 1}",
                remedy="check type_map.raw of the system and type_map of the model",
            )
        for t in used[self._to_model[used] < 0]:
            raise DataError(
                f"the element '{self._names[t]}' is not in the type map",
                where=self._store.where("type_map.raw"),
                expected=f"one of {', '.join(type_map)}",
                remedy="add it to the type map: model/type_map of a training input, -t of a command",
            )
        self.present.update(self._to_model[used].tolist())

    def _read_box(self, set_name: str, n_frames: int, n_atoms: int | NDArray[Any]) -> NDArray[Any] | None:
        if not self.periodic:
            return None
        path = f"{set_name}/box.npy"
        where = self._store.where(path)
        if not self._store.has(path):
            raise DataError(
                "the box is missing",
                where=where,
                remedy="if the system has no periodic boundaries, put an empty file 'nopbc' beside type.raw",
            )
        box = self._open(path, n_frames, 9)
        matrix = np.asarray(box, np.float64).reshape(n_frames, 3, 3)
        self._refuse(np.asarray(~np.isfinite(matrix).all(axis=(1, 2))), "is not finite", where)
        volume = np.abs(np.linalg.det(matrix))
        areas = np.linalg.norm(np.cross(matrix[:, [1, 2, 0]], matrix[:, [2, 0, 1]]), axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            heights = np.nan_to_num(volume[:, None] / areas).min(axis=1)
        thin = f"is a box thinner than {MIN_HEIGHT} Å (heights down to {heights.min():.3g} Å)"
        self._refuse(heights < MIN_HEIGHT, thin, where, "lengths in Å, nine numbers per frame, vectors as rows")
        self._refuse(
            volume < MIN_VOLUME_PER_ATOM * n_atoms,
            f"has less than {MIN_VOLUME_PER_ATOM} Å³ per atom",
            where,
            "lengths in Å",
        )
        return box

    def _open(self, path: str, n_frames: int | None, width: int) -> NDArray[Any]:
        """View (n_frames, width) of a stored array, after checking its type and shape."""
        array, where = self._store.array(path), self._store.where(path)
        if array.dtype.kind not in "fiu":
            raise DataError(f"holds values of type {array.dtype}", where=where, expected="numbers")
        frames = array.shape[0] if array.ndim > 1 else (n_frames or (1 if array.size == width else 0))
        expected = f"({n_frames if n_frames is not None else 'frames'}, {width})"
        if array.ndim == 0 or array.size != frames * width or (n_frames is not None and frames != n_frames):
            raise DataError(f"has shape {array.shape}", where=where, expected=expected)
        return array.reshape(frames, width)

    def _check_finite(self, set_name: str, part: _Set) -> None:
        labels = {self._files[name].file: array for name, array in part.labels.items()}
        for file, array in {"coord.npy": part.coord, **labels}.items():
            where = self._store.where(f"{set_name}/{file}")
            if isinstance(array, Rows):  # was looked at when its database was opened
                self._refuse(array.not_finite(), "holds NaN or infinity", where)
                if file == "coord.npy":
                    self._refuse(array.farthest() > MAX_COORDINATE, _FAR, where)
                continue
            step = max(1, _CHUNK // array.shape[1])
            for first in range(0, len(array), step):
                chunk = array[first : first + step]
                self._refuse(~np.isfinite(chunk).all(axis=1), "holds NaN or infinity", where, first=first)
                if file == "coord.npy":
                    far = (np.abs(chunk) > MAX_COORDINATE).any(axis=1)
                    self._refuse(far, _FAR, where, first=first)

    def _refuse(self, bad: NDArray[Any], what: str, where: str, expected: str | None = None, *, first: int = 0) -> None:
        """Raise DataError for the first frame of a set that is flagged in `bad`."""
        if bad.any():
            frame = self._store.frame_name(first + int(bad.argmax()))
            raise DataError(f"{frame} {what}", where=where, expected=expected)

    def _check_inputs(self, present: set[str]) -> None:
        for name, label in self._inputs.labels().items():
            if name in present or (name == "fparam" and self._inputs.default_fparam is not None):
                continue
            raise DataError(
                f"the model takes {label.width} values of {name}, but the system has none",
                where=self._store.where(f"set.*/{label.file}"),
                remedy=f"add the file to every set, or set model/fitting_net/numb_{name} to 0",
            )
