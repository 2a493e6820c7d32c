"""The analytic potential of the tests against its own derivatives."""

from collections.abc import Callable

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import RunError
from dphpc.core.images import periodic_images
from dphpc.core.state import State
from dphpc.ops.neighbors.reference import build_neighbors
from dphpc.potential.contract import Outputs
from tests.lennard_jones import LennardJones

BOX = Box(np.array([[7.0, 0, 0], [2.0, 6.5, 0], [-1.0, 1.5, 7.5]]))
TYPES = np.array([0, 1, 1, 0, 1], np.int32)


@pytest.fixture
def lj() -> LennardJones:
    return LennardJones(["Ar", "Ne"], [[0.01, 0.02], [0.02, 0.015]], [[3.4, 3.0], [3.0, 2.8]], 6.0, 4.0)


@pytest.fixture
def positions() -> np.ndarray:
    grid = np.array([[0, 0, 0], [0.5, 0.1, 0.4], [0.1, 0.5, 0.6], [0.5, 0.5, 0.05], [0.6, 0.7, 0.6]])
    return grid @ BOX.matrix + BOX.origin


@pytest.fixture
def evaluate(lj: LennardJones) -> Callable[..., Outputs]:
    def evaluate(x: np.ndarray, box: Box = BOX, atomic: bool = False) -> Outputs:
        x = box.wrap(x)
        owners, shifts = periodic_images(x, box, lj.cutoff)
        state = State(box, len(x))
        state.resize(len(x), len(owners))
        state.positions[:] = np.concatenate((x, x[owners] + shifts @ box.matrix))
        state.types[:] = np.concatenate((TYPES, TYPES[owners]))
        state.ids[:] = np.concatenate((np.arange(5), owners)) + 1
        outputs = Outputs.zeros(len(x), state.n_all, atomic=atomic)
        lj.compute(state, build_neighbors(state.positions, state.types, state.ids, len(x), 6.5), None, outputs)
        np.add.at(outputs.forces, owners, outputs.forces[len(x) :])
        return outputs

    return evaluate


def test_forces_are_minus_the_gradient(evaluate: Callable[..., Outputs], positions: np.ndarray) -> None:
    forces, h = evaluate(positions).forces, 1e-4
    for atom, axis in [(0, 0), (1, 2), (4, 1)]:
        step = np.zeros_like(positions)
        step[atom, axis] = h
        # Five-point rule: h⁴.  Measured: 7e-13 eV/Å.
        e = [evaluate(positions + k * step).energy for k in (-2, -1, 1, 2)]
        assert forces[atom, axis] == pytest.approx(-(e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h), abs=1e-10)


def test_virial_is_minus_the_strain_derivative(evaluate: Callable[..., Outputs], positions: np.ndarray) -> None:
    virial, h = evaluate(positions).virial, 1e-4
    for a, b in [(0, 0), (1, 1), (0, 2), (2, 1)]:
        energies = []
        for k in (-2, -1, 1, 2):
            strain = np.eye(3)
            strain[b, a] += k * h  # row vectors: x' = x·(1 + ε), ∂E/∂ε_ba = Σ r_b ∂E/∂r_a
            energies.append(evaluate(positions @ strain, Box(BOX.matrix @ strain)).energy)
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert virial[a, b] == pytest.approx(-slope, abs=1e-10)  # measured: 7e-13 eV


def test_atomic_parts_add_up(evaluate: Callable[..., Outputs], positions: np.ndarray) -> None:
    outputs = evaluate(positions, atomic=True)
    assert outputs.atom_energy is not None
    assert outputs.atom_virial is not None
    assert outputs.atom_energy.sum() == pytest.approx(outputs.energy, rel=1e-13)
    np.testing.assert_allclose(outputs.atom_virial.sum(axis=0), outputs.virial, rtol=1e-12, atol=1e-13)


def test_the_pair_energy_is_smooth_at_both_ends_of_the_switch(lj: LennardJones) -> None:
    zero = np.zeros(1, int)
    for r in (lj.cutoff_smooth, lj.cutoff):
        (below, dbelow), (above, dabove) = (lj.pair(np.array([r + h]), zero, zero) for h in (-1e-7, 1e-7))
        assert abs(above - below) < 1e-8
        assert abs(dabove - dbelow) < 1e-8


def test_overlapping_atoms_are_named(evaluate: Callable[..., Outputs], positions: np.ndarray) -> None:
    positions[3] = positions[1]
    with pytest.raises(RunError, match="atom 2 and atom 4 are 0 Å apart"):
        evaluate(positions)
