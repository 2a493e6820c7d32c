"""A `dpa1` model cut down to some types: the same energies for those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.model.compress import compress, compress_file
from dphpc.model.fewer_types import with_types
from dphpc.model.model_file import read_model, write_model
from dphpc.potential.deep_pot import DeepPot
from tests.models import random_model, random_structure

MODELS = Path(__file__).parents[1] / "golden/models"


@pytest.mark.parametrize(
    "name",
    [
        "dpa1_concat_three",
        "dpa1_strip_smooth_three",
        "dpa1_strip_one_sided",
        "dpa1_concat_electrons",
        "dpa1_concat_tebd_skip",  # whose type embedding has a skip connection for three types
        "dpa1_v2",
    ],
)
def test_energies_of_the_types_stay(tmp_path: Path, name: str) -> None:
    whole = read_model(MODELS / f"{name}.dp")
    write_model(with_types(whole, ["C", "H"]), tmp_path / "model.dp")
    cut = read_model(tmp_path / "model.dp")
    assert cut.type_map == ["C", "H"]
    assert len(cut.descriptor.networks) < len(whole.descriptor.networks)
    x, cell, types = random_structure(n_types=2)
    found, expected = (
        DeepPot(m).eval(x[None], cell[None], t, atomic=True)
        for m, t in ((cut, types), (whole, np.array([2, 0])[types]))
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)  # measured 4e-12


def test_exclusions_go_with_their_types(tmp_path: Path) -> None:
    excluded = with_types(read_model(MODELS / "dpa1_concat_exclude.dp"), ["O", "H"])
    assert excluded.descriptor.exclude_types == {(1, 0)}
    assert with_types(read_model(MODELS / "dpa1_concat_pair_exclude.dp"), ["O"]).pair_exclude_types == frozenset()
    assert with_types(read_model(MODELS / "dpa1_concat_atom_exclude.dp"), ["O"]).atom_exclude_types == {0}


def test_a_compressed_file_of_some_types(tmp_path: Path) -> None:
    report = compress_file(MODELS / "dpa1_concat_three.dp", tmp_path / "model.dp", types=["C", "H"])
    assert report.n_tables == 4
    model = read_model(tmp_path / "model.dp")
    expected = compress(with_types(read_model(MODELS / "dpa1_concat_three.dp"), ["C", "H"]))[0]
    assert model.table is not None
    assert expected.table is not None
    assert np.array_equal(model.table.coefficients, expected.table.coefficients)


@pytest.mark.parametrize(("names", "message"), [(["H", "Q"], "no type 'Q'"), (["H", "C", "H"], "'H' is named twice")])
def test_types_that_are_none(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_types(read_model(MODELS / "dpa1_concat_three.dp"), names)


def test_other_models_keep_their_types() -> None:
    with pytest.raises(InputError, match="expected: a dpa1 model"):
        with_types(random_model(0), ["O"])
