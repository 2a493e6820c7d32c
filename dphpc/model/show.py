"""What a model is, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import InputError, counted, did_you_mean
from dphpc.model.dp_model import DPModel
from dphpc.model.model_file import read_model
from dphpc.model.networks import Network


def _widths(network: Network) -> str:
    return " → ".join(str(layer.w.shape[1]) for layer in network.layers)


def _parameters_of(node: Any) -> int:
    """Numbers in all layers below a node of a file's tree."""
    if isinstance(node, list):
        return sum(map(_parameters_of, node))
    if not isinstance(node, dict):
        return 0
    own = [a for a in node["@variables"].values() if a is not None] if node.get("@class") == "Layer" else []
    return sum(np.size(a) for a in own) + sum(map(_parameters_of, node.values()))


def attributes(model: DPModel) -> dict[str, str]:
    """The model's facts by name, as `dphpc show` prints them."""
    d, f = model.descriptor, model.fitting
    kind = d.kind or f"se_e2_a, {'one' if d.type_one_side else 'two'}-sided"
    n_parameters = sum(a.size for _, a in model.parameters()) if model.origin is None else _parameters_of(model.origin)
    facts = {
        "type-map": " ".join(model.type_map),
        "descriptor": f"{kind}, {d.activation_function}, {d.precision}",
        "cutoff": f"{d.rcut} Å, smooth from {d.rcut_smth} Å",
        "sel": " ".join(map(str, d.sel)),
        "embedding-net": f"{_widths(d.networks[0])}, axis {d.axis_neuron}, {counted(len(d.networks), 'network')}",
        "fitting-net": f"{d.n_features} → {_widths(f.networks[0])}, {f.activation_function}, {f.precision}",
        "size": f"{n_parameters:,} parameters",
        "energy bias": " ".join(f"{b:.6g}" for b in model.energy_bias) + " eV",
    }
    if f.numb_fparam or f.numb_aparam:
        facts["parameters"] = f"{f.numb_fparam} of the frame, {f.numb_aparam} of each atom"
    exclusions = {
        "exclude_types": sorted(d.exclude_types),
        "pair_exclude_types": sorted(model.pair_exclude_types),
        "atom_exclude_types": sorted(model.atom_exclude_types),
    }
    facts |= {name: str(value) for name, value in exclusions.items() if value}
    if model.min_nbor_dist is not None:
        facts["nearest pair"] = f"{model.min_nbor_dist:.4f} Å in the training data"
    if model.table is None:
        facts["table"] = "none (not compressed)"
    else:
        sizes = sorted({grid.n_intervals for grid in model.table.grids})
        facts["table"] = (
            f"{len(model.table.grids)} × {'/'.join(map(str, sizes))} intervals, {model.table.coefficients.dtype}, "
            f"{model.table.coefficients.nbytes / 1e6:.2f} MB"
        )
    written = " ".join(str(model.extra[k]) for k in ("software", "version") if k in model.extra)
    if written:
        facts["written by"] = written
    return facts


def summary(model: DPModel) -> str:
    """A readable table of `attributes`."""
    return "\n".join(f"{name:>18}  {value}" for name, value in attributes(model).items())


def show(path: str | Path, names: list[str] | None = None) -> str:
    """What `dphpc show` prints: the whole summary, or the attributes named (`type-map`, `descriptor`, …).

    Raises
    ------
    InputError
        An attribute that does not exist.
    """
    model = read_model(path)
    if not names:
        return summary(model)
    facts = attributes(model)
    for name in names:
        if name not in facts:
            raise InputError(f"the model has no attribute '{name}'", remedy=did_you_mean(name, facts))
    return "\n".join(f"{name}: {facts[name]}" for name in names)
