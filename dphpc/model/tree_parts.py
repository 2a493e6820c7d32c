"""Parts of DeePMD-kit's trees that descriptors and fittings have in common: networks, statistics, exclusions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dphpc.core.errors import ModelFileError
from dphpc.model.activations import activation
from dphpc.model.container import Tree
from dphpc.model.descriptor import SeE2A
from dphpc.model.networks import Layer, Network

_DTYPES = {"default": "float64", "double": "float64", "float64": "float64", "single": "float32", "float32": "float32"}
_NEWEST = {"Model": 2, "Descriptor": 3, "Fitting": 4}


def unsupported(what: str, where: str = "model") -> ModelFileError:
    """The error that refuses a part of a model."""
    return ModelFileError(f"{what} is not supported", where=where, expected="an energy model on se_e2_a or dpa1")


def check_version(node: Tree, kind: str) -> None:
    """Refuse a part whose format is newer than is known here."""
    version = node.get("@version", 1)
    if version > _NEWEST[kind]:
        raise ModelFileError(
            f"the {kind.lower()} has format version {version}, newer than this program knows",
            expected=f"up to {_NEWEST[kind]}", remedy="update dphpc",
        )  # fmt: skip


def pair_set(pairs: Any) -> frozenset[tuple[int, int]]:
    """Pairs of types, of a list or of nothing."""
    return frozenset((int(a), int(b)) for a, b in pairs or ())


def precision_of(node: Tree) -> str:
    """The precision of a part's numbers, by NumPy's name."""
    name = node.get("precision") or "default"
    if name not in _DTYPES:
        raise unsupported(f"precision '{name}'")
    return _DTYPES[name]


def network_of(node: Tree | None, where: str) -> Network:
    """A network, its arrays as the file has them."""
    if node is None:
        raise ModelFileError("a network is missing", where=where)
    layers: list[Layer] = []
    for layer in node["layers"]:
        values = layer["@variables"]
        activation(layer["activation_function"])
        w = np.asarray(values["w"])
        if w.ndim != 2 or not w.size:
            raise ModelFileError(f"'w' of a layer has shape {w.shape}", where=where, expected="(inputs, outputs)")
        b, idt = (None if values.get(k) is None else np.asarray(values[k]).ravel() for k in ("b", "idt"))
        for name, vector in (("b", b), ("idt", idt)):
            if vector is not None and len(vector) != w.shape[1]:
                raise ModelFileError(
                    f"'{name}' has {len(vector)} entries for a layer of width {w.shape[1]}", where=where
                )
        if layers and layers[-1].w.shape[1] != w.shape[0]:
            raise ModelFileError("the widths of neighboring layers differ", where=where)
        layers.append(Layer(w, b, idt, layer["activation_function"], bool(layer["resnet"])))
    if not all(np.isfinite(a).all() for layer in layers for _, a in layer.parameters()):
        raise ModelFileError("a weight is not finite", where=where)
    return Network(layers)


def descriptor_without_networks(
    node: Tree, sel: tuple[int, ...], n_types: int, *, one_side: bool, set_davg_zero: bool
) -> SeE2A:
    """What kinds of descriptors have in common; `one_side` and `set_davg_zero` hold where the file does not say.

    Raises
    ------
    ModelFileError
        The format is too new, or the descriptor has a spin, another switch or statistics that are not supported.
    """
    check_version(node, "Descriptor")
    if node.get("spin") is not None or node.get("env_mat", {}).get("use_exp_switch"):
        raise unsupported("a descriptor with spin or an exponential switch", "model/descriptor")
    davg, dstd = statistics_of(node["@variables"], n_types, sum(sel))
    return SeE2A(
        rcut=float(node["rcut"]),
        rcut_smth=float(node["rcut_smth"]),
        sel=sel,
        axis_neuron=int(node["axis_neuron"]),
        networks=[],
        davg=davg,
        dstd=dstd,
        type_one_side=bool(node.get("type_one_side", one_side)),
        exclude_types=pair_set(node.get("exclude_types")),
        env_protection=float(node.get("env_protection", 0.0)),
        set_davg_zero=bool(node.get("set_davg_zero", set_davg_zero)),
        resnet_dt=bool(node.get("resnet_dt", False)),
        activation_function=node.get("activation_function", "tanh"),
        precision=precision_of(node),
        trainable=bool(node.get("trainable", True)),
    )


def check_descriptor(descriptor: SeE2A) -> None:
    """Refuse numbers that no kernel is made for."""
    where = "model/descriptor"
    widths = {(net.n_in, net.n_out) for net in descriptor.networks}
    if len(widths) != 1 or descriptor.networks[0].n_in != 1:
        raise ModelFileError("the embedding networks do not take one number to equally many channels", where=where)
    channels, axis, sel = descriptor.n_channels, descriptor.axis_neuron, descriptor.sel
    if not 1 <= axis <= channels:
        raise ModelFileError(f"axis_neuron is {axis} of {channels} channels", where=where, expected=f"1 to {channels}")
    if min(sel) < 0 or sum(sel) == 0:
        raise ModelFileError(f"sel is {list(sel)}", where=where, expected="numbers of neighbors")
    if not 0.0 <= descriptor.rcut_smth < descriptor.rcut < np.inf or not np.isfinite(descriptor.env_protection):
        numbers = f"rcut {descriptor.rcut}, rcut_smth {descriptor.rcut_smth}, protection {descriptor.env_protection}"
        raise ModelFileError(f"{numbers}: no environment", where=where, expected="0 ≤ rcut_smth < rcut, finite numbers")


def statistics_of(variables: Tree, n_types: int, n_slots: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """davg (ntypes,) and dstd (ntypes, 2) of arrays that repeat them for every slot."""
    davg, dstd = (np.asarray(variables[k], np.float64).reshape(n_types, n_slots, 4) for k in ("davg", "dstd"))
    uniform = np.all(davg == davg[:, :1]) and np.all(dstd == dstd[:, :1])
    if not uniform or np.any(davg[..., 1:]) or np.any(dstd[..., 1:] != dstd[..., 1:2]):
        raise unsupported("statistics that differ from slot to slot or between x, y and z", "model/descriptor")
    if not (np.isfinite(davg).all() and np.isfinite(dstd).all() and np.all(dstd > 0)):
        raise ModelFileError("davg or dstd is not finite and positive", where="model/descriptor")
    return davg[:, 0, 0].copy(), dstd[:, 0, :2].copy()
