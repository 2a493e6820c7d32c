"""Moves on a GPU, where the atoms' positions, velocities and forces are kept from step to step."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from dphpc.core.arrays import Doubles
from dphpc.core.buffers import Buffers
from dphpc.core.device import Array, Device
from dphpc.core.exact_sum import no_sum
from dphpc.core.random import Stream
from dphpc.core.state import FIELDS, GHOSTED, MIGRATING, Field, State
from dphpc.core.units import ACCELERATION, BOLTZMANN_EV_PER_K, KINETIC
from dphpc.ops.kernel_text import kernel_text
from dphpc.ops.motion.contract import EVERYONE, Account, Bath, Combine, Snapshot
from dphpc.ops.structs import struct
from dphpc.ops.workspace import Workspace

BLOCK = 256
"""Threads of a block."""

MOST_BLOCKS = 1024
"""Most blocks of a launch; threads stride over the atoms."""

# The structs of kernels/cuda/motion.cu.
_ATOMS = struct(
    "p positions", "p velocities", "p forces", "p types", "p ids", "p mass", "p inverse", "p built_at", "p fixed",
    "p group", "i8 n",
)  # fmt: skip
_ROWS = struct(f"{len(FIELDS)}u8 source", f"{len(FIELDS)}u8 to", f"{len(FIELDS)}i4 words")  # of pointers, and counts
_NOISE = struct("u8 key", "u8 step", "f8 keep", "f8 spread", "f8 kT")

_MOVING = [f for f in FIELDS if f.name in ("positions", "velocities", "forces")]


class CudaMoves:
    """See `contract.Moves`; only methods that return numbers wait for the GPU, and `rescale` on several ranks.

    Parameters
    ----------
    masses
        (ntypes,) u.
    spacing
        Å; displacements are rounded to multiples of it; 0: no rounding.  Also an attribute.
    alone
        Whether this rank has all atoms.
    some_fixed
        Whether any rank has an atom that is fixed in any direction.

    Attributes
    ----------
    ids, types, positions, velocities, images, fixed, group, forces
        As in `core.state.State`, in the GPU's memory; fields in `GHOSTED` are (n_all, …), others (n_local, …).
    built_at
        (n_local, 3) Å, positions when the neighbor list was built.
    """

    ids: Array
    types: Array
    positions: Array
    velocities: Array
    images: Array
    fixed: Array
    group: Array
    forces: Array

    def __init__(
        self, device: Device, masses: Doubles, spacing: float, *, alone: bool, some_fixed: bool = False
    ) -> None:
        self.device, self.alone, self.some_fixed = device, alone, some_fixed
        self.spacing = np.float64(spacing)
        definitions = {"WARP": device.warp, "BLOCK": BLOCK, "FIELDS": len(FIELDS), "KINETIC": repr(KINETIC)}
        self._text = kernel_text("motion.cu", **definitions)
        self._bath_text = kernel_text("thermostats.cu", BOLTZMANN=repr(BOLTZMANN_EV_PER_K))
        self.room, self._pinned = Workspace(device), Buffers(device.pinned)
        self._mass, self._inverse = self.room.new(masses), self.room.new(ACCELERATION / masses)
        self._parts, self._factor = device.zeros(3, np.float64), device.zeros(1, np.float64)
        self._accounts: dict[int, tuple[Account, Doubles, Array]] = {}  # with what was uploaded, and where
        self.n_local = 0

    # Transfers between host and GPU, and the set of atoms.

    def take_up(self, state: State) -> None:
        """Upload a state's atoms, ghosts included, but no forces; the neighbor list is that of their positions."""
        self.n_local = state.n_local
        self._make_room(state.n_all)
        for f in FIELDS:
            if f.name != "forces":
                array = getattr(self, f.name)
                self.device.upload(getattr(state, f.name)[: len(array)], array)
        self.note_positions()

    def reserve(self, n_all: int) -> None:
        """Make room for n_all atoms, ghosts included; the local atoms are kept."""
        if n_all != len(self.positions):
            self._lay_aside(FIELDS)
            self._make_room(n_all)
            self._put_back(FIELDS)

    def append(self, state: State) -> None:
        """Append a state's local atoms, without forces; ghosts must be set afterwards."""
        n, before = self.n_local, [(f.name, getattr(self, f.name)) for f in MIGRATING]
        self.n_local += state.n_local
        self._make_room(self.n_local)
        for name, old in before:
            array = getattr(self, name)
            self.device.copy(old[:n], array[:n])  # the array is another one if it had to grow
            if state.n_local:
                self.device.upload(getattr(state, name)[: state.n_local], array[n:])

    def keep_local(self, order: Array) -> None:
        """Keep only the local atoms at order (n,) int32, in that order, without ghosts; see `put_in_order`."""
        self.n_local = len(order)
        self._make_room(self.n_local)
        self.put_in_order(order)

    def set_ghosts(self, state: State) -> None:
        """Upload the ghosts of a state with the same number of local atoms."""
        self.reserve(state.n_all)
        for f in GHOSTED if state.n_ghost else ():
            self.device.upload(getattr(state, f.name)[self.n_local :], getattr(self, f.name)[self.n_local :])

    def put_in_order(self, order: Array) -> None:
        """Reorder the local atoms by order (n_local,) int32, and note their positions for the neighbor list.

        Ghosts must be set afterwards; atoms saved by `keep` are lost.
        """
        self._lay_aside(FIELDS, order)
        self._put_back(FIELDS)
        self.note_positions()

    @property
    def where(self) -> bytes:
        """Addresses and number of the atoms, for the key of `Device.replay`."""
        return self._atoms.tobytes()

    def note_positions(self) -> None:
        """Note the present positions as those of the neighbor list."""
        self.device.copy(self.positions[: self.n_local], self.built_at)

    def _make_room(self, n_all: int) -> None:
        for f in FIELDS:
            n = n_all if f.ghosts else self.n_local
            setattr(self, f.name, self.room.buffer(f.name, (n, *f.shape), f.dtype))
        self.built_at = self.room.buffer("built_at", (self.n_local, 3), np.float64)
        arrays = (
            self.positions, self.velocities, self.forces, self.types, self.ids, self._mass, self._inverse, self.built_at
        )  # fmt: skip
        addresses = map(self.room.address, (*arrays, self.fixed if self.some_fixed else None, self.group))
        self._atoms = np.array([(*addresses, self.n_local)], _ATOMS)

    def bring(self, state: State, *fields: str) -> None:
        """Download fields of the local atoms to a state with the same number of them."""
        for name in fields:
            getattr(state, name)[: self.n_local] = self.device.download(getattr(self, name)[: self.n_local])

    def fetch_accounts(self, accounts: Sequence[Account]) -> None:
        """Download the variables of the thermostats in use, where they are on the GPU; others are forgotten."""
        self._accounts = {id(a): self._accounts[id(a)] for a in accounts if id(a) in self._accounts}
        for account, _, scalars in self._accounts.values():
            account.scalars[...] = self.device.download(scalars)

    def keep(self) -> None:
        """Save the atoms' positions, velocities and forces, for `restore`."""
        self._lay_aside(_MOVING)

    def restore(self) -> None:
        """Go back to what `keep` saved last, and to the thermostats' variables as last fetched."""
        self._put_back(_MOVING)
        self._accounts.clear()  # they will be uploaded again

    def _lay_aside(self, fields: Sequence[Field], order: Array | None = None) -> None:
        self._copy([(f, getattr(self, f.name), self._kept(f)) for f in fields], order)

    def _put_back(self, fields: Sequence[Field]) -> None:
        self._copy([(f, self._kept(f), getattr(self, f.name)) for f in fields])

    def _copy(self, ways: list[tuple[Field, Array, Array]], order: Array | None = None) -> None:
        rows, address = np.zeros(1, _ROWS), self.device.address
        for k, (field, source, to) in enumerate(ways):
            words = math.prod(field.shape) * np.dtype(field.dtype).itemsize // 4
            rows["source"][0, k], rows["to"][0, k], rows["words"][0, k] = address(source), address(to), words
        self._launch("copy_rows", rows, order)

    def _kept(self, field: Field) -> Array:
        return self.room.buffer(f"kept {field.name}", (self.n_local, *field.shape), field.dtype)

    # Moves.

    def kick(self, dt: float) -> None:
        """See `contract.Moves.kick`."""
        self._launch("kick", np.float64(dt))

    def drift(self, dt: float, kick: float = 0.0) -> None:
        """See `contract.Moves.drift`."""
        self._launch("drift", np.float64(kick), np.float64(dt), self.spacing)

    def rescale(self, bath: Bath, inputs: Doubles, combine: Combine, *, measured: bool) -> None:
        """See `contract.Moves.rescale`; the bath's response is computed by a single thread."""
        scalars = self._scalars_of(bath)
        if measured:
            self._add_kinetic(bath.group)
            if not self.alone:
                self.device.upload(combine(self.device.download(self._parts)), self._parts)
        by_value = inputs.view(np.dtype([(f"x{k}", "f8") for k in range(len(inputs))]))
        self.device.launch(self._bath_text, bath.kernel, 1, 1, self._parts, scalars, by_value, self._factor)
        self._launch("scale", self._factor, np.int32(bath.group))

    def randomize_velocities(self, account: Account, keep: float, temperature: float, seed: int, step: int) -> None:
        """See `contract.Moves.randomize_velocities`."""
        key, spread = (seed << 4) | int(Stream.LANGEVIN), np.sqrt(1.0 - keep * keep)
        noise = np.array([(key, step, keep, spread, BOLTZMANN_EV_PER_K * temperature)], _NOISE)
        self._launch("randomize", noise, self._scalars_of(account), np.int32(account.group))

    def put_velocities(self, velocities: Doubles) -> None:
        """See `contract.Moves.put_velocities`."""
        self.device.upload(velocities, self.velocities)

    def steer(self, keep: float, push: float) -> None:
        """See `contract.Moves.steer`."""
        self._launch("steer", np.float64(keep), np.float64(push))

    def descent_sums(self) -> Doubles:
        """See `contract.Moves.descent_sums`."""
        return self._summed("add_descent", 3)

    def largest_squares(self) -> Doubles:
        """See `contract.Moves.largest_squares`."""
        largest = self.room.buffer("largest", (2,), np.int64)
        largest.fill(0)
        self._launch("note_largest", largest)
        return self.device.download(largest).view(np.float64)

    def kinetic_energy(self, group: int = EVERYONE) -> Doubles:
        """See `contract.Moves.kinetic_energy`."""
        self._add_kinetic(group)
        return self.device.download(self._parts)

    def _add_kinetic(self, group: int) -> None:
        self._parts.fill(0)
        self._launch("add_kinetic", self._parts, np.int32(group))

    def kinetic_tensor(self) -> Doubles:
        """See `contract.Moves.kinetic_tensor`."""
        return self._summed("add_kinetic_tensor", 9).reshape(-1, 3, 3)

    def _summed(self, kernel: str, n: int) -> Doubles:
        """(3, n) sums over this rank's atoms, in parts; every n-th block of the kernel works on the same sum."""
        sums = self.room.buffer(f"sums of {kernel}", (n * len(no_sum()),), np.float64)
        sums.fill(0)
        if self.n_local:
            grid = n * min(-(-self.n_local // BLOCK), MOST_BLOCKS // n)
            self.device.launch(self._text, kernel, grid, BLOCK, self._atoms, sums)
        return np.ascontiguousarray(self.device.download(sums).reshape(n, -1).T)

    def snapshot(self, fields: Collection[str]) -> Snapshot:
        """See `contract.Moves.snapshot`; the copies are made after what was launched before, without waiting."""
        copies: dict[str, Array] = {}
        for name in fields:
            array = getattr(self, name)[: self.n_local]
            copies[name] = self._pinned.get(name, array.shape, array.dtype)
            if self.n_local:
                self.device.start_download(array, copies[name])
        arrived = self.device.mark()

        def when_here() -> dict[str, Array]:
            arrived.synchronize()
            return copies

        return when_here

    # For the evaluation of forces.

    def note_displacement(self, largest: Array, cleared: Array | None = None) -> None:
        """Raise `largest` (1,), a float64's bits, to the largest squared displacement (Å²) since the list was built.

        The same launch sets the 64-bit words of `cleared` to zero.
        """
        self._launch("note_displacement", largest, cleared, np.int64(0 if cleared is None else cleared.size))

    def take_forces(self, totals: Array, spacing: float, limit: float, trouble: Array) -> None:
        """Set forces from integer multiples (3·n_all,) of a spacing; `trouble` becomes 1 if one reaches the limit."""
        self._launch("take_forces", totals, np.float64(spacing), np.float64(limit), trouble)

    def put_forces(self, forces: Doubles) -> None:
        """Set the forces from an array (n_local, 3) on the host."""
        self.device.upload(forces, self.forces)

    def _scalars_of(self, account: Account) -> Array:
        known = self._accounts.get(id(account))
        if known is None:
            known = self._accounts[id(account)] = account, account.scalars, self.room.new(account.scalars)
        elif known[1] is not account.scalars:
            self.device.upload(account.scalars, known[2])
            self._accounts[id(account)] = account, account.scalars, known[2]
        return known[2]

    def _launch(self, kernel: str, *arguments: object) -> None:
        # At most one thread for each of an atom's three components.
        grid = min(max(-(-3 * self.n_local // BLOCK), 1), MOST_BLOCKS)
        self.device.launch(self._text, kernel, grid, BLOCK, self._atoms, *arguments)
