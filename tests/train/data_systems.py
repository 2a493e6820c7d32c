"""Small data systems, the same wherever they are made (also by DeePMD-kit's own Python, see make_statistics_golden)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TYPE_MAP = ["O", "H", "X"]
TRICLINIC = np.array([[6.2, 0.0, 0.0], [0.7, 6.0, 0.0], [-0.4, 0.9, 6.4]])


def make_system(seed: int, *, n_frames: int, types: list[int], box: np.ndarray | None) -> dict[str, Any]:
    """Atoms near the points of a grid of 3³, with random labels.

    Keys are DeePMD-kit's file names: coord (n_frames, 3n), box, energy, force, virial, atom_ener, atom_pref,
    fparam (2 columns), aparam (1 column); and types.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0])).random
    n = len(types)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:n] / 3.0
    cell = TRICLINIC if box is None else box
    coord = (grid + 0.12 * (random((n_frames, n, 3)) - 0.5)) @ cell
    data: dict[str, Any] = {
        "types": np.array(types),
        "coord": coord.reshape(n_frames, -1),
        "energy": -90.0 * n + random((n_frames,)),
        "force": random((n_frames, 3 * n)) - 0.5,
        "virial": random((n_frames, 9)) - 0.5,
        "atom_ener": random((n_frames, n)),
        "atom_pref": random((n_frames, n)),
        "fparam": random((n_frames, 2)),
        "aparam": random((n_frames, n)),
    }
    if box is not None:
        data["box"] = np.tile(box.ravel(), (n_frames, 1))
    return data


def two_systems() -> list[dict[str, Any]]:
    """A triclinic periodic system of O and H, and an open one that has X as well."""
    return [
        make_system(1, n_frames=5, types=[0] * 12 + [1] * 15, box=TRICLINIC),
        make_system(2, n_frames=3, types=[0, 1, 2] * 4 + [1, 1], box=None),
    ]


def write_npy(folder: Path, data: dict[str, Any], *, type_map: list[str] | None = None, sets: int = 1) -> Path:
    """Write a system as `deepmd/npy`; its types count in `type_map` (`TYPE_MAP` if None)."""
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("\n".join(map(str, data["types"])) + "\n")
    (folder / "type_map.raw").write_text("\n".join(type_map or TYPE_MAP) + "\n")
    if "box" not in data:
        (folder / "nopbc").touch()
    arrays = {name: array for name, array in data.items() if name != "types"}
    for k, rows in enumerate(np.array_split(np.arange(len(arrays["coord"])), sets)):
        (folder / f"set.{k:03d}").mkdir()
        for name, array in arrays.items():
            np.save(folder / f"set.{k:03d}" / f"{name}.npy", array[rows])
    return folder
