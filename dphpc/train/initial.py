"""The model that a training starts from: random weights as DeePMD-kit draws them, or another model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import InputError
from dphpc.model.descriptor import SeE2A
from dphpc.model.dp_model import DPModel
from dphpc.model.fitting import EnergyFitting
from dphpc.model.networks import Network, initial_network
from dphpc.model.shared import SharedNetworks
from dphpc.train.initial_shared import shared_networks, with_shared
from dphpc.train.schema.model import DescriptorConfig, FittingConfig, ModelConfig, SeAttenConfig
from dphpc.train.statistics import Statistics

_DESCRIPTOR, _FITTING = 0, 1


def initial_model(config: ModelConfig, statistics: Statistics, seed: int, min_distance: float | None = None) -> DPModel:
    """A model with random weights and the data's statistics.

    Parameters
    ----------
    config
        With `sel` resolved to whole numbers.
    seed
        Used for sections that have no seed of their own.
    min_distance
        Å, smallest distance between atoms in the training data; kept in the model file.
    """
    d, f = config.descriptor, config.fitting_net
    assert not isinstance(d.sel, str), "sel is resolved before the model is made"
    shared = None
    if isinstance(d, SeAttenConfig):
        first, types, gains = _streams(d, seed, 3)
        shared = shared_networks(d, f, list(config.type_map), [first, types, *_streams(f, seed, 1), gains])
    embedding, fitting = ([], []) if shared else _own_networks(config, seed)
    descriptor = SeE2A(
        rcut=d.rcut,
        rcut_smth=d.rcut_smth,
        sel=tuple(d.sel),
        axis_neuron=d.axis_neuron,
        networks=embedding,
        davg=_rounded(statistics.davg, d.numpy_precision),
        dstd=_rounded(statistics.dstd, d.numpy_precision),
        type_one_side=d.type_one_side,
        exclude_types=frozenset(d.exclude_types),
        env_protection=d.env_protection,
        set_davg_zero=d.set_davg_zero,
        resnet_dt=d.resnet_dt,
        activation_function=d.activation_function,
        precision=d.numpy_precision,
        trainable=d.trainable,
    )
    model = DPModel(
        type_map=list(config.type_map),
        descriptor=descriptor,
        fitting=_fitting(config, fitting, statistics),
        out_bias=np.array(statistics.energy_bias, np.float64),
        pair_exclude_types=frozenset(config.pair_exclude_types),
        atom_exclude_types=frozenset(config.atom_exclude_types),
        min_nbor_dist=min_distance,
        script=config.model_dump(mode="json", exclude_none=True),
    )
    return model if shared is None else with_shared(model, shared)


def _own_networks(config: ModelConfig, seed: int) -> tuple[list[Network], list[Network]]:
    """Embedding and fitting networks of single types or pairs."""
    d, f, n = config.descriptor, config.fitting_net, config.n_types
    features = d.neuron[-1] * d.axis_neuron + f.numb_fparam + f.numb_aparam
    embedding = [
        initial_network([1, *d.neuron], d.activation_function, rng, resnet_dt=d.resnet_dt).astype(d.numpy_precision)
        for rng in _streams(d, seed, n if d.type_one_side else n * n)
    ]
    fitting = [
        initial_network([features, *f.neuron], f.activation_function, rng, resnet_dt=f.resnet_dt, output=1).astype(
            f.numpy_precision
        )
        for rng in _streams(f, seed, n)
    ]
    return embedding, fitting


def model_section(model: DPModel) -> dict[str, Any]:
    """The `model` section of an input for a model like this one, without seeds."""
    d, f = model.descriptor, model.fitting
    descriptor = (
        "rcut", "rcut_smth", "axis_neuron", "activation_function", "resnet_dt", "type_one_side", "precision",
        "env_protection", "set_davg_zero", "trainable",
    )  # fmt: skip
    fitting = (
        "numb_fparam", "numb_aparam", "default_fparam", "activation_function", "precision", "resnet_dt", "rcond",
        "trainable",
    )  # fmt: skip
    atom_ener = f.atom_ener if any(e is not None for e in f.atom_ener) else []
    return {
        "type_map": list(model.type_map),
        "pair_exclude_types": sorted(model.pair_exclude_types),
        "atom_exclude_types": sorted(model.atom_exclude_types),
        "descriptor": {
            "type": "se_e2_a",
            **{key: getattr(d, key) for key in descriptor},
            **({} if model.shared is None else _section_of(model.shared)),
            "sel": list(d.sel),
            "neuron": [layer.w.shape[1] for layer in d.networks[0].layers],
            "exclude_types": sorted(d.exclude_types),
        },
        "fitting_net": {
            **{key: getattr(f, key) for key in fitting},
            "neuron": [layer.w.shape[1] for layer in f.networks[0].layers[:-1]],
            "atom_ener": list(atom_ener),
        },
    }


def _section_of(shared: SharedNetworks) -> dict[str, Any]:
    """What a descriptor of kind `dpa1` has beyond one of `se_e2_a`."""
    return {
        "type": "dpa1", "attn_layer": 0, "tebd_input_mode": shared.form, "smooth_type_embedding": shared.smooth,
        "type_one_side": shared.one_side, "tebd_dim": shared.types.n_out,
        "concat_output_tebd": shared.output_types, "use_econf_tebd": shared.electrons,
        "use_tebd_bias": shared.types.layers[0].b is not None,
    }  # fmt: skip


def _fitting(config: ModelConfig, networks: list[Network], statistics: Statistics) -> EnergyFitting:
    f = config.fitting_net
    scales: dict[str, Any] = {
        name: None if (value := getattr(statistics, name)) is None else _rounded(value, f.numpy_precision)
        for name in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
    }
    return EnergyFitting(
        networks=networks,
        bias_atom_e=np.zeros(config.n_types),
        numb_fparam=f.numb_fparam,
        numb_aparam=f.numb_aparam,
        default_fparam=f.default_fparam,
        atom_ener=list(f.atom_ener) if any(e is not None for e in f.atom_ener) else [],
        resnet_dt=f.resnet_dt,
        activation_function=f.activation_function,
        precision=f.numpy_precision,
        rcond=f.rcond,
        trainable=f.trainable,
        **scales,
    )


def _streams(section: DescriptorConfig | FittingConfig, seed: int, n: int) -> Iterator[np.random.Generator]:
    """Random numbers for each of a section's networks, from its own seed if it has one."""
    own, which = seed if section.seed is None else section.seed, isinstance(section, FittingConfig)
    return (np.random.default_rng([own, _FITTING if which else _DESCRIPTOR, i]) for i in range(n))


