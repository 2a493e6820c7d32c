"""Migration and ghosts on any number of ranks, against all pairs and images of one process."""

from collections.abc import Callable

import numpy as np
import pytest

from dphpc.core.box import Box
from dphpc.core.errors import RunError
from dphpc.core.random import Stream, normals
from dphpc.core.state import State
from dphpc.md.engine import Engine
from dphpc.parallel.comm import Communicator
from dphpc.parallel.domain import Domain
from dphpc.parallel.halo import Halo
from dphpc.parallel.migrate import check_count, migrate
from dphpc.potential.contract import Outputs
from tests.lennard_jones import LennardJones
from tests.parallel.conftest import lattice

pytestmark = pytest.mark.mpi
System = tuple[Box, np.ndarray, np.ndarray]


def all_by_id(comm: Communicator, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """All ranks' values sorted by id, on every rank."""
    return np.concatenate(comm.allgather(values))[np.argsort(np.concatenate(comm.allgather(ids)))]


def homes(halo: Halo) -> np.ndarray:
    """(n_ghost,) the rank that owns each ghost."""
    return np.repeat([halo.comm.rank, *halo.routes.partners], np.diff(halo.routes.ghost_bounds))


@pytest.fixture
def migrated(comm: Communicator, system: System, scattered: Callable[..., State]) -> tuple[State, Domain]:
    box = system[0]
    state, domain = scattered(*system), Domain.even(box, comm.size, comm.rank)
    migrate(state, domain, comm)
    return state, domain


def test_every_atom_comes_to_its_owner(comm: Communicator, system: System, migrated: tuple[State, Domain]) -> None:
    (box, positions, types), (state, domain) = system, migrated
    check_count(state, len(positions), comm)
    fractional = box.to_fractional(state.positions)
    for axis in range(3):
        low, high = domain.interval(axis)
        inside = (fractional[:, axis] > low - 1e-12) & (fractional[:, axis] < high + 1e-12)
        if not box.periodic[axis]:
            inside |= (fractional[:, axis] < 0) & (low == 0) | (fractional[:, axis] > 1) & (high == 1)
        assert inside.all()
    assert np.array_equal(all_by_id(comm, state.ids, state.ids), np.arange(1, len(positions) + 1))
    assert np.array_equal(all_by_id(comm, state.ids, state.types), types)
    # Position and image count together are the position that was given.
    true = all_by_id(comm, state.ids, state.positions + state.images @ box.matrix)
    np.testing.assert_allclose(true, positions, atol=1e-12)


def test_ghosts_are_all_images_within_reach(comm: Communicator, system: System, migrated: tuple[State, Domain]) -> None:
    (box, _, _), (state, domain) = system, migrated
    reach = 8.0
    halo = Halo(domain, comm)
    own = all_by_id(comm, state.ids, state.positions)
    halo.build_ghosts(state, reach)
    # By brute force: every image of every atom whose fractional coordinates lie within reach of the brick.
    n = [int(np.ceil(reach / h)) + 1 if p else 0 for h, p in zip(box.heights, box.periodic, strict=True)]
    cells = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in n), indexing="ij"), axis=-1).reshape(-1, 3)
    images = (own[None] + (cells @ box.matrix)[:, None]).reshape(-1, 3)
    ids = np.tile(np.arange(1, len(own) + 1), len(cells))
    fractional, wanted = box.to_fractional(images), np.ones(len(images), bool)
    for axis in range(3):
        low, high = domain.interval(axis)
        width = reach / box.heights[axis] - 1e-9
        below, above = fractional[:, axis] < low - width, fractional[:, axis] > high + width
        if not box.periodic[axis]:
            below &= low > 0
            above &= high < 1
        wanted &= ~(below | above)
    found = {(i, *np.round(x, 6)) for i, x in zip(state.ids.tolist(), state.positions.tolist(), strict=True)}
    assert len(found) == state.n_all, "an atom is there twice"
    missing = {(i, *np.round(x, 6)) for i, x in zip(ids[wanted].tolist(), images[wanted].tolist(), strict=True)} - found
    assert not missing


def test_ghosts_follow_their_owners_to_the_last_bit(comm: Communicator, migrated: tuple[State, Domain]) -> None:
    state, domain = migrated
    halo = Halo(domain, comm)
    halo.build_ghosts(state, 8.0)
    built = state.positions.copy()
    state.positions[state.n_local :] = np.nan
    halo.refresh_ghosts(state)
    assert np.array_equal(state.positions, built)


