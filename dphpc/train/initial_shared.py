"""The model that a training of kind `dpa1` starts from: networks shared by all types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dphpc.model.dp_model import DPModel
from dphpc.model.dpa1 import type_inputs
from dphpc.model.networks import Network, initial_network
from dphpc.model.shared import SharedNetworks
from dphpc.model.shared_tree import shared_tree
from dphpc.train.schema.model import FittingConfig, SeAttenConfig


def shared_networks(
    d: SeAttenConfig, f: FittingConfig, type_map: list[str], streams: list[np.random.Generator]
) -> SharedNetworks:
    """Shared networks with random weights as DeePMD-kit draws them.

    `streams` draw the embedding, the types' embedding, the fitting network and the network of the gains.
    """
    tree = {"use_econf_tebd": d.use_econf_tebd, "ntypes": len(type_map), "type_map": type_map}
    inputs, features = type_inputs(tree), d.neuron[-1] * d.axis_neuron
    of_pairs, strip = d.tebd_dim * (1 if d.type_one_side else 2), d.tebd_input_mode == "strip"
    of_atoms = features + f.numb_fparam + f.numb_aparam + (d.tebd_dim if d.concat_output_tebd else 0)

    def embedding(n_in: int, stream: np.random.Generator) -> Network:
        made = initial_network([n_in, *d.neuron], d.activation_function, stream, resnet_dt=d.resnet_dt)
        return made.astype(d.numpy_precision)

    types = initial_network([inputs.shape[1], d.tebd_dim], "Linear", streams[1])
    fitting = initial_network([of_atoms, *f.neuron], f.activation_function, streams[2], resnet_dt=f.resnet_dt, output=1)
    if not d.use_tebd_bias:
        types = Network([replace(types.layers[0], b=None)])
    return SharedNetworks(
        embedding=embedding(1 if strip else 1 + of_pairs, streams[0]),
        types=types.astype(d.numpy_precision),
        fitting=fitting.astype(f.numpy_precision),
        inputs=inputs,
        at=features,
        output_types=d.concat_output_tebd,
        one_side=d.type_one_side,
        electrons=d.use_econf_tebd,
        strip=embedding(of_pairs, streams[3]) if strip else None,
        smooth=d.smooth_type_embedding,
    )


def with_shared(model: DPModel, shared: SharedNetworks) -> DPModel:
    """The model with its networks following from shared ones."""
    d = replace(model.descriptor, kind=f"dpa1, {shared.kind}")
    shared.attach(d)
    made = replace(model, descriptor=d, fitting=replace(model.fitting, networks=shared.of_centers), shared=shared)
    return replace(made, origin=shared_tree(made, shared))
