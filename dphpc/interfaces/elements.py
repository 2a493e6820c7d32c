"""Models for programs that identify atoms by their element: the common base of the interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike, NDArray

from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.ops.threads import set_threads
from dphpc.potential.committee import COLUMNS, deviation_of, load_committee
from dphpc.potential.contract import Outputs
from dphpc.potential.surroundings import KeptSurroundings, Surroundings

Model = str | Path | DPModel

UNKNOWN = -1
"""Marks an element that the model does not know."""


class ElementPotential:
    """A Deep Potential whose types are given by elements; several models also give their deviation.

    Parameters
    ----------
    model
        A model file, or a model in memory; or several with the same types: the first one gives the
        results.
    type_map
        Element of each of the model's types, needed if the model's names are no element symbols; or the type of each
        element: `{"O": 0, "H": 1}`.
    precision
        `float64`, `mixed`, `tf32` or `float32`.
    threads
        Number of threads of this process's kernels from now on; unchanged if not given.
    device
        `cpu`, `cuda`, or `auto`: a GPU if there is one.

    Attributes
    ----------
    models
        The potentials.
    elements
        The element of each type.

    Raises
    ------
    InputError, ModelFileError
        A file is no model, models differ in their types, or an argument is wrong.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        type_map: Sequence[str] | Mapping[str, int] | None = None,
        precision: str = "float64",
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        models = [model] if isinstance(model, (str, Path, DPModel)) else list(model)
        if not models:
            raise InputError("no model is given", expected="a model file, or several")
        if threads is not None:
            set_threads(threads)
        self.models = load_committee(models, precision, device)
        self.elements = self.models[0].get_type_map() if type_map is None else _by_type(type_map)
        self._type_of = _type_of(self.elements, self.models[0].get_ntypes())

    def types_of(self, numbers: NDArray[np.integer], indices: Sequence[int] | None = None) -> NDArray[np.int32]:
        """Types (natoms,) of atoms with these atomic numbers (natoms,).

        Parameters
        ----------
        indices
            (natoms,) indices that an error gives for the atoms; by default 0, 1, …

        Raises
        ------
        InputError
            The model does not know an element.
        """
        known = (numbers >= 0) & (numbers < len(self._type_of))
        types = np.where(known, self._type_of[np.where(known, numbers, 0)], np.int32(UNKNOWN))
        if types.min() == UNKNOWN:
            first = int(types.argmin())
            name = chemical_symbols[numbers[first]] if known[first] else f"of number {numbers[first]}"
            index = first if indices is None else indices[first]
            raise InputError(
                f"the structure has element {name}, which the model does not know",
                where=f"atom {index}", expected=f"elements of the model: {', '.join(self.elements)}",
                remedy="where the model has other names for its types, say type_map=[element of each type]",
            )  # fmt: skip
        return types

    def surroundings(self, skin: float) -> KeptSurroundings:
        """Surroundings up to the largest cutoff of the models, kept with a skin in Å."""
        return KeptSurroundings(max(dp.get_rcut() for dp in self.models), skin)

    def evaluate(
        self, around: Surroundings, fparam: ArrayLike | None = None, aparam: ArrayLike | None = None
    ) -> tuple[Outputs, dict[str, float]]:
        """Evaluate one structure.

        Parameters
        ----------
        fparam, aparam
            Frame parameters (numb_fparam,), and atomic parameters (natoms, numb_aparam) or (numb_aparam,), if the
            model needs them.

        Returns
        -------
        The outputs of the first model, with forces (natoms, 3) of the atoms without ghosts; and the deviation of
        several models by the columns of `dphpc model-devi`, empty for one.

        Raises
        ------
        InputError, DataError
            Parameters are missing, or have the wrong shape.
        """
        outputs = []
        for dp in self.models:
            columns = dp.parameter_columns(1, around.state.n_local, fparam, aparam)
            outputs.append(dp.evaluate(around, None if columns is None else columns[0]))
        if len(outputs) == 1:
            return outputs[0], {}
        return outputs[0], dict(zip(COLUMNS, deviation_of(outputs).tolist(), strict=True))


def _by_type(type_map: Sequence[str] | Mapping[str, int]) -> list[str]:
    """The element of each type, from either form of `type_map`."""
    if isinstance(type_map, Mapping):
        numbers = list(type_map.values())
        if not all(isinstance(n, int | np.integer) for n in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise InputError(
                f"type_map is {dict(type_map)}", expected=f"types 0 to {len(numbers) - 1}, each of one element"
            )
        type_map = sorted(type_map, key=type_map.__getitem__)
    if isinstance(type_map, str) or not all(isinstance(name, str) for name in type_map):
        raise InputError(f"type_map is {type_map!r}", expected='a list of element symbols, such as ["O", "H"]')
    return list(type_map)


def _type_of(elements: Sequence[str], n_types: int) -> NDArray[np.int32]:
    """(n_elements,) the model's type of each atomic number, or `UNKNOWN`."""
    if len(elements) != n_types:
        raise InputError(f"type_map names {len(elements)} elements", expected=f"{n_types}, one for each of the model's")
    if len(set(elements)) != n_types:
        raise InputError(f"type_map {' '.join(elements)} names an element twice")
    type_of = np.full(len(chemical_symbols), UNKNOWN, np.int32)
    for number, name in enumerate(elements):
        if name in atomic_numbers:  # a name that is no element's is allowed: no atom has it
            type_of[atomic_numbers[name]] = number
    return type_of
