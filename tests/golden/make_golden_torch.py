"""Makes models/NAME.pth of some golden models, and models/trained.* and stripped.*.

`trained` is a checkpoint of `dp --pt train`, the model frozen from it and compressed, converted without compression,
and what DeePMD-kit computes with the compressed one; `stripped` is a checkpoint of `se_atten` with the old word for
`tebd_input_mode`, converted as well.  The TorchScript code is left out of the `.pth` files: it is nine
tenths of them, and is not read.

    /tmp/peer/bin/python tests/golden/make_golden_torch.py
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MODELS = Path(__file__).parent / "models"
NAMES = (
    "one_type", "float32_fitting", "exclude_two_sided", "pair_exclude", "atom_ener_param", "relu6_relu", "dpa1_v2",
    "dpa1_concat_electrons", "dpa1_strip_resnet_dt", "dpa1_strip_smooth_one_sided",
)  # fmt: skip
INPUT: dict[str, Any] = {
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "sel": [20, 40], "neuron": [4, 8], "axis_neuron": 4,
            "exclude_types": [[0, 0]], "set_davg_zero": True, "seed": 1,
        },
        "fitting_net": {"neuron": [8, 8], "seed": 1},
        "atom_exclude_types": [1],
    },
    "learning_rate": {"type": "exp", "start_lr": 0.001, "stop_lr": 1e-8, "decay_steps": 5},
    "loss": {"start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 10, "limit_pref_f": 1},
    "training": {
        "training_data": {"systems": ["data"], "batch_size": 1}, "numb_steps": 2, "seed": 1, "disp_freq": 1,
        "save_freq": 2,
    },
}  # fmt: skip


def stripped() -> dict[str, Any]:
    given = copy.deepcopy(INPUT)
    given["model"]["descriptor"] = {
        "type": "se_atten", "rcut": 4.0, "rcut_smth": 0.5, "sel": 60, "neuron": [2, 4], "axis_neuron": 2,
        "attn_layer": 0, "tebd_dim": 2, "stripped_type_embedding": True, "set_davg_zero": True, "seed": 1,
    }  # fmt: skip
    return given


def dp(folder: Path, *arguments: str) -> None:
    program = [sys.executable, "-c", "import sys; from deepmd.main import main; main(sys.argv[1:])"]
    subprocess.run([*program, *arguments], cwd=folder, check=True)


def without_code(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as part:
        for info in whole.infolist():
            if "/code/" not in info.filename:
                part.writestr(zipfile.ZipInfo(info.filename), whole.read(info))


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    coord = (2.1 * grid + rng.normal(scale=0.2, size=(4, 27, 3))).reshape(4, -1)
    arrays = {
        "coord": coord, "box": np.tile(6.3 * np.eye(3).ravel(), (4, 1)), "energy": rng.normal(size=4),
        "force": rng.normal(size=(4, 81)),
    }  # fmt: skip
    (folder / "set.000").mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", array)
    np.savetxt(folder / "type.raw", np.arange(27) % 2, fmt="%d")
    (folder / "type_map.raw").write_text("O\nH\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in NAMES:
            dp(folder, "convert-backend", str(MODELS / f"{model}.dp"), f"{model}.pth")
            without_code(folder / f"{model}.pth", MODELS / f"{model}.pth")
        write_data(folder / "data")
        (folder / "input.json").write_text(json.dumps(INPUT))
        dp(folder, "--pt", "train", "input.json", "--skip-neighbor-stat")
        dp(folder, "--pt", "freeze", "-o", "frozen.pth")
        dp(folder, "--pt", "compress", "-i", "frozen.pth", "-o", "compressed.pth", "-s", "0.25", "-t", "input.json")
        dp(folder, "convert-backend", "frozen.pth", "trained.dp")
        shutil.copy(folder / "model.ckpt-2.pt", MODELS / "trained.pt")
        shutil.copy(folder / "trained.dp", MODELS / "trained.dp")
        without_code(folder / "compressed.pth", MODELS / "trained.pth")
        (folder / "input.json").write_text(json.dumps(stripped()))
        dp(folder, "--pt", "train", "input.json", "--skip-neighbor-stat")
        dp(folder, "--pt", "freeze", "-o", "stripped.pth")
        dp(folder, "convert-backend", "stripped.pth", "stripped.dp")
        shutil.copy(folder / "model.ckpt-2.pt", MODELS / "stripped.pt")
        shutil.copy(folder / "stripped.dp", MODELS / "stripped.dp")
        from deepmd.infer import DeepPot

        coord, box = (np.load(folder / "data" / "set.000" / f"{key}.npy") for key in ("coord", "box"))
        types = np.arange(27) % 2
        energy, force, virial = DeepPot(str(folder / "compressed.pth")).eval(coord, box, types)
        np.savez(MODELS / "trained.npz", coord=coord, box=box, types=types, energy=energy, force=force, virial=virial)


if __name__ == "__main__":
    main()
