"""Moves on a GPU against those on the host, to the last bit where only sums and products are taken."""

from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.exact_sum import no_sum, total
from dphpc.core.fixing import held_in
from dphpc.core.state import GHOSTED, MIGRATING, State
from dphpc.core.units import KINETIC
from dphpc.ops.motion.contract import EVERYONE
from dphpc.ops.motion.cuda import CudaMoves
from dphpc.ops.motion.reference import HostMoves
from tests.ops.emulation.device import EmulatedDevice

N, GHOSTS = 700, 55
SPACING = 2.0**-40
MASSES = np.array([15.9994, 1.00794])


class Account:
    def __init__(self, group: int = EVERYONE) -> None:
        self.scalars, self.group = no_sum(), group


def both(device, spacing=SPACING, fixed=False):
    """The same atoms on the host and on a GPU, with forces; some of them `fixed`, in all directions or in some."""
    rng = np.random.default_rng(2)
    state = State(Box(np.eye(3) * 20.0), N)
    state.resize(N, GHOSTS)
    state.ids[:] = rng.permutation(N + GHOSTS) + (7 << 33)
    state.types[:] = rng.integers(0, 2, N + GHOSTS)
    state.positions[:] = np.round(rng.uniform(0, 20, (N + GHOSTS, 3)) / SPACING) * SPACING
    state.velocities[:N] = rng.normal(0, 20, (N, 3))
    state.forces[:N] = rng.normal(0, 2, (N, 3))
    state.group[:N] = state.ids[:N] % 3
    if fixed:
        state.fixed[:N] = np.where(rng.random(N) < 0.4, rng.integers(1, 8, N), 0)
        held = held_in(state.fixed[:N])
        state.velocities[:N][held] = 0.0
        state.forces[:N][held] *= 10.0
    host = HostMoves(state, MASSES, spacing, some_fixed=fixed)
    gpu = CudaMoves(device, MASSES, spacing, alone=True, some_fixed=fixed)
    host.note_positions()
    gpu.take_up(state)
    gpu.put_forces(state.forces[:N])
    return state, host, gpu


def same(device, state, gpu):
    for name in ("positions", "velocities", "forces"):
        assert np.array_equal(device.download(getattr(gpu, name)[:N]), getattr(state, name)[:N]), name


def test_pieces_change_no_bit(monkeypatch):
    found = []
    for piece in (N, 99):
        monkeypatch.setattr("dphpc.core.state.PIECE", piece)
        state, host, _ = both(EmulatedDevice())
        account = Account()
        host.draw_velocities(300.0, 3)
        host.kick(1e-3)
        host.drift(5e-4)
        host.randomize_velocities(account, 0.9, 300.0, 3, 7)
        host.steer(0.9, 0.3)
        sums = host.kinetic_energy(), host.kinetic_tensor(), host.momentum(), host.moved2(), account.scalars
        found.append([state.positions, state.velocities, *sums, host.descent_sums(), host.largest_squares()])
    for whole, by_piece in zip(*found, strict=True):
        assert np.array_equal(whole, by_piece)
        assert np.abs(whole).max() > 0.0


@pytest.mark.parametrize("spacing", [0.0, SPACING])
def test_kick_and_drift(device, spacing):
    state, host, gpu = both(device, spacing)
    for moves in (host, gpu):
        moves.kick(1e-3)
        moves.drift(5e-4)
        moves.drift(3e-4, kick=2e-3)
        moves.kick(2e-3)
    same(device, state, gpu)
    gpu.bring(state, "positions")
    largest, cleared = device.zeros(1, np.int64), device.zeros(5000, np.int64)
    device.upload(np.arange(5000), cleared)
    gpu.note_displacement(largest, cleared[1:])
    assert device.download(largest).view(np.float64)[0] == pytest.approx(host.moved2().max(), rel=1e-14)
    assert not device.download(cleared).any()


@pytest.mark.parametrize("keep", [0.75, 0.0])
def test_velocities_are_steered_towards_the_forces(device, keep):
    state, host, gpu = both(device)
    v, f = state.velocities[:N].copy(), state.forces[:N]
    for moves in (host, gpu):
        moves.steer(keep, 3.0 * keep)
    same(device, state, gpu)
    np.testing.assert_allclose(state.velocities[:N], keep * (v + 3.0 * f), rtol=1e-12, atol=1e-12)
    gpu.put_velocities(v)
    host.put_velocities(v)
    same(device, state, gpu)


def test_what_a_minimizer_asks_for(device):
    state, host, gpu = both(device)
    sums, v, f = host.descent_sums(), state.velocities[:N], state.forces[:N]
    assert np.array_equal(gpu.descent_sums(), sums)
    np.testing.assert_allclose(total(sums), [(f * v).sum(), (v * v).sum(), (f * f).sum()], rtol=1e-13)
    largest = host.largest_squares()
    assert np.array_equal(gpu.largest_squares(), largest)
    assert largest.tolist() == pytest.approx([(v**2).sum(axis=1).max(), (f**2).sum(axis=1).max()], rel=1e-14)


