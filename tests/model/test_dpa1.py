"""DeePMD-kit's `dpa1` as the model that it equals: what is kept, what is refused, and tables of smooth type embeddings.

That the numbers are DeePMD-kit's, `tests/potential/test_golden.py` looks at.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import InputError, ModelFileError
from dphpc.model import gated_table
from dphpc.model.compress import compress
from dphpc.model.container import Tree, read_tree, write_tree
from dphpc.model.electrons import WIDTH, configurations
from dphpc.model.env_mat import switch
from dphpc.model.gated import Gate
from dphpc.model.model_file import read_model, write_model
from dphpc.model.radial_table import RadialTable
from dphpc.model.show import attributes
from dphpc.model.tabulation import over_own_arguments, tabulation_of
from dphpc.potential.contract import Outputs
from dphpc.potential.deep import DeepPotential
from dphpc.potential.deep_pot import DeepPot
from dphpc.potential.surroundings import Surroundings
from tests.models import random_structure

GOLDEN = Path(__file__).parents[1] / "golden"
CONCAT, SMOOTH = "dpa1_concat", "dpa1_strip_smooth"
ROUGH = "dpa1_strip_smooth_exclude_davg"


def path_of(name: str) -> Path:
    return GOLDEN / "models" / f"{name}.dp"


def leaves(node: Any) -> Any:
    """A tree with its arrays as lists, for comparison."""
    if isinstance(node, dict):
        return {k: leaves(v) for k, v in node.items()}
    if isinstance(node, list):
        return [leaves(v) for v in node]
    return node.tolist() if isinstance(node, np.ndarray) else node


@pytest.mark.parametrize(
    ("name", "suffix"), [(CONCAT, ".yaml"), (SMOOTH, ".dp"), ("dpa1_v2", ".dp"), ("dpa1_concat_float32", ".dp")]
)
def test_a_written_file_still_holds_the_original_model(tmp_path: Path, name: str, suffix: str) -> None:
    model = compress(read_model(path_of(name)))[0]
    write_model(model, tmp_path / f"model{suffix}")
    written, original = (leaves(read_tree(p)["model"]) for p in (tmp_path / f"model{suffix}", path_of(name)))
    assert written == original
    again = read_model(tmp_path / f"model{suffix}")
    assert again.table is not None
    assert model.table is not None
    assert np.array_equal(again.table.coefficients, model.table.coefficients)
    assert again.table.grids == model.table.grids


def test_biases_go_into_the_original_model(tmp_path: Path) -> None:
    model = read_model(path_of(CONCAT))
    changed = replace(model, out_bias=np.array([3.0, -4.0]), fitting=replace(model.fitting, bias_atom_e=np.ones(2)))
    write_model(changed, tmp_path / "model.dp")
    assert read_tree(tmp_path / "model.dp")["model"]["descriptor"]["type"] == "dpa1"
    assert read_model(tmp_path / "model.dp").energy_bias.tolist() == [4.0, -3.0]
    assert read_model(path_of(CONCAT)).energy_bias.tolist() == model.energy_bias.tolist()


@pytest.mark.parametrize("name", [CONCAT, SMOOTH, "dpa1_strip_one_sided", "dpa1_v2"])
@pytest.mark.parametrize("tolerance", [1e-8, 1e-9])
def test_compressed_models_give_deepmd_numbers(name: str, tolerance: float) -> None:
    dp = DeepPot(compress(read_model(path_of(name)), tolerance=tolerance)[0])
    with h5py.File(GOLDEN / "golden_dpa1.h5") as file:
        for structure, case in file[name].items():
            cells = case["cells"][()] if "cells" in case else None
            energy, force, _ = dp.eval(case["coords"][()], cells, case["atom_types"][()].astype(int))
            # Measured: 6e-11 eV and 3.2e-9 eV/Å, 2e-12 and 1.5e-10 with the smaller tolerance.
            assert np.abs(energy - case["energy"][()]).max() < 0.02 * tolerance, structure
            assert np.abs(force - case["force"][()]).max() < 0.5 * tolerance, structure


def test_what_a_model_is() -> None:
    facts = attributes(read_model(path_of("dpa1_strip_smooth_one_sided")))
    assert facts["descriptor"].startswith("dpa1, strip, one-sided, tanh")
    assert facts["sel"] == "90"
    # Of the file's own nets: of types (3 → 4), distance (1 → 3 → 6 → 12), pairs (4 → 3 → 6 → 12) and atoms.
    hidden = 2 * (3 * 6 + 6 + 6 * 12 + 12)
    own = 3 * 4 + (1 * 3 + 3) + (4 * 3 + 3) + hidden + (52 * 10 + 10 + 2 * (10 * 10 + 10) + 2 * 10 + 10 + 1)
    assert facts["size"] == f"{own:,} parameters"


def edited(tmp_path: Path, name: str, change: Callable[[Tree], None]) -> Path:
    tree = copy.deepcopy(read_tree(path_of(name)))
    change(tree["model"])
    write_tree(tree, tmp_path / "model.dp")
    return tmp_path / "model.dp"


def set_davg(model: Tree) -> None:
    model["descriptor"]["@variables"]["davg"][..., 0] = 0.1


def widen_embedding(model: Tree) -> None:
    """As wide as its input of 1 + 2·4 numbers."""
    layers = model["descriptor"]["embeddings"]["networks"][0]["layers"]
    for key, shape in (("w", (9, 9)), ("b", (9,))):
        layers[0]["@variables"][key] = np.ones(shape)
    layers[1]["@variables"]["w"] = np.ones((9, 6))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CONCAT, lambda m: m["descriptor"].update(attn_layer=2), r"(?s)with 2 attention layers.*attn_layer\": 0"),
        (CONCAT, set_davg, r"(?s)davg != 0 is not supported.*first atom.*set_davg_zero\": true"),
        ("dpa1_strip", set_davg, "davg != 0 is not supported"),
        (CONCAT, lambda m: m["fitting"].update(atom_ener=[None, 1.0]), "atom_ener with one fitting net"),
        (CONCAT, widen_embedding, "first layer with a skip connection"),
        (CONCAT, lambda m: m["descriptor"].update(tebd_input_mode="other"), "tebd_input_mode 'other'"),
        (
            SMOOTH,
            lambda m: m["descriptor"].update(embeddings_strip=m["descriptor"]["embeddings"]),
            "do not fit together",
        ),
        (CONCAT, lambda m: m["descriptor"].update(type_one_side=True), "takes 9 inputs, expected 5"),
        ("dpa1_concat_electrons", lambda m: m["descriptor"]["type_embedding"].update(type_map=["H", "Q", "C"]), "'Q'"),
        (CONCAT, lambda m: m["descriptor"].update({"@version": 9}), "version 9, newer"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, change: Callable[[Tree], None], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(edited(tmp_path, name, change))


def test_a_smooth_embedding_with_davg_is_evaluated_by_its_networks() -> None:
    model = read_model(path_of(ROUGH))
    with pytest.raises(ModelFileError, match="davg != 0 has kinks and cannot be tabulated"):
        compress(model)
    with pytest.raises(InputError, match="deterministic"):
        DeepPotential(model).require_ready(deterministic=True)


def test_equal_steps_are_no_table_of_a_smooth_embedding() -> None:
    with pytest.raises(InputError, match="no table of equal steps"):
        compress(read_model(path_of(SMOOTH)), step=0.01)
    assert compress(read_model(path_of("dpa1_strip")), step=0.01)[0].table is not None


@pytest.mark.parametrize("sel", [4, 200])
def test_sel_counts_neighbors_of_all_types(sel: int, caplog: pytest.LogCaptureFixture) -> None:
    model = read_model(path_of(CONCAT))
    x, cell, types = random_structure()
    potential = DeepPotential(replace(model, descriptor=replace(model.descriptor, sel=(sel,))))
    around = Surroundings.of(x, Box(cell), types, potential.cutoff)
    with caplog.at_level(logging.WARNING):
        potential.compute(around.state, around.neighbors, None, Outputs.zeros(len(x), around.state.n_all))
    assert [f"neighbors, sel is {sel}" in r.message for r in caplog.records] == ([True] if sel == 4 else [])


@pytest.mark.parametrize(("rcut_smth", "protection"), [(0.0, 0.0), (0.5, 0.0), (4.0, 0.2)])
def test_a_gate_is_the_switch_at_the_distance(rcut_smth: float, protection: float) -> None:
    r = np.linspace(0.7, 5.999, 400)
    s = switch(r, 6.0, rcut_smth)[0] / (r + protection)
    for davg in (0.0, 0.03):
        w = Gate(6.0, rcut_smth, protection, davg, 0.13).jet((s - davg) / 0.13)[0]
        assert np.abs(w - switch(r, 6.0, rcut_smth)[0]).max() < 1e-14
    gate, s, h = Gate(6.0, rcut_smth, protection, 0.0, 0.13), s / 0.13, 1e-5 * s / 0.13
    (_, slope, curvature), (upper, slope_up, _), (lower, slope_down, _) = (gate.jet(x) for x in (s, s + h, s - h))
    here = np.abs(s - gate.opens) > 2 * h  # where the curvature's slope jumps
    np.testing.assert_allclose((upper - lower) / (2 * h), slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(((slope_up - slope_down) / (2 * h))[here], curvature[here], rtol=1e-5, atol=1e-4)
    for array in gate.jet(np.array([0.0, -10.0])):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(("nearest", "parts"), [(0.8, 4), (2.0, 3)])
def test_a_table_has_a_knot_where_the_gate_opens(nearest: float, parts: int) -> None:
    d = read_model(path_of(SMOOTH)).descriptor
    how = tabulation_of(d)
    grid = gated_table.fitted_grid(d, nearest, 1e-8, 4096, parts)
    table = over_own_arguments(how, RadialTable.from_networks(how.networks, grid))
    for grid, scale in zip(table.grids, how.scales, strict=True):
        opens = 1.0 / d.rcut_smth / scale
        reached = nearest < d.rcut_smth
        assert (np.abs(grid.knots - opens).min() < 1e-12) == reached
        assert len(grid.counts) <= parts
        assert grid.lower == 0.0
    s = np.linspace(0.0, table.upper, 999)
    for i, net in enumerate(d.networks):
        found, exact = table.evaluate(s, np.full(len(s), i)), net.jet(s)
        assert np.abs(found[0] - exact[0]).max() < 1e-3  # a wrong scale would be seen


def test_the_distance_of_an_argument() -> None:
    d = read_model(path_of("dpa1_strip_smooth_protection")).descriptor
    for r in (0.7, d.rcut_smth, 2.5, 3.9):
        assert gated_table.distance(d, gated_table.s_range(d, r)[1]) == pytest.approx(r, rel=1e-12)
    assert gated_table.distance(d, 2.0 / d.env_protection) == gated_table.NEAREST


def test_rows_of_electrons() -> None:
    carbon, chromium = configurations(["C", "Cr"]) * np.sqrt(WIDTH)
    # 1s² 2s² 2p², one electron in each of two orbitals.
    assert np.rint(carbon[:12]).tolist() == [1, 1, 1, 1, -1, 1, -1, 1, -1, -1, -1, -1]
    assert (carbon > 0).sum() == 6
    assert (chromium > 0).sum() == 24
    assert np.rint(chromium[18:30]).tolist() == [-1, 1] * 6  # 3d⁵ 4s¹, not 3d⁴ 4s²
