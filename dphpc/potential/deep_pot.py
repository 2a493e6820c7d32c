"""`DeepPot`: a model for scripts and notebooks, with the shapes and units of `deepmd.infer.DeepPot`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.box import MAX_COORDINATE, Box
from dphpc.core.device import Device, find_device
from dphpc.core.errors import DataError, InputError
from dphpc.core.state import VIRTUAL
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model
from dphpc.model.show import summary
from dphpc.ops.se_a.contract import Environment
from dphpc.potential.contract import Outputs
from dphpc.potential.deep import DeepPotential
from dphpc.potential.surroundings import Surroundings


class DeepPot:
    """A Deep Potential model, evaluated on whole structures.

    Parameters
    ----------
    model
        A model file, or a model in memory.
    precision
        `float64` (default), `mixed`, `tf32` or `float32`.
    device
        `cpu` (default), `cuda`, or `auto` (a GPU if there is one); or a `Device`.

    Raises
    ------
    InputError, ModelFileError
        The file is no model, an argument is wrong, or `cuda` is asked for and there is no GPU.

    Examples
    --------
    >>> dp = DeepPot("model.dp")
    >>> energy, force, virial = dp.eval(coords, cells, atom_types)
    """

    def __init__(
        self, model: str | Path | DPModel, precision: str = "float64", device: str | Device | None = "cpu"
    ) -> None:
        self.model = model if isinstance(model, DPModel) else read_model(model)
        gpu = find_device(device) if isinstance(device, str) else device
        self.potential = DeepPotential(self.model, precision, device=gpu)

    def __repr__(self) -> str:
        return summary(self.model)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or pickle holds the model only; tables and GPU arrays are made again from it.
        return DeepPot, (self.model, self.potential.precision, "cpu" if self.potential.device is None else "cuda")

    def get_type_map(self) -> list[str]:
        """Element names of the types 0, 1, …"""
        return list(self.model.type_map)

    def get_ntypes(self) -> int:
        """Number of types."""
        return self.model.n_types

    def get_rcut(self) -> float:
        """Cutoff in Å."""
        return self.model.descriptor.rcut

    def get_sel(self) -> list[int]:
        """Slots per neighbor type."""
        return list(self.model.descriptor.sel)

    def get_dim_fparam(self) -> int:
        """Number of frame parameters."""
        return self.model.fitting.numb_fparam

    def get_dim_aparam(self) -> int:
        """Number of parameters of each atom."""
        return self.model.fitting.numb_aparam

    def eval(
        self,
        coords: ArrayLike,
        cells: ArrayLike | None,
        atom_types: ArrayLike,
        atomic: bool = False,
        fparam: ArrayLike | None = None,
        aparam: ArrayLike | None = None,
        mixed_type: bool = False,
    ) -> tuple[Doubles, ...]:
        """Energies, forces and virials of frames.

        Parameters
        ----------
        coords
            (nframes, natoms·3) or (nframes, natoms, 3) Å.
        cells
            (nframes, 9) or (nframes, 3, 3) Å, lattice vectors as rows; None for open boundaries.
        atom_types
            (natoms,), or (nframes, natoms) if frames differ.  A slot of type −1 holds no atom; its results are 0.
        atomic
            Also return atomic energies and virials.
        fparam
            (nframes, numb_fparam) or (numb_fparam,) for all frames.
        aparam
            (nframes, natoms, numb_aparam), (natoms, numb_aparam) or (numb_aparam,).
        mixed_type
            Accepted as in DeePMD-kit and ignored, as the shape of `atom_types` says the same.

        Returns
        -------
        energy (nframes, 1) eV, force (nframes, natoms, 3) eV/Å, virial (nframes, 9) eV and, if `atomic`,
        atom_energy (nframes, natoms, 1) eV, atom_virial (nframes, natoms, 9) eV.

        Raises
        ------
        DataError
            Shapes do not fit, a position is not finite, or the model does not know a type.
        InputError
            The model takes parameters that are missing, or parameters are given and it takes none.
        """
        frames, boxes, types = self._frames(coords, cells, atom_types)
        n_frames, n = frames.shape[:2]
        columns = self.parameter_columns(n_frames, n, fparam, aparam)
        energy, virial = np.zeros((n_frames, 1)), np.zeros((n_frames, 9))
        force = np.zeros((n_frames, n, 3))
        atom_energy, atom_virial = np.zeros((n_frames, n, 1)), np.zeros((n_frames, n, 9))
        for k, real, around in self._surroundings(frames, boxes, types):
            out = self.evaluate(around, None if columns is None else columns[k, real], atomic_virial=atomic)
            energy[k, 0], virial[k], force[k, real] = out.energy, out.virial.ravel(), out.forces
            if atomic and out.atom_energy is not None and out.atom_virial is not None:
                atom_energy[k, real, 0], atom_virial[k, real] = out.atom_energy, out.atom_virial.reshape(-1, 9)
        return (energy, force, virial, atom_energy, atom_virial) if atomic else (energy, force, virial)

    def evaluate(self, around: Surroundings, columns: Doubles | None = None, *, atomic_virial: bool = False) -> Outputs:
        """Evaluate one structure with its images and neighbors, which must reach at least as far as the cutoff.

        Parameters
        ----------
        columns
            (natoms, numb_fparam + numb_aparam), a frame of `parameter_columns`.
        atomic_virial
            Whether to compute atomic virials, too.

        Returns
        -------
        Outputs without ghosts: forces (natoms, 3), atom_energy (natoms,), atom_virial (natoms, 3, 3) or None.
        """
        n = around.state.n_local
        out = Outputs.zeros(n, around.state.n_all, atomic=atomic_virial)
        if out.atom_energy is None:
            out.atom_energy = np.zeros(n)
        self.potential.evaluate(around.state, around.neighbors, out, columns)
        out.forces = around.fold(out.forces)
        if out.atom_virial is not None:
            out.atom_virial = around.fold(out.atom_virial)
        return out

    def eval_descriptor(
        self, coords: ArrayLike, cells: ArrayLike | None, atom_types: ArrayLike, mixed_type: bool = False
    ) -> Doubles:
        """Descriptors (nframes, natoms, M·axis) of frames given as in `eval`."""
        frames, boxes, types = self._frames(coords, cells, atom_types)
        result = np.zeros((*types.shape, self.model.descriptor.n_features))
        for k, real, around in self._surroundings(frames, boxes, types):
            centers = np.arange(around.state.n_local, dtype=np.int32)
            env = Environment(around.state.positions, around.state.types, around.neighbors, centers)
            result[k, real] = self.potential.descriptors(env, around.state.ids)
        return result

    def _frames(
        self, coords: ArrayLike, cells: ArrayLike | None, atom_types: ArrayLike
    ) -> tuple[Doubles, list[Box | None], NDArray[np.int32]]:
        """Positions (nframes, natoms, 3), boxes, and types (nframes, natoms)."""
        given = np.atleast_2d(as_numbers("atom_types", atom_types))
        n, positions = given.shape[-1], as_numbers("coords", coords)
        if n == 0 or given.ndim > 2 or positions.size % (3 * n):
            raise DataError(
                f"coords of shape {positions.shape} do not fit {n} atoms",
                expected="(nframes, natoms, 3) or (nframes, 3·natoms)",
            )
        frames = positions.reshape(-1, n, 3)
        if len(given) not in (1, len(frames)):
            raise DataError(f"types for {len(given)} frames and coords for {len(frames)}")
        known = (given >= VIRTUAL) & (given < self.model.n_types) & (given == np.floor(given))
        if not known.all():
            last = self.model.n_types - 1
            raise DataError(
                f"atom types hold {given[~known][0]:.15g}", expected=f"0 to {last}, or {VIRTUAL} where there is no atom"
            )
        types = np.broadcast_to(given.astype(np.int32), frames.shape[:2])
        wrong = ~(np.abs(frames) <= MAX_COORDINATE).all(axis=2) & (types != VIRTUAL)  # NaN is not below anything
        if wrong.any():
            frame, atom = np.argwhere(wrong)[0].tolist()
            problem = f"beyond {MAX_COORDINATE:g} Å" if np.isfinite(frames[frame, atom]).all() else "not finite"
            raise DataError(f"a position is {problem}", where=f"frame {frame}, atom {atom}")
        if cells is None:
            return frames, [None] * len(frames), types
        matrices = as_numbers("cells", cells)
        if matrices.size != 9 * len(frames):
            raise DataError(f"cells of shape {matrices.shape} for {len(frames)} frames", expected="(nframes, 9)")
        return frames, [Box(m) for m in matrices.reshape(-1, 3, 3)], types

    def _surroundings(
        self, frames: Doubles, boxes: list[Box | None], types: NDArray[np.int32]
    ) -> Iterator[tuple[int, NDArray[np.bool_], Surroundings]]:
        """Number, (natoms,) slots with atoms, and surroundings of each frame that has atoms."""
        for k, real in enumerate(types != VIRTUAL):
            if real.any():
                yield k, real, Surroundings.of(frames[k, real], boxes[k], types[k, real], self.get_rcut())

    def parameter_columns(
        self, n_frames: int, n: int, fparam: ArrayLike | None = None, aparam: ArrayLike | None = None
    ) -> Doubles | None:
        """(n_frames, n, numb_fparam + numb_aparam) parameters as the fitting net takes them; None if it takes none.

        `fparam` and `aparam` as in `eval`.

        Raises
        ------
        InputError, DataError
            The model takes parameters and none are given, or takes none; or they do not fit.
        """
        fitting = self.model.fitting
        if fparam is None and fitting.numb_fparam:
            fparam = fitting.default_fparam
        per_frame = _parameters("fparam", fparam, fitting.numb_fparam, (n_frames,))
        per_atom = _parameters("aparam", aparam, fitting.numb_aparam, (n_frames, n))
        if per_frame is not None:
            per_frame = np.repeat(per_frame, n, axis=0)
        if per_atom is not None:
            per_atom = per_atom.reshape(n_frames * n, -1)
        columns = fitting.parameter_columns(per_frame, per_atom)
        return None if columns is None else columns.reshape(n_frames, n, -1)


def _parameters(name: str, values: ArrayLike | None, width: int, shape: tuple[int, ...]) -> Doubles | None:
    """Frame or atomic parameters broadcast to (*shape, width), as DeePMD-kit broadcasts them."""
    if (values is None) != (width == 0):
        given = "and none are given" if values is None else "and some are given"
        raise InputError(f"the model takes {width or 'no'} '{name}' {given}")
    if values is None:
        return None
    array = as_numbers(name, values)
    full = (*shape, width)
    for k in range(len(full)):
        if array.size == np.prod(full[k:]):
            return np.broadcast_to(array.reshape(full[k:]), full)
    raise DataError(f"{name} of shape {array.shape}", expected=f"{full}")


def as_numbers(name: str, values: ArrayLike) -> Doubles:
    """An argument as an array; raises DataError."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # text, lists of unequal lengths, …
        raise DataError(f"'{name}' is no array of numbers", expected="numbers, as many in each row") from None
