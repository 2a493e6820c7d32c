"""`dphpc test`, `model-devi` and `eval-desc`: evaluating models on the frames of DeePMD-kit systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from dphpc.core.arrays import Doubles
from dphpc.core.errors import DataError, InputError, writing
from dphpc.core.files import whole
from dphpc.model.dp_model import DPModel
from dphpc.potential.committee import (
    COLUMNS,
    PLAIN,
    Measure,
    Reference,
    append_model_devi,
    deviation_of,
    load_committee,
)
from dphpc.potential.contract import Outputs
from dphpc.potential.deep_pot import DeepPot
from dphpc.potential.surroundings import Surroundings
from dphpc.train.data.dataset import open_systems
from dphpc.train.data.system import LABELS, Frame, FrameInputs, System

_COMPONENTS = ("xx", "xy", "xz", "yx", "yy", "yz", "zx", "zy", "zz")
_DETAILS = {
    "e": ["data_e", "pred_e"],
    "e_peratom": ["data_e", "pred_e"],
    "f": [f"{side}_f{x}" for side in ("data", "pred") for x in "xyz"],
    "v": [f"{side}_v{c}" for side in ("data", "pred") for c in _COMPONENTS],
    "v_peratom": [f"{side}_v{c}" for side in ("data", "pred") for c in _COMPONENTS],
    "s": [f"{side}_s{c}" for side in ("data", "pred") for c in _COMPONENTS],
    "ae": ["data_ae", "pred_ae"],
}
"""Columns of the detail files PREFIX.e.out, …, named as by `dp test` (which writes no PREFIX.ae.out)."""

_HEAD_UNITS = {"s": " (eV/Å³)"}
"""What `dp test` writes after a system's name in a detail file's header."""

_WEIGHTED = "f_weighted"
"""Errors of the forces weighted by `atom_pref`; they are formed from the rows "f" and have no detail file."""

_NAMES = {
    "e": ("Energy", "", "eV"),
    "e_peratom": ("Energy", "/Natoms", "eV"),
    "f": ("Force ", "", "eV/Å"),
    _WEIGHTED: ("Force weighted", "", "eV/Å"),
    "v": ("Virial", "", "eV"),
    "v_peratom": ("Virial", "/Natoms", "eV"),
    "s": ("Stress", "", "eV/Å³"),
    "ae": ("Atomic ener", "", "eV"),
}
"""Words of the printed errors, as `dp test` prints them."""


@dataclass
class Errors:
    """Labels beside predictions: rows (data, prediction) of each quantity in `_DETAILS`.

    Attributes
    ----------
    weights
        (n_atoms,) `atom_pref` for each entry of `rows["f"]`, None if the frame has none.
    """

    rows: dict[str, list[Doubles]] = field(default_factory=lambda: {name: [] for name in _DETAILS})
    weights: list[Doubles | None] = field(default_factory=list)

    def add(self, name: str, label: Doubles, prediction: Doubles) -> None:
        """Append rows of one quantity, label and prediction (n, width)."""
        self.rows[name].append(np.concatenate((label, prediction), axis=1))

    def table(self, name: str) -> Doubles | None:
        """All rows of a quantity, or None if no frame has its label."""
        return np.concatenate(self.rows[name]) if self.rows[name] else None

    def measures(self, name: str) -> tuple[float, float] | None:
        """MAE and RMSE of a quantity; None if no frame has its label, or all weights are 0."""
        if name == _WEIGHTED:
            weighted = [(r, w) for r, w in zip(self.rows["f"], self.weights, strict=True) if w is not None]
            rows = np.concatenate([r for r, _ in weighted]) if weighted else None
            weights = np.concatenate([w for _, w in weighted]) if weighted else None
        else:
            rows, weights = self.table(name), None
        if rows is None or (weights is not None and weights.sum() == 0.0):
            return None
        half = rows.shape[1] // 2
        difference = rows[:, half:] - rows[:, :half]
        mae, mse = (np.average(a.mean(axis=1), weights=weights) for a in (np.abs(difference), difference**2))
        return float(mae), float(np.sqrt(mse))

    def __str__(self) -> str:
        lines = []
        for name, (kind, per, unit) in _NAMES.items():
            for measure, value in zip(("MAE", "RMSE"), self.measures(name) or (), strict=False):
                lines.append(f"{f'{kind} {measure}{per}':<19}: {value:e} {unit}")
        return "\n".join(lines)


@dataclass
class TestReport:
    """Errors of each system and of all of them together."""

    systems: dict[str, Errors]
    n_frames: dict[str, int]

    @property
    def total(self) -> Errors:
        """All systems' rows."""
        joined = Errors()
        for errors in self.systems.values():
            for name, rows in errors.rows.items():
                joined.rows[name] += rows
            joined.weights += errors.weights
        return joined

    def __str__(self) -> str:
        lines = []
        for name, errors in self.systems.items():
            lines += [f"# testing system : {name}", f"number of test data : {self.n_frames[name]}", str(errors), ""]
        if len(self.systems) == 1:
            return "\n".join(lines[:-1])
        return "\n".join([*lines, f"# all {len(self.systems)} systems", str(self.total)])