@pytest.mark.parametrize(("shape", "dtype"), [((), np.float32), ((3,), np.float64), ((2, 3), np.int64)])
def test_refresh_and_reduce_take_any_per_atom_array(
    comm: Communicator, migrated: tuple[State, Domain], shape: tuple[int, ...], dtype: type
) -> None:
    state, domain = migrated
    halo = Halo(domain, comm)
    halo.build_ghosts(state, 8.0)
    array = np.zeros((state.n_all, *shape), dtype)
    array[: state.n_local] = state.ids[: state.n_local].reshape(-1, *(1,) * len(shape))
    halo.refresh(array)
    assert np.array_equal(array, np.broadcast_to(state.ids.reshape(-1, *(1,) * len(shape)), array.shape))
    # Each copy counts itself: an owner ends with the number of its copies on all ranks.
    ones = np.ones((state.n_all, *shape), dtype)
    halo.reduce(ones)
    n_atoms = int(comm.allreduce(np.array([state.n_local]))[0])
    copies = comm.allreduce(np.bincount(state.ids, minlength=n_atoms + 1))
    own = ones[: state.n_local].reshape(state.n_local, int(np.prod(shape)))
    counted = all_by_id(comm, state.ids[: state.n_local], own)
    assert np.array_equal(counted, np.broadcast_to(copies[1:, None], counted.shape))
    assert not ones[state.n_local :].any()


def test_energy_forces_and_virial_equal_all_pairs(
    comm: Communicator,
    system: System,
    scattered: Callable[..., State],
    potential: LennardJones,
    all_pairs: Callable[..., Outputs],
) -> None:
    box = system[0]
    engine = Engine(
        scattered(*system), Domain.even(box, comm.size, comm.rank), comm, potential, np.ones(2), 1e-3, skin=1.0
    )
    engine.update_forces()
    wanted = all_pairs(*system)
    n = engine.state.n_local
    sums = comm.allreduce(np.append(engine.outputs.virial.ravel(), engine.outputs.energy))
    forces = all_by_id(comm, engine.state.ids[:n], engine.state.forces[:n])
    scale = np.abs(wanted.forces).max() + 1e-3
    # Measured on 1, 2, 4, 8 ranks, at most: forces 9e-16, energy 2e-16, virial 2e-15.
    assert np.abs(forces - wanted.forces).max() < 1e-13 * scale
    assert abs(sums[-1] - wanted.energy) < 1e-13 * abs(wanted.energy)
    assert np.abs(sums[:9] - wanted.virial.ravel()).max() < 1e-13 * np.abs(wanted.virial).max()


def test_inner_atoms_are_evaluated_while_ghosts_are_under_way(
    comm: Communicator, scattered: Callable[..., State], potential: LennardJones
) -> None:
    box = Box(np.diag([36.0 * comm.size, 16.0, 16.0]))
    positions = lattice(box, 3.6, 3)
    system = box, positions, np.zeros(len(positions), np.int32)
    domain = Domain.even(box, comm.size, comm.rank)
    engine = Engine(scattered(*system), domain, comm, potential, np.ones(2), 1e-3, skin=1.0, deterministic=True)
    engine.update_forces()
    engine.state.velocities[: engine.state.n_local] = normals(
        1, Stream.VELOCITIES, 0, engine.state.ids[: engine.state.n_local]
    )
    state, neighbors = engine.state, engine.neighbors
    inner = np.concatenate([*engine.inner, np.zeros(0, np.int32)])
    assert len(inner) > 50 or comm.size == 1
    of_others = state.n_local + np.flatnonzero(homes(engine.halo) != comm.rank)
    for i in inner:
        assert not np.isin(neighbors.indices[neighbors.offsets[i] : neighbors.offsets[i + 1]], of_others).any()
    # The forces of a step in which ghosts follow their owners are those of one in which all is built anew.
    engine.drift(1e-4)
    engine.update_forces()
    assert engine.rebuilds == 1
    again = Engine(scattered(*system), domain, comm, potential, np.ones(2), 1e-3, skin=1.0, deterministic=True)
    again.update_forces()
    again.state.velocities[: again.state.n_local] = normals(
        1, Stream.VELOCITIES, 0, again.state.ids[: again.state.n_local]
    )
    again.drift(1e-4)
    again.skin = 0.0
    again.update_forces()
    assert again.rebuilds == 2
    states = [e.state for e in (engine, again)]
    assert np.array_equal(*(all_by_id(comm, s.ids[: s.n_local], s.forces[: s.n_local]) for s in states))


def test_each_pair_of_ranks_exchanges_one_message(comm: Communicator, migrated: tuple[State, Domain]) -> None:
    state, domain = migrated
    halo = Halo(domain, comm)
    halo.build_ghosts(state, 8.0)
    owners = set(homes(halo).tolist()) - {comm.rank}
    senders, sent = comm.allgather(owners), np.diff(halo.routes.send_bounds)[1:]
    assert np.count_nonzero(sent) == sum(comm.rank in ranks for ranks in senders)
    of_others = np.count_nonzero(homes(halo) != comm.rank)
    assert comm.allreduce(np.array([sent.sum()]))[0] == comm.allreduce(np.array([of_others]))[0]


def test_a_lost_atom_is_noticed_by_all(comm: Communicator, migrated: tuple[State, Domain]) -> None:
    state, _ = migrated
    n_atoms = int(comm.allreduce(np.array([state.n_local]))[0])
    with pytest.raises(RunError, match=f"1 of {n_atoms + 1} atoms were lost") as caught:
        check_count(state, n_atoms + 1, comm)
    assert caught.value.agreed
    assert caught.value.speaks == (comm.rank == 0)
