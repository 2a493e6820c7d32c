"""Headers of LAMMPS dumps."""

from pathlib import Path

import pytest

from dphpc.core.lammps_dump import read_dump_header

REST = "ITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS {} pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id {}x y z\n1 {}0 0 0\n"


@pytest.mark.parametrize("more", ["", "ITEM: TIME\n0.5\n"])
@pytest.mark.parametrize("units", ["", "ITEM: UNITS\nreal\n"])
def test_whatever_comes_before_the_columns(more: str, units: str, tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text(units + more + "ITEM: TIMESTEP\n0\n" + REST.format("xy xz yz", "element ", "Si "))
    header = read_dump_header(path)
    assert header is not None
    assert header.has_elements
    assert header == ("real" if units else "metal", "xy xz yz pp pp pp", ("id", "element", "x", "y", "z"))
    path.write_text(units + more + "ITEM: TIMESTEP\n0\n" + REST.format("", "", ""))
    header = read_dump_header(path)
    assert header is not None
    assert not header.has_elements


def test_other_files_have_none(tmp_path: Path) -> None:
    for text in ("", "1\nITEM: ATOMS\nSi 0 0 0\n"):
        (tmp_path / "a.xyz").write_text(text)
        assert read_dump_header(tmp_path / "a.xyz") is None