def test(
    model: str | Path,
    systems: str | Sequence[str],
    n_frames: int = 0,
    detail_prefix: str | Path | None = None,
    shuffle_seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    atomic: bool = False,
    device: str = "cpu",
) -> TestReport:
    """Errors of a model's energies, forces and virials on labelled frames.

    Parameters
    ----------
    systems
        A system, a folder to be searched, `file.hdf5#/group`, `data.lmdb`, or several of them.
    n_frames
        Frames of each system; 0 means all.
    detail_prefix
        Write every label and prediction to `PREFIX.e.out`, `.e_peratom.out`, `.f.out`, `.v.out`, `.v_peratom.out`,
        `.s.out`, `.ae.out`.
    shuffle_seed
        Draw the frames at random with this seed; None takes the first ones.
    progress
        Called with the number of frames done and in all.
    atomic
        Also report errors of atomic energies; every system needs these labels.
    device
        `cpu`, `cuda` or `auto`, as for `DeepPot`.

    Raises
    ------
    DataError, ModelFileError
        Missing or damaged files, a system without any label, or without atomic energies where `atomic`.
    """
    dp = DeepPot(model, device=device)
    opened = systems_for(dp.model, systems)
    for system in opened:
        if atomic:
            _require_labels(system, ["atom_ener"], "--atomic")
        elif not system.labels & {"energy", "forces", "virial"}:
            raise DataError("the system has no labels to test against", where=system.name, expected="energy.npy, …")
    chosen = [_choose(s.n_frames, n_frames, shuffle_seed) for s in opened]
    total, done = sum(map(len, chosen)), 0
    report = TestReport({}, {})
    for system, indices in zip(opened, chosen, strict=True):
        errors = Errors()
        for index in indices:
            frame = system.frame(int(index))
            _compare(frame, predict(dp, frame, system.periodic), errors, system.periodic, atomic)
            done += 1
            if progress:
                progress(done, total)
        report.systems[system.name], report.n_frames[system.name] = errors, len(indices)
    if detail_prefix is not None:
        _write_details(report, Path(detail_prefix))
    return report


def systems_for(model: DPModel, systems: str | Sequence[str]) -> list[System]:
    """Open systems with the model's type map and the parameters that it takes; raises DataError."""
    paths = [systems] if isinstance(systems, str) else systems
    return open_systems(paths, list(model.type_map), FrameInputs.of(model.fitting))


def _choose(available: int, wanted: int, seed: int | None) -> NDArray[np.int64]:
    order = np.arange(available) if seed is None else np.random.default_rng(seed).permutation(available)
    return order[:wanted] if wanted > 0 else order


def predict(dp: DeepPot, frame: Frame, periodic: bool) -> Outputs:
    """Energy, forces, virial and atomic energies of a frame."""
    box = frame.box if periodic else None
    around = Surroundings.of(frame.positions, box, frame.types, dp.get_rcut())
    return dp.evaluate(around, _parameters(dp, frame))


def _parameters(dp: DeepPot, frame: Frame) -> Doubles | None:
    """A frame's (natoms, numb_fparam + numb_aparam), None where the model takes none."""
    fparam = frame.fparam if dp.get_dim_fparam() else None  # the models of a committee may take different ones
    aparam = frame.aparam if dp.get_dim_aparam() else None
    columns = dp.parameter_columns(1, len(frame.types), fparam, aparam)
    return None if columns is None else columns[0]


def _compare(frame: Frame, predicted: Outputs, errors: Errors, periodic: bool, atomic: bool) -> None:
    n = len(frame.types)
    if frame.energy is not None:
        pair = np.array([[frame.energy]]), np.array([[predicted.energy]])
        errors.add("e", *pair)
        errors.add("e_peratom", pair[0] / n, pair[1] / n)
    if frame.forces is not None:
        errors.add("f", frame.forces, predicted.forces)
        errors.weights.append(frame.atom_pref)
    if frame.virial is not None and periodic:
        label, virial = frame.virial.reshape(1, 9), predicted.virial.reshape(1, 9)
        errors.add("v", label, virial)
        errors.add("v_peratom", label / n, virial / n)
        errors.add("s", -label / frame.box.volume, -virial / frame.box.volume)
    if atomic and frame.atom_ener is not None and predicted.atom_energy is not None:
        errors.add("ae", frame.atom_ener[:, None], predicted.atom_energy[:, None])


def _write_details(report: TestReport, prefix: Path) -> None:
    with writing(prefix.parent, "the folder"):
        prefix.parent.mkdir(parents=True, exist_ok=True)
    for name, columns in _DETAILS.items():
        tables = {system: errors.table(name) for system, errors in report.systems.items()}
        if all(table is None for table in tables.values()):
            continue
        path = prefix.with_name(f"{prefix.name}.{name}.out")
        with writing(path), whole(path) as partial, partial.open("w", encoding="utf-8") as file:
            for system, table in tables.items():
                if table is not None:
                    np.savetxt(
                        file, table, header=f"{system}{_HEAD_UNITS.get(name, '')}: {' '.join(columns)}", fmt="%.18e"
                    )


