"""DeePMD-kit's `stat_file`: sums over the data, stored so that the next training need not compute them.

It is an HDF5 file (.h5, .hdf5) or a folder of NumPy files.  A group named by the type map ("O H") holds
`bias_atom_energy` and `std_atom_energy` (ntypes, 1), `fparam` and `aparam` (k, 3), `observed_type`, and in a group
named by a hash of the descriptor's parameters `r_i` and `a_i`: number, sum and sum of squares for center type i.  The
hash lacks some options that change the sums.  We store them as a text `dphpc_options`; if it differs, the sums are
computed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError
from dphpc.core.files import whole
from dphpc.train.schema.model import ModelConfig

_OPTIONS = "dphpc_options"


@dataclass(frozen=True)
class Moments:
    """The sums over the sampled data from which statistics are computed: the content of a `stat_file`.

    Attributes
    ----------
    radial, angular
        (ntypes, 3) number, sum and sum of squares, by center type: of s, and of the three direction terms together.
    fparam, aparam
        (numb_fparam, 3), (numb_aparam, 3), or None if the model takes none.
    energy_bias, energy_std
        (ntypes,) eV, and the standard deviation of the fit's residual, eV.
    """

    radial: Doubles
    angular: Doubles
    energy_bias: Doubles
    energy_std: float
    fparam: Doubles | None = None
    aparam: Doubles | None = None


def load_moments(path: Path, model: ModelConfig) -> Moments | None:
    """The sums stored for this model, or None if any is missing.

    Raises
    ------
    DataError
        The file is damaged or an array has the wrong shape.
    """
    shapes = _shapes(model)
    found = _read(path, [*shapes, _key(model, _OPTIONS)])
    options = found.pop(_key(model, _OPTIONS), None)
    if set(found) != set(shapes) or (options is not None and bytes(options.item()) != _options(model)):
        return None
    for name, shape in shapes.items():
        if found[name].dtype.kind not in "fiu" or found[name].shape != shape or not np.isfinite(found[name]).all():
            raise DataError(
                f"'{name}' is not an array of {shape} finite numbers", where=str(path), remedy="remove the file"
            )
    n, h = model.n_types, _hash(model)
    values = {name: np.asarray(array, np.float64) for name, array in found.items()}
    return Moments(
        radial=np.array([values[_key(model, f"{h}/r_{i}")] for i in range(n)]),
        angular=np.array([values[_key(model, f"{h}/a_{i}")] for i in range(n)]),
        energy_bias=values[_key(model, "bias_atom_energy")][:, 0],
        energy_std=float(values[_key(model, "std_atom_energy")][0, 0]),
        fparam=values.get(_key(model, "fparam")),
        aparam=values.get(_key(model, "aparam")),
    )


def save_moments(path: Path, moments: Moments, model: ModelConfig) -> None:
    """Store the sums; those of other models in the file are kept."""
    h, n = _hash(model), model.n_types
    observed = [name for name, m in zip(model.type_map, moments.radial, strict=True) if m[0] > 0]
    arrays = {
        "bias_atom_energy": moments.energy_bias[:, None],
        "std_atom_energy": np.full((n, 1), moments.energy_std),
        "observed_type": np.array(observed, dtype="S"),
        _OPTIONS: np.array(_options(model)),
        **{f"{h}/r_{i}": moments.radial[i] for i in range(n)},
        **{f"{h}/a_{i}": moments.angular[i] for i in range(n)},
    }
    arrays |= {k: v for k, v in (("fparam", moments.fparam), ("aparam", moments.aparam)) if v is not None}
    _write(path, {_key(model, name): array for name, array in arrays.items()})


def _key(model: ModelConfig, name: str) -> str:
    return " ".join(model.type_map) + "/" + name


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    n, h, net = model.n_types, _hash(model), model.fitting_net
    shapes: dict[str, tuple[int, ...]] = {"bias_atom_energy": (n, 1), "std_atom_energy": (n, 1)}
    shapes |= {f"{h}/{kind}_{i}": (3,) for kind in "ra" for i in range(n)}
    shapes |= {"fparam": (net.numb_fparam, 3)} if net.numb_fparam else {}
    shapes |= {"aparam": (net.numb_aparam, 3)} if net.numb_aparam else {}
    return {_key(model, name): shape for name, shape in shapes.items()}


def _hash(model: ModelConfig) -> str:
    """DeePMD-kit's name for a descriptor's sums: the SHA-1 of these parameters as JSON."""
    d = model.descriptor
    assert isinstance(d.sel, list)
    parameters = {
        "type": "se_a",
        "ntypes": model.n_types,
        "rcut": round(d.rcut, 2),
        "rcut_smth": round(d.rcut_smth, 2),
        "nsel": sum(d.sel),
        "sel": d.sel,
        "mixed_types": d.mixed,
    }
    return hashlib.sha1(json.dumps(parameters).encode(), usedforsecurity=False).hexdigest()


def _options(model: ModelConfig) -> bytes:
    options = {
        "exclude_types": sorted(sorted(pair) for pair in model.descriptor.exclude_types),
        "pair_exclude_types": sorted(sorted(pair) for pair in model.pair_exclude_types),
        "atom_exclude_types": sorted(model.atom_exclude_types),
        "env_protection": model.descriptor.env_protection,
        "rcut": [model.descriptor.rcut, model.descriptor.rcut_smth],
        "atom_ener": model.fitting_net.atom_ener,
        "rcond": model.fitting_net.rcond,
    }
    return json.dumps(options).encode()


def _is_hdf5(path: Path) -> bool:
    return path.suffix in (".h5", ".hdf5")


def _read(path: Path, names: Sequence[str]) -> dict[str, NDArray]:
    if not path.exists():
        return {}
    try:
        if _is_hdf5(path):
            with h5py.File(path, "r") as file:
                return {name: np.asarray(file[name][()]) for name in names if name in file}
        return {
            n: np.load(io.BytesIO((path / n).read_bytes()), allow_pickle=False) for n in names if (path / n).is_file()
        }
    except Exception as error:  # h5py raises anything for a damaged file
        raise DataError(f"the stat_file cannot be read: {error}", where=str(path), remedy="remove it") from None


def _write(path: Path, arrays: dict[str, NDArray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _is_hdf5(path):
        for name, array in arrays.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            with whole(path / name) as partial, partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        return
    with whole(path) as partial:
        if path.exists():
            shutil.copyfile(path, partial)
        with h5py.File(partial, "a") as group:
            for name, array in arrays.items():
                if name in group:
                    del group[name]
                group[name] = array
