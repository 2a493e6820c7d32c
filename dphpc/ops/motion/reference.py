"""Moves on the host, in NumPy, for `core.state.PIECE` atoms at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.box import ON_FACE, Box
from dphpc.core.exact_sum import exact_sum, no_sum, round_to, total
from dphpc.core.fixing import held_in
from dphpc.core.random import Stream, normals
from dphpc.core.state import State, pieces
from dphpc.core.units import ACCELERATION, BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops.motion.contract import EVERYONE, Account, Bath, Combine, Snapshot
from dphpc.ops.threads import get_threads

Atoms = slice | NDArray[np.intp]
"""Some of the local atoms."""


class HostMoves:
    """See `contract.Moves`.

    Parameters
    ----------
    masses
        (ntypes,) u.
    spacing
        Å; displacements are rounded to multiples of it; 0: no rounding.
    some_fixed
        Whether any rank has an atom that is fixed in any direction.
    """

    def __init__(self, state: State, masses: Doubles, spacing: float, *, some_fixed: bool = False) -> None:
        self._state, self._masses, self._spacing, self._some_fixed = state, masses, spacing, some_fixed
        self._inverse = ACCELERATION / masses
        self._buffer = np.empty((0, 3))
        self.take_up()

    def take_up(self) -> None:
        """Adapt the per-atom arrays to the number of atoms in the state."""
        n = self._state.n_local
        if len(self._buffer) < n:
            self._buffer = np.empty((n + n // 16, 3))
        self._built_at, self._pieces = self._buffer[:n], pieces(n)

    def _members(self, group: int) -> Iterator[Atoms]:
        """A group's atoms, piece by piece."""
        for piece in self._pieces:
            yield piece if group == EVERYONE else piece.start + np.flatnonzero(self._state.group[piece] == group)

    def _of(self, by_type: Doubles, atoms: Atoms) -> Doubles:
        """(n, 1): each atom's entry of an array by type (ntypes,)."""
        return by_type.take(self._state.types[atoms])[:, None]

    def _free(self, values: Doubles, atoms: Atoms) -> Doubles:
        """(n, 3): values (n, 3) or (n, 1) of atoms, 0 where they are fixed; unchanged, if none is."""
        return np.where(held_in(self._state.fixed[atoms]), 0.0, values) if self._some_fixed else values

    def _pull(self, piece: slice) -> Doubles:
        """(n, 3) eV/Å: forces; 0 where atoms are fixed."""
        return self._free(self._state.forces[piece], piece)

    def kick(self, dt: float) -> None:
        """See `contract.Moves.kick`."""
        per_force = dt * self._inverse
        for piece in self._pieces:
            self._state.velocities[piece] += self._pull(piece) * self._of(per_force, piece)

    def drift(self, dt: float, kick: float = 0.0) -> None:
        """See `contract.Moves.drift`."""
        if kick:
            self.kick(kick)
        for piece in self._pieces:
            moved = self._state.velocities[piece] * dt
            if self._spacing:
                # Rounded before it is added, so that the sum is exact whichever periodic image the atom is in.
                round_to(moved, self._spacing, out=moved)
            self._state.positions[piece] += moved

    def scale_velocities(self, factor: float, group: int = EVERYONE) -> None:
        """v *= factor, of a group."""
        for atoms in self._members(group):
            self._state.velocities[atoms] *= factor

    def strain(self, box: Box, spacing: float, *, flows: bool = False) -> None:
        """Carry positions, and those noted for the neighbor list, to another box.

        Where positions x become x F, momenta p become p F⁻ᵀ, so that their products with vectors that go with the box
        stay.  If the box `flows`, velocities v become v F⁻¹ instead: those of free atoms relative to a flow that
        carries box and atoms.  Phase space keeps its volume in both.

        A position is wrapped into the box, carried to the new box, rounded to the new spacing and put back into its
        periodic image, so that the result does not depend on that image.  Where the strain moves nothing along x, y or
        z, no rounding does.  A fixed atom has no velocity in the new box either.
        """
        old, self._spacing = self._state.box, spacing
        still = (old.matrix == box.matrix).all(axis=0)
        for piece in self._pieces:
            positions = self._state.positions[piece]
            shifts = old.wrap_shifts(positions, ON_FACE) if spacing else np.zeros((1, 3))
            inside = positions - shifts @ old.matrix
            carried = np.where(still, inside, old.carried_to(box, inside))
            positions[...] = round_to(carried, spacing, out=carried) + shifts @ box.matrix
            self._state.velocities[piece] = self._free(_strained(self._state.velocities[piece], old, box, flows), piece)
            self._built_at[piece] = old.carried_to(box, self._built_at[piece])

    def rescale(self, bath: Bath, inputs: Doubles, combine: Combine, *, measured: bool) -> None:
        """See `contract.Moves.rescale`."""
        kinetic = float(total(combine(self.kinetic_energy(bath.group)))) if measured else np.nan
        self.scale_velocities(bath.respond(kinetic, inputs), bath.group)

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int, step: int) -> None:
        """See `contract.Moves.randomize_velocities`."""
        group, spread = account.group, np.sqrt(1.0 - keep * keep) * self._thermal_speed(temperature)
        before = self.kinetic_energy(group)
        for atoms in self._members(group):
            noise = normals(seed, Stream.LANGEVIN, step, self._state.ids[atoms])
            noise *= self._free(self._of(spread, atoms), atoms)
            self._state.velocities[atoms] *= keep
            self._state.velocities[atoms] += noise
        account.scalars += before - self.kinetic_energy(group)

    def put_velocities(self, velocities: Doubles) -> None:
        """See `contract.Moves.put_velocities`."""
        self._state.velocities[: self._state.n_local] = velocities

    def steer(self, keep: float, push: float) -> None:
        """See `contract.Moves.steer`."""
        for piece in self._pieces:
            velocities = self._state.velocities[piece]
            velocities *= keep
            velocities += push * self._pull(piece)

    def descent_sums(self) -> Doubles:
        """See `contract.Moves.descent_sums`."""
        parts = no_sum(3)
        for piece in self._pieces:
            v, f = self._state.velocities[piece], self._pull(piece)
            parts += exact_sum(np.stack([_rows(f, v), _rows(v, v), _rows(f, f)], axis=1))
        return parts

    def largest_squares(self) -> Doubles:
        """See `contract.Moves.largest_squares`."""
        largest = np.zeros(2)
        for piece in self._pieces:
            v, f = self._state.velocities[piece], self._pull(piece)
            np.maximum(largest, [_rows(v, v).max(initial=0.0), _rows(f, f).max(initial=0.0)], out=largest)
        return largest

    def kinetic_energy(self, group: int = EVERYONE) -> Doubles:
        """See `contract.Moves.kinetic_energy`."""
        half_mass, parts = 0.5 * KINETIC * self._masses, no_sum()
        for atoms in self._members(group):
            v2 = self._state.velocities[atoms] ** 2
            parts += exact_sum(self._of(half_mass, atoms)[:, 0] * (v2[:, 0] + v2[:, 1] + v2[:, 2]))
        return parts

    def kinetic_tensor(self) -> Doubles:
        """See `contract.Moves.kinetic_tensor`."""
        mass, parts = KINETIC * self._masses, no_sum(3, 3)
        for piece in self._pieces:
            v = self._state.velocities[piece]
            momentum = v * self._of(mass, piece)
            parts += np.stack([exact_sum(momentum * v[:, axis, None]) for axis in range(3)], axis=1)
        return parts

    def snapshot(self, fields: Collection[str]) -> Snapshot:
        """See `contract.Moves.snapshot`; nothing is copied."""
        atoms = {name: getattr(self._state, name)[: self._state.n_local] for name in fields}
        return lambda: atoms

    def draw_velocities(self, temperature: float, seed: int) -> None:
        """v = √(kT/m) ξ; an atom's velocity depends on seed and id alone."""
        speed, state = self._thermal_speed(temperature), self._state

        def draw(piece: slice) -> None:
            noise = normals(seed, Stream.VELOCITIES, 0, state.ids[piece])
            np.multiply(noise, self._free(self._of(speed, piece), piece), out=state.velocities[piece])

        with ThreadPoolExecutor(get_threads()) as pool:  # NumPy releases the GIL
            list(pool.map(draw, self._pieces))

    def _thermal_speed(self, temperature: float) -> Doubles:
        """(ntypes,) Å/ps: √(kT/m), the spread of each velocity component."""
        return np.sqrt(BOLTZMANN_EV_PER_K * temperature * self._inverse)

    def momentum(self) -> Doubles:
        """(3, 6): momentum in u·Å/ps, and mass in u of the atoms free along x, y and z, of this rank, in parts."""
        parts = no_sum(6)
        for piece in self._pieces:
            mass = self._of(self._masses, piece)
            momentum = self._state.velocities[piece] * mass
            free = self._free(np.broadcast_to(mass, momentum.shape), piece)
            parts += exact_sum(np.concatenate((momentum, free), axis=1))
        return parts

    # Displacements since the neighbor list was built.

    def note_positions(self, positions: Doubles | None = None) -> None:
        """Note the positions for which the neighbor list is built: the present ones, or others (n_local, 3)."""
        self._built_at[...] = self._state.positions[: self._state.n_local] if positions is None else positions

    def moved2(self) -> NDArray[np.float64]:
        """(n_local,) Å²: squared displacement since `note_positions`."""
        squares = np.empty(self._state.n_local)
        for piece in self._pieces:
            moved = self._state.positions[piece] - self._built_at[piece]
            np.einsum("ij,ij->i", moved, moved, out=squares[piece])
        return squares


def _strained(velocities: Doubles, old: Box, box: Box, flows: bool) -> Doubles:
    """(n, 3) Å/ps in a box that a strain made of the old one; see `HostMoves.strain`."""
    if old.is_cuboid and box.is_cuboid:
        return np.asarray(velocities * (old.matrix.diagonal() / box.matrix.diagonal()), np.float64)
    back = box.inverse @ old.matrix  # F⁻¹
    x, y, z = velocities.T
    # Not a matrix product: it may round an atom differently in another place of the array.
    return np.stack([x * a + y * b + z * c for a, b, c in (back.T if flows else back)], axis=1)


def _rows(a: Doubles, b: Doubles) -> Doubles:
    """(n,) a·b of each atom, summed in the same order on all back ends."""
    product = a * b
    return np.asarray(product[:, 0] + product[:, 1] + product[:, 2])