def model_devi(
    models: Sequence[str | Path],
    systems: str | Sequence[str],
    output: str | Path = "model_devi.out",
    frequency: int = 1,
    progress: Callable[[int, int], None] | None = None,
    *,
    measure: Measure = PLAIN,
    device: str = "cpu",
) -> Doubles:
    """Deviations of several models on the frames of systems, written in DeePMD-kit's columns.

    Parameters
    ----------
    frequency
        MD steps between two frames of a system, for the first column.
    measure
        What is measured: relative deviations, deviations from labels, each atom's deviation.
    device
        `cpu`, `cuda` or `auto`, as for `DeepPot`.

    Returns
    -------
    (n_frames, 7): `committee.COLUMNS` of all frames; each atom's deviations are in the file only.

    Raises
    ------
    InputError
        Fewer than two models (one will do for `real_error`), or models with different type maps.
    DataError
        A system without the labels that `real_error` needs.
    """
    if len(models) < (1 if measure.real_error else 2):
        raise InputError(f"{len(models)} model given", expected="two or more: -m A.dp B.dp")
    potentials = load_committee(models, device=device)
    opened = systems_for(potentials[0].model, systems)
    if measure.real_error:
        virial = [] if measure.relative_v is None else ["virial"]
        for system in opened:
            _require_labels(system, ["energy", "forces", *virial], "--real_error")
    total, path = sum(s.n_frames for s in opened), Path(output)
    collected: list[Doubles] = []
    with writing(path):
        path.write_text("")
    done = 0
    for system in opened:
        # In npy/mixed frames may have fewer atoms than the largest: rows are filled up with NaN.
        rows = np.full((system.n_frames, len(COLUMNS) + (system.n_atoms if measure.atomic else 0)), np.nan)
        for i, row in enumerate(rows):
            values = _deviation(potentials, system.frame(i), system.periodic, measure)
            row[: len(values)] = values
            done += 1
            if progress:
                progress(done, total)
        collected.append(rows[:, : len(COLUMNS)])
        append_model_devi(path, system.name, np.arange(len(rows)) * frequency, rows)
    return np.concatenate(collected)


def eval_desc(
    model: str | Path,
    systems: str | Sequence[str],
    output: str | Path = "desc",
    dtype: DTypeLike = np.float64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the descriptors of each system's atoms to `output/NAME.npy`, (nframes, natoms, M·axis), as `dp` does.

    Frames of npy/mixed with fewer atoms than the largest are filled up with 0.

    Raises
    ------
    DataError, ModelFileError
        Missing or damaged files, or two systems of one name.
    RunError
        A file cannot be written.
    """
    dp = DeepPot(model)
    opened = systems_for(dp.model, systems)
    files: dict[Path, System] = {}
    for system in opened:
        name = system.name.rstrip("/").replace("#", "/").rpartition("/")[2]
        path = Path(output) / f"{name}.npy"
        if path in files:
            raise DataError(f"two systems are named '{name}'", where=f"{files[path].name}, {system.name}")
        files[path] = system
    done, total = 0, sum(system.n_frames for system in opened)
    for path, system in files.items():
        shape = (system.n_frames, system.n_atoms, dp.model.descriptor.n_features)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:
                rows = open_memmap(partial, "w+", dtype, shape)  # a system's may be more than the memory
                for i in range(system.n_frames):
                    frame = system.frame(i)
                    box = frame.box.matrix if system.periodic else None
                    rows[i, : len(frame.types)] = dp.eval_descriptor(frame.positions, box, frame.types)[0]
                    done += 1
                    if progress:
                        progress(done, total)
                rows.flush()
    return list(files)


def _require_labels(system: System, labels: Sequence[str], flag: str) -> None:
    """Raise DataError unless a system has the labels that a flag needs."""
    missing = [LABELS[label].file for label in labels if label not in system.labels]
    if missing:
        raise DataError(
            f"no {' and no '.join(missing)}, which {flag} needs",
            where=system.name,
            expected=", ".join(LABELS[label].file for label in labels),
            remedy=f"leave out {flag}, or label the system",
        )


def _reference(frame: Frame, periodic: bool) -> Reference:
    """The labels of a frame, with NaN for a missing virial."""
    assert frame.energy is not None and frame.forces is not None
    virial = np.full(9, np.nan) if frame.virial is None or not periodic else frame.virial.ravel()
    return Reference(frame.energy, frame.forces, virial)


def _deviation(potentials: Sequence[DeepPot], frame: Frame, periodic: bool, measure: Measure) -> Doubles:
    """`committee.deviation_of` for a frame; all models share one neighbor list, of the largest cutoff."""
    cutoff = max(dp.get_rcut() for dp in potentials)
    around = Surroundings.of(frame.positions, frame.box if periodic else None, frame.types, cutoff)
    outputs = [dp.evaluate(around, _parameters(dp, frame)) for dp in potentials]
    return deviation_of(outputs, measure, _reference(frame, periodic) if measure.real_error else None)