@pytest.mark.parametrize("spacing", [0.0, SPACING])
def test_fixed_atoms_stay_and_the_others_move_as_without(device, spacing):
    free, *others = both(device, spacing)[:2]
    state, host, gpu = both(device, spacing, fixed=True)
    still, before = held_in(state.fixed[:N]), state.positions[:N].copy()
    assert (np.bincount(state.fixed[:N]) > 20).all(), "of all kinds"
    for moves in (*others, host, gpu):
        moves.kick(1e-3)
        moves.drift(5e-4, kick=2e-3)
        moves.steer(0.75, 3.0)
        moves.drift(1e-3)
    same(device, state, gpu)
    assert np.array_equal(state.positions[:N][still], before[still])
    assert not state.velocities[:N][still].any()
    for name in ("positions", "velocities"):
        assert np.array_equal(getattr(state, name)[:N][~still], getattr(free, name)[:N][~still])
    sums, v, f = host.descent_sums(), state.velocities[:N], np.where(still, 0.0, state.forces[:N])
    assert np.array_equal(gpu.descent_sums(), sums)
    np.testing.assert_allclose(total(sums), [(f * v).sum(), (v * v).sum(), (f * f).sum()], rtol=1e-13)
    assert np.array_equal(gpu.largest_squares(), host.largest_squares())
    assert host.largest_squares()[1] == pytest.approx((f**2).sum(axis=1).max(), rel=1e-14)
    mass = MASSES[state.types[:N]]
    np.testing.assert_allclose(total(host.momentum())[:3], mass @ v, rtol=1e-12)
    np.testing.assert_allclose(total(host.momentum())[3:], mass @ ~still, rtol=1e-14)
    assert np.array_equal(gpu.kinetic_tensor(), host.kinetic_tensor())
    for moves in (host, gpu):
        moves.randomize_velocities(Account(), 0.75, 300.0, 1, 2)
    np.testing.assert_allclose(device.download(gpu.velocities), state.velocities[:N], rtol=0, atol=1e-12)
    for velocities in (device.download(gpu.velocities), state.velocities[:N]):
        assert np.array_equal(velocities == 0.0, still)
    host.draw_velocities(300.0, 1)
    assert np.array_equal(state.velocities[:N] == 0.0, still)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_displacement_that_is_not_finite_is_the_largest(device, bad):
    state, _, gpu = both(device)
    positions = state.positions.copy()
    positions[500, 1] = bad
    device.upload(positions, gpu.positions)
    largest = device.zeros(1, np.int64)
    gpu.note_displacement(largest)
    assert not np.isfinite(device.download(largest).view(np.float64)[0])


def test_kinetic_tensor(device):
    _, host, gpu = both(device)
    assert np.array_equal(gpu.kinetic_tensor(), host.kinetic_tensor())


def test_a_snapshot_is_of_the_atoms_as_they_were(device):
    state, host, gpu = both(device)
    names = ("ids", "types", "positions", "images", "velocities")
    before = {name: getattr(state, name)[: state.n_local].copy() for name in names}
    snapshot = gpu.snapshot(names)
    gpu.drift(1e-3)  # what comes next does not wait for the copies
    for found in (snapshot(), host.snapshot(names)()):
        assert list(found) == list(names)
        for name, values in before.items():
            assert np.array_equal(found[name], values)
            assert found[name].dtype == values.dtype
    assert np.abs(gpu.snapshot(("positions",))()["positions"] - before["positions"]).max() > 0.0


class Halving:
    """Keeps account of the kinetic energy it met; on a GPU Bussi's kernel does, for these inputs."""

    kernel = "bussi"

    def __init__(self, group: int = EVERYONE) -> None:
        self.scalars, self.group = np.zeros(1), group

    def respond(self, kinetic, inputs):
        self.scalars[0] += kinetic * (1.0 - inputs[3])
        return np.sqrt(inputs[3])


def test_velocities_are_scaled_by_what_a_bath_answers(device):
    state, host, gpu = both(device)
    inputs, baths = np.array([1.0, 0.0, 0.0, 0.25, 100.0]), [Halving(), Halving()]
    for moves, bath in zip((host, gpu), baths, strict=True):
        for _ in range(2):
            moves.rescale(bath, inputs, lambda parts: parts, measured=True)
    same(device, state, gpu)
    assert baths[1].scalars[0] == 0.0
    gpu.fetch_accounts([baths[1]])
    assert baths[1].scalars[0] == baths[0].scalars[0] > 0.0


