"""Radial distribution functions against ASE's neighbor list, equations of state against known curves."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from dphpc.core.box import Box
from dphpc.core.errors import DataError
from dphpc.plots.frames import Frame
from dphpc.plots.structure import radial_distribution, rdf, write_rdf
from dphpc.plots.tables import read_table


def test_bonds_do_not_hide_the_rest() -> None:
    r = np.linspace(0.05, 6.0, 120)
    bond, shell = 30.0 * np.exp(-(((r - 1.0) / 0.05) ** 2)), 1.6 * np.exp(-(((r - 3.2) / 0.4) ** 2))
    axes = rdf({"water": (r, bond + shell)}).axes[0]
    assert 1.6 < axes.get_ylim()[1] < 3.0
    assert [text.get_text() for text in axes.texts] == [f"highest peak: {bond.max():.3g}"]
    for g in (bond / 10 + shell, 30.0 + shell):  # a crystal's peaks are of one size; without a gap nothing is a bond
        axes = rdf({"crystal": (r, g)}).axes[0]
        assert axes.get_ylim()[1] > g.max()
        assert not axes.texts


@pytest.mark.parametrize("pair", [(), ("O", "H"), ("H", "O"), ("H", "H")])
def test_rdf_equals_counting_with_ase(pair: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    # Few atoms, triclinic, r_max reaches many images.
    atoms = Atoms("HOH", cell=bulk("Si").cell, pbc=True)
    frames, counts = [], np.zeros(60)
    edges = np.linspace(0.0, 6.0, 61)
    species = np.array(atoms.get_chemical_symbols())
    first, second = (species == name for name in pair) if pair else [np.ones(3, bool)] * 2
    for _ in range(3):
        atoms.positions = rng.normal(scale=4.0, size=(3, 3))  # far outside the cell too
        frames.append(Frame(atoms.get_positions(), Box(atoms.cell.array), species))
        i, j, d = neighbor_list("ijd", atoms, 6.0)
        counts += np.histogram(d[first[i] & second[j]], edges)[0]
    r, g, neighbors = radial_distribution(frames, pair=pair, r_max=6.0, n_bins=60)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    expected = counts / 3 / (first.sum() * second.sum() / atoms.get_volume() * shells)
    np.testing.assert_allclose(g, expected, atol=1e-12)  # measured 2e-15
    np.testing.assert_allclose(r, 0.5 * (edges[1:] + edges[:-1]))
    np.testing.assert_allclose(neighbors, counts.cumsum() / 3 / first.sum())


def test_rdf_shows_contacts_and_not_an_atom_itself() -> None:
    positions = np.array([[1.0, 1.0, 1.0], [1.02, 1.0, 1.0], [4.0, 4.0, 4.0]])
    _, g, _ = radial_distribution([Frame(positions, Box(10.0 * np.eye(3)), np.array(["Si"] * 3))])
    assert g[0] == pytest.approx(2 * 1000.0 / 9 / (4 / 3 * np.pi * 0.05**3))


def test_rdf_of_an_ideal_gas_is_one() -> None:
    rng = np.random.default_rng(2)
    frames = [Frame(rng.random((400, 3)) * 12.0, Box(12.0 * np.eye(3)), np.array(["Ar"] * 400)) for _ in range(5)]
    _, g, _ = radial_distribution(frames, r_max=6.0, n_bins=12)
    np.testing.assert_allclose(g[3:], 1.0, atol=0.03)  # measured 0.011


def test_rdf_as_a_table(tmp_path: Path) -> None:
    """Neighbors in the diamond lattice: 4 at 2.35 Å, 12 more at 3.84 Å, 12 more at 4.50 Å."""
    atoms = bulk("Si", cubic=True)
    curve = radial_distribution([Frame(atoms.positions, Box(atoms.cell.array), np.array(["Si"] * 8))], r_max=4.1)
    assert len(curve.r) == 82
    table = read_table(write_rdf(tmp_path / "one.csv", {"silicon": curve}))
    assert list(table) == ["r_A", "g", "neighbors"]
    np.testing.assert_allclose(table["neighbors"][[40, 50, 80]], [0, 4, 16])
    np.testing.assert_allclose(table["g"], curve.g, rtol=1e-7)
    table = read_table(write_rdf(tmp_path / "two.csv", {"a, b": curve, "c": curve}))
    assert list(table) == ["r_A", "g a  b", "neighbors a  b", "g c", "neighbors c"]


def test_rdf_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no frames"):
        radial_distribution([])
