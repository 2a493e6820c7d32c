"""Selections of atoms in a run file: by species, id or place in the structure that a run begins with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from dphpc.core.config import Config
from dphpc.core.errors import InputError, did_you_mean
from dphpc.core.fixing import AXES
from dphpc.parallel.comm import Communicator, together

Axis = Literal["x", "y", "z"]

_ID_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


class Selection(Config):
    """Every atom that one of the keys selects."""

    species: list[str] = Field(default_factory=list)
    ids: list[Annotated[int, Field(ge=1, strict=True)] | str] = Field(default_factory=list)
    """Ids in the structure's file, or 1, 2, … where it has none; ranges as strings: "10-20"."""
    below_A: dict[Axis, float] = Field(default_factory=dict)
    """Upper bounds: atoms with a smaller coordinate in the structure, after replication."""
    above_A: dict[Axis, float] = Field(default_factory=dict)
    """Lower bounds: atoms with a larger coordinate."""
    between_A: dict[Axis, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
    """Two bounds each: atoms with a coordinate between them."""

    @field_validator("ids")
    @classmethod
    def _are_ranges(cls, ids: list[int | str]) -> list[int | str]:
        for given in ids:
            ends = _ID_RANGE.fullmatch(str(given))
            if ends is None or int(ends[1]) > int(ends[2] or ends[1]):
                raise ValueError(f"'{given}' in 'ids' is neither an id nor a range of ids: write 12 or \"10-20\"")
        return ids

    @field_validator("between_A")
    @classmethod
    def _are_in_order(cls, bounds: dict[Axis, list[float]]) -> dict[Axis, list[float]]:
        for axis, (low, high) in bounds.items():
            if low >= high:
                raise ValueError(f"nothing is between {low:g} and {high:g}: write {axis}: [lower, upper]")
        return bounds

    @model_validator(mode="after")
    def _names_atoms(self) -> Selection:
        if not (self.species or self.ids or self.below_A or self.above_A or self.between_A):
            raise ValueError(f"no atoms are named: add species, ids, below_A, above_A or between_A{self._remedy()}")
        return self

    @classmethod
    def _remedy(cls) -> str:
        """What else may have been meant by a selection that names no atoms."""
        return ""

    @property
    def id_ranges(self) -> list[tuple[int, int]]:
        """First and last id of each entry of `ids`."""
        ends = (str(given).split("-") for given in self.ids)
        return [(int(pair[0]), int(pair[-1])) for pair in ends]

    @property
    def layers(self) -> list[tuple[str, str, float, float]]:
        """Of each bound its name, its axis, and the limits in Å between which the coordinate lies."""
        found = [(f"{axis} below {bound:g} Å", str(axis), -np.inf, bound) for axis, bound in self.below_A.items()]
        found += [(f"{axis} above {bound:g} Å", str(axis), bound, np.inf) for axis, bound in self.above_A.items()]
        ranges = self.between_A.items()
        return found + [(f"{axis} between {a:g} and {b:g} Å", str(axis), a, b) for axis, (a, b) in ranges]


class Choice:
    """Selections of a run file, applied to the atoms of one rank.

    Parameters
    ----------
    chosen
        What the run file calls each selection, and the selection.
    type_map
        Species of the types 0, 1, ….

    Raises
    ------
    InputError
        The model does not know a species.
    """

    def __init__(self, chosen: Sequence[tuple[str, Selection]], type_map: Sequence[str]) -> None:
        self._chosen, self._type_map = chosen, type_map
        self._entries: list[str] = []
        for owner, selection in chosen:
            for name in selection.species:
                if name not in type_map:
                    raise InputError(
                        f"{owner} names '{name}', which the model does not know", remedy=did_you_mean(name, type_map)
                    )
            entries = [f"atoms of species {name}" for name in selection.species]
            entries += [f"ids {a}-{b}" if b > a else f"id {a}" for a, b in selection.id_ranges]
            entries += [name for name, *_ in selection.layers]
            self._entries += [f"{owner} names {entry}" for entry in entries]
        self._counts = np.zeros(len(self._entries), np.int64)

    def find(self, rows: NDArray, coordinates: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Of each entry of each selection the selection's place and the atoms (n,) among a structure's rows.

        `coordinates` are as in `structures.Mark`.
        """
        found = (
            (place, atoms)
            for place, (_, selection) in enumerate(self._chosen)
            for atoms in self._found(selection, rows, coordinates)
        )
        for k, (place, atoms) in enumerate(found):
            self._counts[k] += len(atoms)
            yield place, atoms

    def require_all(self, comm: Communicator) -> None:
        """Raise InputError, on all ranks, if an entry has no atom; collective."""
        counts = comm.allreduce(self._counts)
        with together(comm):
            for entry, count in zip(self._entries, counts, strict=True):
                if not count:
                    raise InputError(f"{entry}, and there are no such atoms", where="run file")

    def _found(
        self, selection: Selection, rows: NDArray, coordinates: NDArray[np.float64]
    ) -> Iterator[NDArray[np.intp]]:
        """The atoms of each entry of a selection, in the order of their names."""
        for name in selection.species:
            yield np.flatnonzero(rows["types"] == self._type_map.index(name))
        ids, order = rows["ids"], np.argsort(rows["ids"])
        for first, last in selection.id_ranges:
            begin, end = np.searchsorted(ids, [first, last + 1], sorter=order)
            yield order[begin:end]
        for _, axis, low, high in selection.layers:
            place = coordinates[:, AXES.index(axis)]
            yield np.flatnonzero((place > low) & (place < high))
