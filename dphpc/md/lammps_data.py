"""LAMMPS data files (`read_data`), in `metal` units.

The format is a header followed by sections: https://docs.lammps.org/read_data.html.  The box (also triclinic and
general triclinic), Masses, Atom Type Labels, Atoms of the styles below and Velocities are read; other sections are
skipped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box
from dphpc.core.errors import DataError

SUFFIXES = (".lmp", ".data", ".lammps", ".lmpdat")
"""Suffixes of the names of data files."""

STYLES = {
    "atomic": ("id", "type", "x"), "charge": ("id", "type", "q", "x"), "molecular": ("id", "mol", "type", "x"),
    "bond": ("id", "mol", "type", "x"), "angle": ("id", "mol", "type", "x"), "full": ("id", "mol", "type", "q", "x"),
}  # fmt: skip
"""Columns of the atom styles that are read; x stands for x, y and z.  Three image flags may follow the columns."""

OTHER_STYLES = (
    "amoeba", "apip", "body", "bpm/sphere", "dielectric", "dipole", "dpd", "edpd", "electron", "ellipsoid", "hybrid",
    "line", "mdpd", "mesont", "oxdna", "peri", "rheo", "rheo/thermal", "smd", "sph", "sphere", "spin", "tdpd",
    "template", "tri", "wavepacket",
)  # fmt: skip
"""LAMMPS' other styles, which are refused, lest their columns be read as those of a style above."""

SECTIONS = (
    "Atoms", "Velocities", "Masses", "Ellipsoids", "Lines", "Triangles", "Bodies", "Bonds", "Angles", "Dihedrals",
    "Impropers", "Atom Type Labels", "Bond Type Labels", "Angle Type Labels", "Dihedral Type Labels",
    "Improper Type Labels", "Pair Coeffs", "PairIJ Coeffs", "Bond Coeffs", "Angle Coeffs", "Dihedral Coeffs",
    "Improper Coeffs",
)  # fmt: skip

READ = ("Atoms", "Velocities", "Masses", "Atom Type Labels")
"""Sections that are read; the header tells their numbers of lines."""

MAX_ATOMS = 2_000_000_000
MAX_ID = 1 << 53


@dataclass
class LammpsData:
    """The content of a data file.

    Attributes
    ----------
    ids, types
        (n,) ids, and numeric types from 1.
    positions
        (n, 3) Å.
    images
        (n, 3) image flags.
    velocities
        (n, 3) Å/ps, or None if the file has none.
    labels
        Names by numeric type, if the file gives them (type labels, or comments in Masses).
    masses
        Masses in u by numeric type, as far as the file gives them.
    """

    box: Box
    ids: NDArray[np.int64]
    types: NDArray[np.int32]
    positions: NDArray[np.float64]
    images: NDArray[np.int32]
    velocities: NDArray[np.float64] | None = None
    n_types: int = 0
    labels: dict[int, str] = field(default_factory=dict)
    masses: dict[int, float] = field(default_factory=dict)


@dataclass
class _Header:
    n_atoms: int = 0
    n_types: int = 0
    bounds: NDArray[np.float64] = field(default_factory=lambda: np.full((3, 2), np.nan))
    tilt: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    vectors: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def box(self) -> Box:
        if self.vectors:
            rows = [self.vectors.get(v, np.zeros(3)) for v in ("avec", "bvec", "cvec")]
            return Box(np.array(rows), origin=self.vectors.get("abc", np.zeros(3)))
        low, high = self.bounds.T
        (lx, ly, lz), (xy, xz, yz) = high - low, self.tilt
        return Box(np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), origin=low)