@pytest.mark.parametrize("step", [5, (3 << 40) + 9])
def test_random_velocities(device, step):
    state, host, gpu = both(device)
    accounts = Account(), Account()
    for moves, account in zip((host, gpu), accounts, strict=True):
        moves.randomize_velocities(account, 0.75, 300.0, (11 << 35) + 3, step)
    np.testing.assert_allclose(device.download(gpu.velocities), state.velocities[:N], rtol=0, atol=1e-12)  # 1e-14
    gpu.fetch_accounts([accounts[1]])
    host_took, gpu_took = (float(total(account.scalars)) for account in accounts)
    assert abs(host_took) > 0.1
    assert gpu_took == pytest.approx(host_took, abs=1e-12)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_group_is_scaled_stirred_and_measured_alone(device, fixed):
    state, host, gpu = both(device, fixed=fixed)
    members, before = state.group[:N] == 2, state.velocities[:N].copy()
    assert np.array_equal(gpu.kinetic_energy(2), host.kinetic_energy(2))
    mass = KINETIC * MASSES[state.types[:N]]
    of_group = 0.5 * (mass[:, None] * before**2)[members].sum()
    assert total(host.kinetic_energy(2)) == pytest.approx(of_group, rel=1e-13)
    inputs, baths = np.array([1.0, 0.0, 0.0, 0.25, 100.0]), [Halving(2), Halving(2)]
    for moves, bath in zip((host, gpu), baths, strict=True):
        moves.rescale(bath, inputs, lambda parts: parts, measured=True)
    same(device, state, gpu)
    assert np.array_equal(state.velocities[:N], np.where(members[:, None], 0.5 * before, before))
    accounts = Account(1), Account(1)
    for moves, account in zip((host, gpu), accounts, strict=True):
        moves.randomize_velocities(account, 0.75, 300.0, 3, 7)
    gpu.fetch_accounts([baths[1], accounts[1]])
    assert baths[0].scalars[0] == baths[1].scalars[0] == pytest.approx(0.75 * of_group, rel=1e-13)
    np.testing.assert_allclose(device.download(gpu.velocities), state.velocities[:N], rtol=0, atol=1e-12)
    stirred = (state.velocities[:N] != np.where(members[:, None], 0.5 * before, before)).any(axis=1)
    assert np.array_equal(stirred, (state.group[:N] == 1) & (state.fixed[:N] != 7))
    for account in accounts:
        assert float(total(account.scalars)) == pytest.approx(float(total(accounts[0].scalars)), abs=1e-12)


def test_the_blocks_may_come_in_any_order():
    found = []
    for options in {}, {"backward": True}, {"warp": 64}:
        device = EmulatedDevice(**options)
        _, _, gpu = both(device)
        account = Account()
        gpu.randomize_velocities(account, 0.5, 300.0, 1, 1)
        gpu.fetch_accounts([account])
        sums = gpu.kinetic_tensor(), gpu.descent_sums(), gpu.largest_squares()
        found.append([account.scalars, *sums, device.download(gpu.velocities)])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize(("largest", "trouble"), [(4095.0, 0), (-4096.0, 1)])
def test_forces_from_whole_numbers(device, largest, trouble):
    _, _, gpu = both(device)
    totals = np.random.default_rng(4).integers(-(2**40), 2**40, 3 * (N + GHOSTS))
    totals[17] = round(largest * 2**38)
    noted = device.zeros(1, np.int64)
    gpu.take_forces(gpu.room.new(totals), 2.0**-38, 4096.0, noted)
    assert np.array_equal(device.download(gpu.forces).ravel(), totals[: 3 * N] * 2.0**-38)
    assert device.download(noted)[0] == trouble


def test_what_was_kept_comes_back(device):
    state, host, gpu = both(device)
    inputs, bath = np.array([1.0, 0.0, 0.0, 0.25, 100.0]), Halving()
    kinetic = float(total(host.kinetic_energy()))
    gpu.keep()
    for drift in (1e-3, 0.0):
        gpu.rescale(bath, inputs, lambda parts: parts, measured=True)
        gpu.drift(drift)
        if drift:
            gpu.restore()
            same(device, state, gpu)
    gpu.fetch_accounts([bath])
    assert bath.scalars[0] == 0.75 * kinetic, "what the bath took before it went back does not count"


def some_of(state, index, n_ghost=0):
    """A state with the local atoms at index and some ghosts."""
    some = State(state.box)
    some.append_local(state.rows(MIGRATING, index))
    some.set_ghosts(state.rows(GHOSTED, np.arange(n_ghost)))
    return some


@pytest.mark.parametrize("more", [0, 5, N])
def test_atoms_come_and_go(device, more):
    """With room for them or without."""
    state, _, gpu = both(device)
    gpu.append(some_of(state, np.arange(more)))
    order = np.random.default_rng(1).permutation(N + more)[: N - 20].astype(np.int32)
    there = device.zeros(len(order), np.int32)
    device.upload(order, there)
    gpu.keep_local(there)
    after = some_of(state, order % N, GHOSTS)
    gpu.set_ghosts(after)
    for f in MIGRATING:
        found = device.download(getattr(gpu, f.name))
        assert np.array_equal(found, getattr(after, f.name)[: after.n_all if f in GHOSTED else after.n_local]), f.name
    assert np.array_equal(device.download(gpu.built_at), after.positions[: after.n_local])
