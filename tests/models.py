"""Small random models and structures for tests."""

from __future__ import annotations

import numpy as np

from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.fitting import EnergyFitting
from dphpc.model.networks import Network, initial_network


def random_model(seed: int = 0, n_types: int = 2, **options: object) -> DPModel:
    """A model with random weights and statistics, small nets, rcut 4.5 Å.

    `options` go to the descriptor, but for `one_side` (False), `activation` ("tanh") and `fitting` (a mapping for
    `EnergyFitting`).
    """
    rng = np.random.default_rng(seed)
    one_side = bool(options.pop("one_side", False))
    name = str(options.pop("activation", "tanh"))
    fitting_options = dict(options.pop("fitting", {}))  # type: ignore[call-overload]
    n_networks = n_types if one_side else n_types**2
    resnet_dt = bool(options.get("resnet_dt", False))
    embeddings = [initial_network([1, 4, 8, 16], name, rng, resnet_dt=resnet_dt) for _ in range(n_networks)]
    davg = np.zeros(n_types) if options.get("set_davg_zero") else rng.uniform(0.02, 0.1, n_types)
    settings = {
        "rcut": 4.5, "rcut_smth": 1.5, "sel": (24,) * n_types, "axis_neuron": 4, "networks": embeddings,
        "davg": davg, "dstd": rng.uniform(0.1, 0.2, (n_types, 2)), "type_one_side": one_side,
        "activation_function": name,
    }  # fmt: skip
    descriptor = SeE2A(**(settings | options))  # type: ignore[arg-type]
    width = (
        descriptor.n_features + int(fitting_options.get("numb_fparam", 0)) + int(fitting_options.get("numb_aparam", 0))
    )
    nets: list[Network] = [
        initial_network([width, 12, 12, 12], "tanh", rng, resnet_dt=True, output=1) for _ in range(n_types)
    ]
    fitting = EnergyFitting(nets, rng.normal(size=n_types), **fitting_options)  # type: ignore[arg-type]
    type_map = ["O", "H", "Si", "C"][:n_types]
    return DPModel(type_map, descriptor, fitting, rng.normal(size=n_types), min_nbor_dist=0.9)


def random_structure(
    n: int = 24, length: float = 7.0, seed: int = 0, n_types: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (n, 3) at least 0.9 Å apart in a skewed cell, the cell (3, 3) and types (n,)."""
    rng = np.random.default_rng(seed)
    cell = np.array([[length, 0, 0], [0.25 * length, 0.95 * length, 0], [-0.2 * length, 0.15 * length, 1.05 * length]])
    inverse = np.linalg.inv(cell)
    positions: list[np.ndarray] = []
    while len(positions) < n:
        new = rng.uniform(size=3) @ cell
        apart = (np.array(positions) - new) @ inverse if positions else np.ones((1, 3))
        distances = np.linalg.norm((apart - np.round(apart)) @ cell, axis=1) if positions else np.ones(1)
        if distances.min() > 0.9:
            positions.append(new)
    return np.array(positions), cell, (np.arange(n) * 7 % n_types).astype(np.int32)