def read_lammps_data(path: str | Path) -> LammpsData:
    """Read a data file.

    Raises
    ------
    DataError
        The file is damaged, in other units, or of an atom style that is not read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _Reader(file, str(path)).read()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None


class _Reader:
    def __init__(self, file: TextIO, path: str) -> None:
        self.file, self.path = file, path
        self.header = _Header()
        self.labels: dict[int, str] = {}
        self.mass_labels: dict[int, str] = {}
        self.masses: dict[int, float] = {}

    def read(self) -> LammpsData:
        data: LammpsData | None = None
        velocities: NDArray | None = None
        self._check_units(self.file.readline())
        section = self._read_header()
        while section is not None:
            name, hint = section
            if name == "Masses":
                self._read_masses()
            elif name == "Atom Type Labels":
                self.labels = dict(self._label(words) for words, _ in self._lines(self.header.n_types))
            elif name == "Atoms":
                data = self._read_atoms(hint)
            elif name == "Velocities":
                velocities = self._table(self.header.n_atoms, 4, "Velocities", self._first_line())
            section = self._next_section(read=name in READ)
        if data is None:
            raise self._error("the file has no Atoms section")
        if velocities is not None:
            data.velocities = self._sorted_velocities(data.ids, velocities)
        data.n_types, data.masses = self.header.n_types, self.masses
        data.labels = self.labels or self.mass_labels
        return data

    def _error(self, what: str, expected: str | None = None, remedy: str | None = None) -> DataError:
        return DataError(what, where=f"LAMMPS data file {self.path}", expected=expected, remedy=remedy)

    def _check_units(self, first_line: str) -> None:
        found = re.search(r"units\s*=\s*(\w+)", first_line)
        if found and found[1] != "metal":
            raise self._error(f"the file is in units '{found[1]}'", "units metal (Å, eV, ps, g/mol)", "convert it")

    def _read_header(self) -> tuple[str, str] | None:
        h = self.header
        for line in self.file:
            words = line.partition("#")[0].split()
            if not words:
                continue
            if section := _section(line):
                return section
            try:
                tail = " ".join(words[1:])
                if tail == "atoms":
                    h.n_atoms = int(words[0])
                elif tail == "atom types":
                    h.n_types = int(words[0])
                elif words[2:] in (["xlo", "xhi"], ["ylo", "yhi"], ["zlo", "zhi"]):
                    h.bounds["xyz".index(words[2][0])] = [float(w) for w in words[:2]]
                elif words[3:] == ["xy", "xz", "yz"]:
                    h.tilt = np.array([float(w) for w in words[:3]])
                elif words[3:] in (["avec"], ["bvec"], ["cvec"], ["abc", "origin"]):
                    h.vectors[words[3]] = np.array([float(w) for w in words[:3]])
            except ValueError:
                raise self._error(f"the header line '{line.strip()}' cannot be read") from None
            if not 0 <= h.n_atoms <= MAX_ATOMS:
                raise self._error(f"the header announces {h.n_atoms} atoms")
        return None

    def _next_section(self, read: bool) -> tuple[str, str] | None:
        """Name and hint of the next section; if the last one was `read`, a further line of numbers is an error."""
        for line in self.file:
            if section := _section(line):
                return section
            words = line.partition("#")[0].split()
            if read and words and re.fullmatch(r"[-+]?[\d.]+", words[0]):
                raise self._error(
                    f"a section has more lines than the header says: '{line.strip()}'",
                    f"{self.header.n_atoms} atoms and {self.header.n_types} atom types, as the header says",
                    "correct the header, or take the line out",
                )
            read = read and not words
        return None

    def _label(self, words: list[str]) -> tuple[int, str]:
        if len(words) < 2 or not words[0].isdigit():
            raise self._error(
                f"a line of Atom Type Labels cannot be read: {' '.join(words)}", "a type and its name, 1 Si"
            )
        return self._type(int(words[0])), words[1]

    def _type(self, kind: int) -> int:
        if not 1 <= kind <= self.header.n_types:
            raise self._error(f"there is a type {kind}", f"1 to {self.header.n_types}, as the header says")
        return kind

    def _box(self) -> Box:
        for axis, (a, b) in zip("xyz", self.header.bounds.tolist(), strict=True):
            if not self.header.vectors and not a < b:
                found = f"is from {a:g} to {b:g}" if np.isfinite(a + b) else "is missing"
                raise self._error(f"the box along {axis} {found}", f"a line like '0.0 10.0 {axis}lo {axis}hi'")
        return self.header.box()

    def _lines(self, n: int) -> Iterator[tuple[list[str], str]]:
        """Words and comment of each of the next n lines that are not blank."""
        while n > 0:
            line = self.file.readline()
            if not line:
                raise self._error("the file ends within a section")
            text, _, comment = line.partition("#")
            if text.strip():
                n -= 1
                yield text.split(), comment.strip()

    def _first_line(self) -> str:
        """The next line that is not blank."""
        return next((line for line in self.file if line.strip()), "")

    def _read_masses(self) -> None:
        for words, comment in self._lines(self.header.n_types):
            numbers = {name: number for number, name in self.labels.items()}
            if not words[0].isdigit() and words[0] not in numbers:
                raise self._error(
                    f"Masses names the type '{words[0]}'", "a number, or a name that Atom Type Labels has before"
                )
            kind = self._type(int(words[0])) if words[0].isdigit() else numbers[words[0]]
            try:
                self.masses[kind] = float(words[1])
            except (ValueError, IndexError):
                raise self._error(f"a line of Masses cannot be read: {' '.join(words)}") from None
            if re.fullmatch(r"[A-Za-z]\w*", comment):
                self.mass_labels[kind] = comment
        if len(self.mass_labels) < self.header.n_types:
            self.mass_labels = {}

    def _read_atoms(self, hint: str) -> LammpsData:
        n = self.header.n_atoms
        if not n:
            raise self._error("the header announces no atoms", "a line like '192 atoms'; the first line is but a title")
        if not self.header.n_types:
            raise self._error("the header announces no types of atoms", "a line like '2 atom types'")
        start = self._first_line()
        words = start.partition("#")[0].split()
        style = self._style(hint, words)
        columns = STYLES[style]
        width = len(columns) + 2
        if len(words) not in (width, width + 3):
            raise self._error(f"atoms of style '{style}' have {len(words)} columns", f"{width} or {width + 3}")
        type_column = columns.index("type")
        table = self._table(n, len(words), "Atoms", start, type_column)
        x = columns.index("x")
        whole = [k for k in range(len(words)) if not x <= k < x + 3 and columns[min(k, x)] != "q"]
        self._require_whole(table, whole, style)
        return LammpsData(
            box=self._box(),
            ids=table[:, 0].astype(np.int64),
            types=table[:, type_column].astype(np.int32),
            positions=np.ascontiguousarray(table[:, x : x + 3]),
            images=table[:, width:].astype(np.int32) if len(words) > width else np.zeros((n, 3), np.int32),
        )

    def _require_whole(self, table: NDArray, whole: list[int], style: str) -> None:
        """Refuse ids, types or image flags that are not valid integers: the file is then of another style."""
        for column in whole:
            bad = np.flatnonzero(table[:, column] != np.rint(table[:, column]))
            if len(bad):
                raise self._error(
                    f"atom {table[bad[0], 0]:g} has {table[bad[0], column]:g} in column {column + 1}",
                    f"a whole number there, in atom style '{style}'",
                    "if the file is of another style, write it behind the section's name: Atoms # sphere",
                )
        type_column = STYLES[style].index("type")
        for name, column, most in (("id", 0, MAX_ID), ("type", type_column, self.header.n_types)):
            bad = np.flatnonzero((table[:, column] < 1) | (table[:, column] > most))
            if len(bad):
                raise self._error(
                    f"line {bad[0] + 1} of Atoms has the {name} {table[bad[0], column]:g}", f"1 to {most:,}"
                )

    def _style(self, hint: str, words: list[str]) -> str:
        if hint in STYLES:
            return hint
        if hint in OTHER_STYLES:
            raise self._error(
                f"atom style '{hint}' is not read",
                f"one of {', '.join(STYLES)}",
                "convert the file, for instance to atomic",
            )
        n = len(words)
        if n in (5, 8):
            return "atomic"
        if n in (7, 10):
            return "full"
        if n in (6, 9) and not re.fullmatch(r"\d+", words[2]):
            return "charge"
        raise self._error(
            f"the atom style is not clear from {n} columns" + (f" and the hint '{hint}'" if hint else ""),
            f"one of {', '.join(STYLES)}",
            "write it behind the section's name: Atoms # charge",
        )

    def _table(self, n: int, width: int, name: str, first: str, label_column: int | None = None) -> NDArray:
        """Line `first` and the n − 1 after it as numbers; type labels in `label_column` become their numbers."""
        converters = None
        if label_column is not None and self.labels and not first.split()[label_column].isdigit():
            numbers = {label: k for k, label in self.labels.items()}
            converters = {label_column: lambda word: numbers[word]}
        options: dict[str, Any] = {"ndmin": 2, "usecols": range(width), "converters": converters}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy warns of a file that ends early; that is an error below
                parts = [np.loadtxt([first], **options), np.loadtxt(self.file, max_rows=n - 1, **options)]
            table = np.concatenate([part for part in parts if part.size])
        except (ValueError, KeyError, IndexError) as error:
            raise self._error(f"section {name} cannot be read: {error}") from None
        if table.shape != (n, width):
            raise self._error(f"section {name} has {len(table)} lines", f"{n}, as the header says")
        return table

    def _sorted_velocities(self, ids: NDArray[np.int64], table: NDArray) -> NDArray[np.float64]:
        order, own = np.argsort(table[:, 0], kind="stable"), np.argsort(ids, kind="stable")
        if not np.array_equal(table[order, 0].astype(np.int64), ids[own]):
            raise self._error("Velocities and Atoms name different atoms")
        velocities = np.empty((len(ids), 3))
        velocities[own] = table[order, 1:]
        return velocities


def _section(line: str) -> tuple[str, str] | None:
    """Name and hint of a section's title line."""
    text, _, hint = line.partition("#")
    name = " ".join(text.split())
    return (name, hint.strip().split(" ")[0]) if name in SECTIONS else None
