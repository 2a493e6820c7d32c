"""What any potential must obey, shown on small random models."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import DataError, InputError, RunError
from dphpc.model.compress import compress
from dphpc.model.dp_model import DPModel
from dphpc.model.radial_table import NetworkEmbedding, RadialTable
from dphpc.ops.energy import reference as reference_energy
from dphpc.ops.se_a import reference as reference_se_a
from dphpc.potential.contract import Outputs
from dphpc.potential.deep import DeepPotential
from dphpc.potential.deep_pot import DeepPot
from dphpc.potential.surroundings import Surroundings
from tests.models import random_model, random_structure

MODELS = {
    "two_sided": random_model(1),
    "one_sided": random_model(2, one_side=True),
    "excluded": random_model(3, exclude_types=frozenset({(0, 1)}), set_davg_zero=True),
    "relu6": random_model(4, activation="relu6"),
}


@pytest.fixture(params=MODELS)
def dp(request: pytest.FixtureRequest) -> DeepPot:
    return DeepPot(MODELS[request.param])


def test_forces_are_the_energy_gradient(dp: DeepPot) -> None:
    x, cell, types = random_structure()
    _, force, _ = dp.eval(x[None], cell[None], types)
    h = 1e-5
    for atom, axis in ((0, 0), (7, 1), (16, 2)):
        moved = np.stack([x, x])
        moved[0, atom, axis] += h
        moved[1, atom, axis] -= h
        energy = dp.eval(moved, np.stack([cell, cell]), types)[0].ravel()
        # Measured: 4e-10 smooth; a kink of relu6 inside the step would show as 1e-6.
        assert -(energy[0] - energy[1]) / (2 * h) == pytest.approx(force[0, atom, axis], abs=1e-7)


def test_virial_is_the_strain_derivative(dp: DeepPot) -> None:
    x, cell, types = random_structure()
    virial = dp.eval(x[None], cell[None], types)[2].reshape(3, 3)
    h = 1e-5
    for a, b in ((0, 0), (1, 1), (0, 2), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = h
        deform = [np.eye(3) + strain, np.eye(3) - strain]
        energy = dp.eval(np.stack([x @ d.T for d in deform]), np.stack([cell @ d.T for d in deform]), types)[0]
        # Measured: 1e-9 of a virial of order 1.
        assert -(energy[0, 0] - energy[1, 0]) / (2 * h) == pytest.approx(virial[a, b], abs=1e-7)


@pytest.mark.parametrize("steepness", [1.0, 12.0])
def test_a_network_without_a_table_is_evaluated_exactly(steepness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(5, set_davg_zero=True)
    make_steep(model, steepness)
    x, cell, types = random_structure()
    energy, force, _ = DeepPot(model).eval(x[None], cell[None], types)
    monkeypatch.setattr(DeepPotential, "_exact_table", itself)
    exact_energy, exact_force, _ = DeepPot(model).eval(x[None], cell[None], types)
    np.testing.assert_allclose(energy, exact_energy, rtol=1e-14)
    np.testing.assert_allclose(force, exact_force, rtol=0, atol=1e-11)  # measured: 2e-13, 3e-12


def make_steep(model: DPModel, steepness: float) -> None:
    """As long trainings make networks: G changes within a hundredth of its range."""
    for net in model.descriptor.networks:
        for layer in net.layers[1:]:
            layer.w[:] *= steepness


def itself(potential: DeepPotential) -> NetworkEmbedding:
    """In place of a table: the networks, by the reference."""
    potential._ops, potential._energy_ops = reference_se_a, reference_energy
    return NetworkEmbedding(potential.model.descriptor.networks)


def test_invariance(dp: DeepPot) -> None:
    x, cell, types = random_structure()
    energy, force, virial, atom_energy, atom_virial = dp.eval(x[None], cell[None], types, atomic=True)
    assert atom_energy.sum() == pytest.approx(energy[0, 0], rel=1e-13)
    assert atom_virial.sum(axis=1) == pytest.approx(virial, abs=1e-12)
    assert force.sum(axis=1) == pytest.approx(np.zeros((1, 3)), abs=1e-12)

    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = dp.eval(x[None] @ q.T, cell[None] @ q.T, types)
    assert turned[0] == pytest.approx(energy, abs=1e-11)
    assert turned[1] == pytest.approx(force @ q.T, abs=1e-11)

    shifted = dp.eval(x[None] + [3.1, -20.0, 0.7], cell[None], types)
    assert shifted[0] == pytest.approx(energy, abs=1e-11)

    order = np.random.default_rng(1).permutation(len(x))
    permuted = dp.eval(x[None, order], cell[None], types[order])
    assert permuted[0] == pytest.approx(energy, abs=1e-11)
    assert permuted[1] == pytest.approx(force[:, order], abs=1e-11)

    doubled = np.concatenate([x, x + cell[0]])
    twice = dp.eval(doubled[None], (cell * [[2], [1], [1]])[None], np.tile(types, 2))
    assert twice[0] == pytest.approx(2 * energy, abs=1e-10)


def test_continuity_at_the_cutoff() -> None:
    dp = DeepPot(MODELS["two_sided"])
    rcut = dp.get_rcut()
    at = [rcut - 1e-4, rcut + 1e-4]
    x = np.array([[[0.0, 0, 0], [r, 0, 0]] for r in at])
    energy, force, _ = dp.eval(x, None, np.array([0, 1]))
    # The switch leaves its end as u³: 1e-4 Å inside it has all but vanished.
    assert energy[0, 0] == pytest.approx(energy[1, 0], abs=1e-11)
    assert np.abs(force).max() < 1e-7


def test_precisions_agree() -> None:
    x, cell, types = random_structure()
    exact = DeepPot(MODELS["two_sided"]).eval(x[None], cell[None], types)
    for precision in ("mixed", "float32"):
        found = DeepPot(MODELS["two_sided"], precision).eval(x[None], cell[None], types)
        # Measured: 3e-7 of the largest force.
        assert np.abs(found[1] - exact[1]).max() < 1e-5 * np.abs(exact[1]).max()
        assert found[1].dtype == np.float64


def test_float32_has_as_many_intervals_as_it_can_tell() -> None:
    model = random_model(5, set_davg_zero=True)
    make_steep(model, 12.0)
    model = compress(model)[0]
    exact, rounded = (DeepPotential(model, precision) for precision in ("float64", "mixed"))
    assert exact._table is model.table
    assert isinstance(rounded._table, RadialTable)
    within = [sum(potential._table.grids[0].counts[:-1]) for potential in (exact, rounded)]  # the data's range
    assert within[1] < 0.5 * within[0]  # 284, 692


def test_near_pairs_extend_the_table() -> None:
    dp = DeepPot(MODELS["two_sided"])
    before = dp.potential._table.upper
    x = np.array([[[0.0, 0, 0], [0.2, 0, 0], [1.0, 1.0, 0.3]]])
    force = dp.eval(x, None, [0, 1, 0])[1]
    assert dp.potential._table.upper > before
    h = 1e-6
    ends = dp.eval(np.concatenate([x, x]) + np.array([[[0, 0, 0], [h, 0, 0], [0, 0, 0]], [[0, 0, 0], [-h, 0, 0], [0, 0, 0]]]), None, [0, 1, 0])[0]  # fmt: skip  # noqa: E501
    assert -(ends[0, 0] - ends[1, 0]) / (2 * h) == pytest.approx(force[0, 1, 0], rel=1e-6)
    for evaluate in (dp.eval, dp.eval_descriptor):
        with pytest.raises(RunError, match=r"atoms 1 and 2 are nearer than 0\.05 Å"):
            evaluate(np.array([[[0.0, 0, 0], [2.0, 0, 0], [2.01, 0, 0]]]), None, [0, 1, 0])


def test_descriptor_is_invariant() -> None:
    dp = DeepPot(MODELS["one_sided"])
    x, cell, types = random_structure()
    features = dp.eval_descriptor(x[None], cell[None], types)
    assert features.shape == (1, len(x), 64)
    assert dp.eval_descriptor(x[None] + 1.0, cell[None], types) == pytest.approx(features, abs=1e-12)


@pytest.mark.parametrize(
    ("coords", "cells", "types", "message"),
    [
        (np.zeros((1, 5)), None, [0, 1], "do not fit"),
        (np.zeros((1, 6)), None, [0, 5], "atom types"),
        (np.full((1, 6), np.nan), None, [0, 1], "not finite"),
        (np.arange(6.0)[None], np.zeros((1, 9)), [0, 1], "spans no volume"),
        (np.arange(6.0)[None], np.eye(3)[:2], [0, 1], "cells of shape"),
        (np.arange(6.0)[None], np.diag([9.0, 9.0, 0.4]), [0, 1], r"repeats at 0\.4 Å"),
        (np.array([[0.0, 0, 0, 2**31 * 8, 0, 0]]), 8 * np.eye(3), [0, 1], r"beyond 1e\+07 Å"),
        (np.arange(6.0)[None], None, [0, 2**32], "hold 4294967296"),
        (np.arange(6.0)[None], None, [0, 0.5], r"hold 0\.5"),
        (np.arange(6.0)[None], None, [0, -2], "hold -2"),
        (np.arange(6.0)[None], None, "OH", "'atom_types' is no array"),
        (np.arange(6.0)[None], None, None, "hold nan"),
        ("x", None, [0, 1], "'coords' is no array"),
        (None, None, [0, 1], "do not fit"),
        ([[1.0, 2.0], [1.0]], None, [0, 1], "'coords' is no array"),
        (np.arange(6.0)[None], "x", [0, 1], "'cells' is no array"),
    ],
)
def test_wrong_arguments(coords: object, cells: object, types: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DeepPot(MODELS["two_sided"]).eval(coords, cells, types)


def test_a_slot_of_type_minus_1_is_no_atom() -> None:
    dp = DeepPot(MODELS["two_sided"])
    x, cell, types = random_structure()
    frames, cells = np.stack((x, x + 0.1, x)), np.stack([cell] * 3)
    kinds = np.stack([types] * 3)
    kinds[0, [3, 9]], kinds[2] = -1, -1
    frames[0, 3] = np.nan  # nobody reads it
    found = dp.eval(frames, cells, kinds, atomic=True, mixed_type=True)
    real = kinds[0] >= 0
    expected = dp.eval(x[real], cell, types[real], atomic=True)
    for of_frame in (0, 2):
        per_frame, per_atom = (0, 2), (1, 3, 4)
        for k in per_frame:
            assert np.array_equal(found[k][of_frame], expected[k][0] if of_frame == 0 else 0 * expected[k][0])
        for k in per_atom:
            assert not found[k][of_frame, kinds[of_frame] < 0].any()
            assert of_frame == 2 or np.array_equal(found[k][0, real], expected[k][0])
    assert found[0][1, 0] == pytest.approx(dp.eval(x, cell, types)[0][0, 0], rel=1e-12)
    features = dp.eval_descriptor(frames, cells, kinds, mixed_type=True)
    assert np.array_equal(features[0, real], dp.eval_descriptor(x[real], cell, types[real])[0])
    assert not features[0, ~real].any()
    assert not features[2].any()


def test_no_frames() -> None:
    x, cell, types = random_structure()
    energy, force, virial = DeepPot(MODELS["two_sided"]).eval(x[None][:0], cell[None][:0], types)
    assert (energy.shape, force.shape, virial.shape) == ((0, 1), (0, len(x), 3), (0, 9))


def test_missing_parameters() -> None:
    dp = DeepPot(random_model(5, fitting={"numb_fparam": 1, "fparam_avg": np.zeros(1), "fparam_inv_std": np.ones(1)}))
    x, cell, types = random_structure()
    with pytest.raises(InputError, match="fparam"):
        dp.eval(x[None], cell[None], types)
    for wrong in ({"fparam": [0.1], "aparam": [0.1]}, {"fparam": [0.1], "aparam": np.ones(len(x))}):
        with pytest.raises(InputError, match="takes no 'aparam' and some are given"):
            dp.eval(x[None], cell[None], types, **wrong)
    with pytest.raises(DataError, match="'fparam' is no array"):
        dp.eval(x[None], cell[None], types, fparam=["x"])
    around = Surroundings.of(x, Box(cell), types, dp.get_rcut())
    for columns in (None, np.zeros((len(x), 2)), np.zeros((len(x) - 1, 1))):
        with pytest.raises(InputError, match=f"for {len(x)} atoms"):
            dp.evaluate(around, columns)
    with pytest.raises(InputError, match="precision"):
        DeepPot(MODELS["two_sided"], "half")


def test_more_neighbors_than_sel_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    x, cell, types = random_structure()
    potential = DeepPotential(random_model(6, sel=(4, 24)))
    around = Surroundings.of(x, Box(cell), types, potential.cutoff)
    out = Outputs.zeros(len(x), around.state.n_all)
    for _ in range(2):
        potential.compute(around.state, around.neighbors, None, out)
    (record,) = caplog.records
    assert "neighbors of type O, sel is 4" in record.message
