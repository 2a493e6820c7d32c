"""Converting other programs' files into DeePMD-kit systems, through dpdata and ASE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dphpc.core.errors import DataError, InputError, counted
from dphpc.train.data.writer import Configuration, require_free, write_systems
from dphpc.train.readers import read_configurations

_BY_ENDING = {".h5": "deepmd/hdf5", ".hdf5": "deepmd/hdf5", ".lmdb": "deepmd/lmdb"}
"""Suffix of the output, and its format."""

_OTHER_ENDINGS = (
    ".extxyz",
    ".xyz",
    ".traj",
    ".cif",
    ".poscar",
    ".vasp",
    ".lmp",
    ".data",
    ".dump",
    ".lammpstrj",
    ".npy",
)
"""Suffixes that no folder of systems is likely to have."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes
    ----------
    labels
        Number of frames that have each label.
    held_out
        Where the frames for validation are, and how many they are; None if there are none.
    """

    output: str
    output_format: str
    systems: list[str]
    n_frames: int
    n_atoms: tuple[int, int]
    type_map: list[str]
    labels: dict[str, int]
    held_out: tuple[str, int] | None = None

    def lines(self) -> list[str]:
        """A summary for the screen."""
        where = f"{counted(len(self.systems), 'system')} to {self.output} ({self.output_format})"
        facts = {
            "validation": f"{counted(self.held_out[1], 'frame')} in {self.held_out[0]}" if self.held_out else "",
            "atoms a frame": " to ".join(str(n) for n in sorted(set(self.n_atoms))),
            "type map": " ".join(self.type_map),
            "labels": ", ".join(f"{k} ({counted(n, 'frame')})" for k, n in self.labels.items())
            or "none: nothing to train on",
        }
        title = f"wrote {counted(self.n_frames, 'frame')} in {where}"
        return [title, *(f"  {name + ':':15}{fact}" for name, fact in facts.items() if fact)]


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    input_format: str | None = None,
    output_format: str | None = None,
    type_map: Sequence[str] | None = None,
    hold_out: float = 0.0,
) -> ConversionReport:
    """Convert files that dpdata or ASE read, or DeePMD-kit systems, into DeePMD-kit systems.

    Parameters
    ----------
    input
        One or several files or folders.
    input_format
        dpdata's name (`vasp/outcar`, `qe/pw/scf`, …), DeePMD-kit's (`deepmd/npy`, …), or `ase` or `ase/<format>`;
        guessed from the name if None.
    output_format
        `deepmd/npy` (default), `deepmd/npy/mixed`, `deepmd/hdf5` (default for .h5 and .hdf5), or `deepmd/lmdb`
        (default for .lmdb).
    type_map
        Order of the types; None: the order in which they are met.  It also names types that are numbers in a file.
    hold_out
        Fraction of the frames that are written to an output of their own for validation (`validation_name`), at equal
        distances in the input.

    Raises
    ------
    InputError
        Unknown format, an output exists, or `hold_out` leaves no frame for training or validation.
    DataError
        The input cannot be read, holds no frames, or has an element outside `type_map`.
    """
    if output_format is None and Path(output).suffix in _OTHER_ENDINGS:
        raise InputError(
            f"'{output}' seems to be a file of structures, which is not written",
            expected="a folder (npy), or a name ending in .hdf5 or .lmdb", remedy="ASE and dpdata write others",
        )  # fmt: skip
    paths = [Path(p) for p in ([input] if isinstance(input, str | Path) else input)]
    target = output_format or _BY_ENDING.get(Path(output).suffix, "deepmd/npy")
    frames = [frame for path in paths for frame in read_configurations(path, input_format, type_map)]
    if not frames:
        raise DataError(
            "the input holds no frames", where=", ".join(map(str, paths)), expected="at least one structure",
            remedy="check that the calculation ended, and that the format is right (--format)",
        )  # fmt: skip
    names = list(type_map) if type_map else list(dict.fromkeys(s for f in frames for s in f.symbols))
    training, validation = _split(frames, hold_out)
    held_out = None
    if validation:
        beside = validation_name(output)
        require_free(beside)
        held_out = str(beside), len(validation)
    systems = write_systems(training, names, output, target)
    if held_out:
        write_systems(validation, names, held_out[0], target)
    sizes = [len(f.symbols) for f in training]
    labels = Counter(name for f in training for name in f.values)
    return ConversionReport(
        str(output), target, systems, len(training), (min(sizes), max(sizes)), names, dict(sorted(labels.items())),
        held_out,
    )  # fmt: skip


def validation_name(output: str | Path) -> Path:
    """Name of the output for validation beside that for training: data_valid, data_valid.hdf5."""
    path = Path(output)
    suffix = path.suffix if path.suffix in _BY_ENDING else ""
    return path.with_name(f"{path.name.removesuffix(suffix)}_valid{suffix}")


def _split(frames: list[Configuration], fraction: float) -> tuple[list[Configuration], list[Configuration]]:
    """Frames for training and for validation, the latter at equal distances."""
    n = round(fraction * len(frames))
    if fraction and not 0 < n < len(frames):
        raise InputError(
            f"of {counted(len(frames), 'frame')} a fraction of {fraction:g} is {n}", where="--hold-out",
            expected="at least one frame for training and one for validation",
        )  # fmt: skip
    chosen = {int((k + 0.5) * len(frames) / n) for k in range(n)}
    training = [frame for i, frame in enumerate(frames) if i not in chosen]
    return training, [frames[i] for i in sorted(chosen)]