def _rounded(values: NDArray[np.float64], precision: str) -> NDArray[np.float64]:
    """Values rounded as in the model file, so that training and the frozen model use the same."""
    return np.asarray(values).astype(precision).astype(np.float64)


STATISTICS = (
    "descriptor.davg", "descriptor.dstd", "fitting.bias_atom_e", "out_bias",
    "fitting.fparam_avg", "fitting.fparam_inv_std", "fitting.aparam_avg", "fitting.aparam_inv_std",
)  # fmt: skip
"""Names, as attributes of the model, of arrays that training does not change."""


def model_arrays(model: DPModel) -> dict[str, NDArray[Any]]:
    """All arrays of a model by name: weights and statistics."""
    arrays = {name: np.asarray(value) for name, value in model.parameters()}
    for name in STATISTICS:
        value = _owner(model, name)[1]
        if value is not None:
            arrays[name] = np.asarray(value)
    return arrays


def model_of(
    config: ModelConfig, arrays: dict[str, NDArray[Any]], source: str, min_distance: float | None = None
) -> DPModel:
    """A model with these weights and statistics, named as by `model_arrays`.

    Raises
    ------
    InputError
        `source` lacks an array, or one has another shape: it is another model.
    """
    model = initial_model(config, Statistics.neutral(config), 0, min_distance)
    set_model_arrays(model, arrays, source)
    return model


def set_model_arrays(model: DPModel, arrays: dict[str, NDArray[Any]], source: str) -> None:
    """Overwrite a model's arrays, in place for the weights.

    Raises
    ------
    InputError
        `source` lacks an array, or one has another shape: it is another model.
    """
    own = model_arrays(model)
    for name, value in own.items():
        if name not in arrays or arrays[name].shape != value.shape:
            found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise InputError(
                f"'{name}' {found}", where=source, expected=f"shape {value.shape}, as the input's model section says",
                remedy="use the model section that the file was made with",
            )  # fmt: skip
    for name, value in model.parameters():
        value[...] = arrays[name]
    for name in STATISTICS:
        if name in own:
            holder, _ = _owner(model, name)
            setattr(holder, name.rpartition(".")[2], np.array(arrays[name], np.float64))
    if model.shared is not None:
        model.shared.attach(model.descriptor)


def _owner(model: DPModel, name: str) -> tuple[Any, Any]:
    section, _, attribute = name.rpartition(".")
    holder = getattr(model, section) if section else model
    return holder, getattr(holder, attribute)
