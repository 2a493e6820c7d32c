"""Periodic images as ghosts, where one process has all atoms: evaluation and training (MD uses `parallel.halo`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dphpc.core.box import Box


def periodic_images(
    positions: NDArray[np.float64], box: Box, cutoff: float
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Images that lie within `cutoff` of the box.

    Parameters
    ----------
    positions
        (n, 3) Å, wrapped into the box along its periodic directions.
    cutoff
        Å; may exceed the box, which then repeats several times.

    Returns
    -------
    owners, shifts
        (n_ghost,) index of the atom an image belongs to and (n_ghost, 3) whole box vectors: the
        image stands at `positions[owners] + shifts @ box.matrix`.
    """
    fractional = box.to_fractional(positions)
    owners = np.arange(len(positions), dtype=np.int32)
    shifts = np.zeros((len(positions), 3), np.int32)
    reach = cutoff / box.heights
    for axis in range(3):
        if not box.periodic[axis]:
            continue
        where = fractional[owners, axis]  # images of earlier axes carry no shift along this one
        n_shells = int(np.ceil(reach[axis]))
        new_owners, new_shifts = [owners], [shifts]
        for k in [k for k in range(-n_shells, n_shells + 1) if k]:
            near = (where + k > -reach[axis]) & (where + k < 1.0 + reach[axis])
            moved = shifts[near].copy()
            moved[:, axis] = k
            new_owners.append(owners[near])
            new_shifts.append(moved)
        owners, shifts = np.concatenate(new_owners), np.concatenate(new_shifts)
    n = len(positions)
    return owners[n:], shifts[n:]


def fold_ghosts(array: NDArray[np.float64], owners: NDArray[np.int32], n_local: int) -> NDArray[np.float64]:
    """(n_local, …): a per-atom array (n_all, …) with each ghost's values added to its owner's; owners (n_ghost,)."""
    flat = array.reshape(len(array), -1)
    folded = flat[:n_local].copy()
    for k in range(flat.shape[1]):
        folded[:, k] += np.bincount(owners, flat[n_local:, k], minlength=n_local)
    return folded.reshape(n_local, *array.shape[1:])
