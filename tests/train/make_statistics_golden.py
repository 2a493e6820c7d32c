"""Makes statistics_golden.json with DeePMD-kit 3.2 (PyTorch back end), which judges our statistics.

/path/to/deepmd/bin/python tests/train/make_statistics_golden.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.data_systems import TYPE_MAP, two_systems

DESCRIPTOR = {"type": "se_e2_a", "sel": [30, 30, 30], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [2, 4], "axis_neuron": 2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "exclude_types": {"descriptor": {"exclude_types": [[0, 1]], "set_davg_zero": True}},
    "pair_exclude_types": {"pair_exclude_types": [[1, 1], [0, 2]], "descriptor": {"env_protection": 0.2}},
    "sel_0": {"descriptor": {"sel": [30, 0, 30]}},
    "atom_exclude_types": {"atom_exclude_types": [1]},
    "rcond": {"fitting_net": {"rcond": 0.2}},
    "atom_ener": {"fitting_net": {"atom_ener": [None, -88.0, None]}},
    "parameters": {"fitting_net": {"numb_fparam": 2, "numb_aparam": 1}, "data_stat_protect": 0.288},
}


def model_section(case: str) -> dict[str, Any]:
    """The `model` section of a case."""
    changes = dict(CASES[case])
    descriptor = {**DESCRIPTOR, **changes.pop("descriptor", {})}
    fitting = {"type": "ener", "neuron": [4], **changes.pop("fitting_net", {})}
    return {"type_map": TYPE_MAP, "descriptor": descriptor, "fitting_net": fitting, **changes}


def statistics(case: str) -> dict[str, Any]:
    """What DeePMD-kit makes of all frames of both systems."""
    import torch
    from deepmd.pt.model.model import get_model

    samples = []
    for system in two_systems():
        n_frames, types = len(system["coord"]), system["types"]
        counts = [len(types), len(types), *np.bincount(types, minlength=len(TYPE_MAP))]
        sample = {name: torch.tensor(system[name].reshape(n_frames, -1)) for name in ("energy", "fparam")}
        sample |= {
            "coord": torch.tensor(system["coord"].reshape(n_frames, -1, 3)),
            "atype": torch.tensor(np.tile(types, (n_frames, 1))),
            "natoms": torch.tensor(np.tile(counts, (n_frames, 1))),
            "box": torch.tensor(system["box"]) if "box" in system else None,
            "aparam": torch.tensor(system["aparam"][:, :, None]),
            "find_energy": np.float32(1.0),
        }
        samples.append(sample)
    section = model_section(case)
    model = get_model(json.loads(json.dumps(section)))
    model.compute_or_load_stat(lambda: samples)
    data = model.serialize()
    davg, dstd = (np.asarray(data["descriptor"]["@variables"][name]) for name in ("davg", "dstd"))
    fitting = data["fitting"]["@variables"]
    found = {
        "davg": davg[:, 0, 0],
        "dstd": dstd[:, 0, :2],
        "energy_bias": np.asarray(data["@variables"]["out_bias"])[0, :, 0],
        "energy_std": np.asarray(data["@variables"]["out_std"])[0, :, 0],
        **{name: fitting[name] for name in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")},
    }
    if "rcond" in case or "atom_ener" in case:
        found["energy_bias"], found["energy_std"] = documented_bias(section["fitting_net"])
    return {name: None if value is None else np.asarray(value).tolist() for name, value in found.items()}


def documented_bias(fitting: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The bias by DeePMD-kit's own regression with `rcond` and `atom_ener` as documented.

    Its PyTorch back end (3.2.0) does not hand them to the regression; its TensorFlow back end does.
    """
    from deepmd.utils.out_stat import compute_stats_from_redu

    systems = two_systems()
    energies = np.concatenate([system["energy"] for system in systems])[:, None]
    counts = [np.tile(np.bincount(s["types"], minlength=len(TYPE_MAP)), (len(s["coord"]), 1)) for s in systems]
    given = fitting.get("atom_ener")
    assigned = None if given is None else np.array([[np.nan if e is None else e] for e in given])
    bias, std = compute_stats_from_redu(energies, np.concatenate(counts).astype(float), assigned, fitting.get("rcond"))
    return bias[:, 0], np.full(len(TYPE_MAP), std[0])


if __name__ == "__main__":
    import deepmd

    golden = {"deepmd-kit": deepmd.__version__, "cases": {case: statistics(case) for case in CASES}}
    (Path(__file__).parent / "statistics_golden.json").write_text(json.dumps(golden, indent=1) + "\n")
