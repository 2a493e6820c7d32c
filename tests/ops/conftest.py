"""Small systems and descriptors on which the back ends of the `se_a` operations are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.fitting import EnergyFitting
from dphpc.model.networks import initial_network
from dphpc.model.radial_table import Grid, RadialTable
from dphpc.ops.neighbors.reference import build_neighbors
from dphpc.ops.se_a.contract import Embedding, Environment, SeAParameters


@dataclass
class Case:
    """Inputs of the operations, and the random arrays they are contracted with."""

    env: Environment
    p: SeAParameters
    e: Embedding
    direction: np.ndarray
    strain: np.ndarray
    bar: np.ndarray  # Ā
    bar_dot: np.ndarray  # Ǡ

    def moved(self, positions: np.ndarray) -> Environment:
        """The environment with other positions and the same list."""
        return replace(self.env, positions=positions)


def _positions(rng: np.random.Generator) -> np.ndarray:
    """45 atoms on a shaken lattice, and one that sees nobody."""
    lattice = np.stack(np.meshgrid(np.arange(3), np.arange(3), np.arange(5)), axis=-1).reshape(-1, 3) * 1.8
    shaken = lattice + rng.uniform(-0.4, 0.4, lattice.shape)
    return np.concatenate((shaken[rng.permutation(45)], [[40.0, 0.0, 0.0]]))


def _case(
    *,
    channels: int = 20,
    n_types: int = 2,
    one_sided: bool = True,
    sel: tuple[int, ...] = (30, 40),
    grids: tuple[Grid, ...] = (Grid.uniform(-1.0, 9.0, 64),),
    excluded: frozenset[tuple[int, int]] = frozenset(),
    missing: frozenset[tuple[int, int]] = frozenset(),
    protection: float = 0.0,
    davg_zero: bool = False,
    dtype: type = np.float64,
) -> Case:
    rng = np.random.default_rng(7)
    n_nets = n_types if one_sided else n_types**2
    nets = [initial_network([1, 5, channels], "tanh", rng) for _ in range(n_nets)]
    davg = np.zeros(n_types) if davg_zero else rng.uniform(0.05, 0.1, n_types)
    descriptor = SeE2A(
        4.0, 1.0, sel, 4, nets, davg, rng.uniform(0.1, 0.2, (n_types, 2)), one_sided, excluded, protection
    )  # fmt: skip
    fitting = EnergyFitting([], np.zeros(n_types))
    names = [f"X{t}" for t in range(n_types)]
    model = DPModel(names, descriptor, fitting, np.zeros(n_types), pair_exclude_types=missing)

    grids = tuple(grids[i % len(grids)] for i in range(n_nets))
    tables = [RadialTable.from_networks([net], grid) for net, grid in zip(nets, grids, strict=True)]
    longest = max(grid.n_intervals for grid in grids)
    coefficients = np.zeros((n_nets, longest, 6, channels))
    for i, table in enumerate(tables):
        coefficients[i, : grids[i].n_intervals] = table.coefficients[0]
    table = RadialTable(grids, coefficients).astype(dtype)

    positions = _positions(rng)
    types = rng.integers(0, n_types, len(positions)).astype(np.int32)
    neighbors = build_neighbors(positions, types, np.arange(len(types)), 46, 4.5)  # some listed pairs lie beyond rcut
    centers = rng.permutation(46)[:31].astype(np.int32)
    centers[3] = 45  # the lonely one
    centers = np.unique(centers)[::-1].astype(np.int32)
    shape = (len(centers), 4, channels)
    return Case(
        Environment(positions, types, neighbors, centers),
        SeAParameters.of(model),
        Embedding(table, descriptor.empty_slots(table)),
        direction=rng.normal(size=positions.shape),
        strain=rng.normal(size=(len(centers), 3, 3)) * 0.1,
        bar=rng.normal(size=shape).astype(dtype),
        bar_dot=rng.normal(size=shape).astype(dtype),
    )


_PARTS = (
    Grid(-1.0, (0.02, 0.05, 0.4, 0.5), (20, 72, 6, 8)),
    Grid(-1.0, (0.2,), (50,)),
    Grid(-0.9, (0.1, 0.3), (30, 23)),
)

VARIANTS: dict[str, dict] = {
    "plain": {},
    "davg_zero": {"davg_zero": True},
    "wide": {"channels": 100},
    "one_channel": {"channels": 1},
    "odd_channels": {"channels": 37, "protection": 0.3},
    "few_intervals": {"grids": (Grid.uniform(-1.0, 9.0, 6),)},
    "grids_in_parts": {"grids": _PARTS, "channels": 9, "n_types": 3, "sel": (9, 8, 30)},
    "two_sided_excluded": {
        "n_types": 3,
        "one_sided": False,
        "sel": (12, 20, 16),
        "channels": 18,
        "grids": _PARTS,
        "excluded": frozenset({(0, 2)}),
        "missing": frozenset({(1, 1)}),
    },
    "hidden_type": {"n_types": 3, "sel": (12, 0, 16), "channels": 8},
    "nobody_used": {"excluded": frozenset({(0, 0), (0, 1), (1, 1)})},
}


@pytest.fixture(scope="session")
def se_a_case() -> Callable[..., Case]:
    """Makes a `Case` of a variant's name; keywords overrule it."""
    return lambda variant="plain", **changes: _case(**{**VARIANTS[variant], **changes})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test with an argument `variant` runs on all of them."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", VARIANTS)
