"""What the header of a LAMMPS dump tells; https://docs.lammps.org/dump.html."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class DumpHeader(NamedTuple):
    """Of the first frame: units, metal if it does not tell; the words of the line of the box; columns of the atoms."""

    units: str = "metal"
    box: str = ""
    columns: tuple[str, ...] = ()

    @property
    def has_elements(self) -> bool:
        """Whether atoms have their species beside the numbers of their types."""
        return "element" in self.columns


def read_dump_header(path: str | Path) -> DumpHeader | None:
    """The header of a dump; None of another file."""
    header = DumpHeader()
    with open(path, encoding="utf-8", errors="replace") as lines:
        if lines.read(5) != "ITEM:":
            return None
        lines.seek(0)
        for line in lines:
            if line.startswith("ITEM: UNITS"):
                header = header._replace(units=next(lines, "").strip())
            elif line.startswith("ITEM: BOX BOUNDS"):
                header = header._replace(box=line.removeprefix("ITEM: BOX BOUNDS").strip())
            elif line.startswith("ITEM: ATOMS"):
                return header._replace(columns=tuple(line.split()[2:]))
    return header
