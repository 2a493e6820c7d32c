"""Make the golden reference files of this folder with DeePMD-kit itself.

Run by hand, inside an environment that has ``deepmd-kit[torch]`` (the stored
files come from version 3.2.0); neither the package nor CI ever runs it::

    export OMP_NUM_THREADS=1 DP_INTRA_OP_PARALLELISM_THREADS=1
    export DP_INTER_OP_PARALLELISM_THREADS=1
    python make_golden.py

For every case a small model with random parameters is built with DeePMD-kit's
PyTorch back end, saved as ``.pth`` and turned into ``models/NAME.dp`` (and
``.yaml``) by the function behind ``dp convert-backend``; compressed models by
the function behind ``dp --dp compress``.  DeePMD-kit's ``DeepPot`` then
evaluates the ``.pth`` on several structures into ``golden.h5``.
"""

from __future__ import annotations

import copy
import datetime
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepmd
import h5py
import numpy as np
import torch
from deepmd.dpmodel.entrypoints.compress import enable_compression
from deepmd.dpmodel.utils.serialization import load_dp_model, save_dp_model
from deepmd.entrypoints.convert_backend import convert_backend
from deepmd.infer import DeepPot
from deepmd.pt.model.model import get_model

HERE = Path(__file__).resolve().parent
Dict = dict[str, Any]


@dataclass
class Case:
    """One model: what differs from the base model (see `model_params`)."""

    about: str
    descriptor: Dict = field(default_factory=dict)
    fitting: Dict = field(default_factory=dict)
    model: Dict = field(default_factory=dict)
    ntypes: int = 2
    gain: float = 1.0  # factor on all hidden-layer weights and biases
    narrow: bool = False  # small dstd, so that the normalized input gets large
    min_nbor_dist: float | None = None  # stored in the model file
    compress: Dict | None = None  # stride, extrapolate
    give_fparam: bool = True
    yaml: bool = False


def act(descriptor: str, fitting: str = "", gain: float = 1.0) -> Case:
    """A tiny model with the given activation functions."""
    return Case(
        f"activation {descriptor} in the descriptor, {fitting or 'same'} in the fitting",
        {"activation_function": descriptor, "neuron": [4, 8], "axis_neuron": 3},
        {"activation_function": fitting or descriptor, "neuron": [8, 8]},
        gain=gain,
    )


TWO: Dict = {"type_one_side": False}
F32: Dict = {"precision": "float32"}
DEFAULT: Dict = {"precision": "default"}
SMALL: Dict = {"neuron": [2, 4, 8]}
AVG0: Dict = {"set_davg_zero": True}
FA1: Dict = {"numb_fparam": 1, "numb_aparam": 1}
FA2: Dict = {"numb_fparam": 2, "numb_aparam": 1}
FDEF: Dict = {"numb_fparam": 2, "default_fparam": [0.7, -1.3]}
E_01, E_00, E_01_11 = ({"exclude_types": e} for e in ([[0, 1]], [[0, 0]], [[0, 1], [1, 1]]))
SKIP1: Dict = {"neuron": [1, 2, 4], "axis_neuron": 2, "resnet_dt": True}
SKIP2: Dict = {"neuron": [2, 4, 4], "axis_neuron": 2}
THREE: Dict = {"neuron": [8, 8, 16], "resnet_dt": True}
RCUT6: Dict = {"rcut": 6.0, "sel": [70, 70]}


def packed(about: str, descriptor: Dict, dist: float, stride: float, extrapolate: int = 5, **other: Any) -> Case:
    """A compressed model: nearest distance and strides of its tables."""
    tables = {"stride": stride, "extrapolate": extrapolate}
    return Case("compressed, " + about, descriptor, min_nbor_dist=dist, compress=tables, **other)


CASES: dict[str, Case] = {
    "two_sided": Case("two-sided, rcut 6, min_nbor_dist in file", TWO | RCUT6, min_nbor_dist=0.8),
    "one_sided": Case("one-sided (type_one_side true)", {"sel": [28, 24]}, yaml=True),
    "resnet_dt": Case("resnet_dt true in both, two-sided", TWO | {"resnet_dt": True}),
    "one_type": Case("one type, fitting resnet_dt false", {}, {"resnet_dt": False}, ntypes=1),
    "softplus_sigmoid": act("softplus", "sigmoid"),
    "silu_softplus": act("silu", "softplus"),
    "relu6_relu": act("relu6", "relu", 2.5),
    "relu_relu6": act("relu", "relu6", 3.0),
    "act_relu": act("relu"),
    "act_relu6": act("relu6", gain=4.0),
    "act_softplus": act("softplus", gain=0.8),
    "act_sigmoid": act("sigmoid"),
    "act_tanh": act("tanh"),
    "act_gelu": act("gelu"),
    "act_gelu_tf": act("gelu_tf", gain=2.0),
    "act_silu": act("silu"),
    "act_silut": act("silut", gain=3.0),
    "act_silut_0p5": act("silut:0.5"),
    "act_silut_10": act("silut:10.0", gain=4.0),
    "act_custom_silu": act("custom_silu:1.2", gain=1.5),
    "act_none": act("none"),
    "act_linear": act("linear"),
    "exclude_davg_zero": Case("exclude_types (0,1), two-sided, davg 0", TWO | AVG0 | E_01),
    "exclude_one_sided": Case("exclude_types (0,0), one-sided, davg not 0", E_00),
    "exclude_two_sided": Case("exclude_types (0,1) (1,1), two-sided, davg not 0", TWO | E_01_11),
    "pair_exclude": Case("pair_exclude_types (0,1)", model={"pair_exclude_types": [[0, 1]]}),
    "atom_exclude": Case("atom_exclude_types 1", model={"atom_exclude_types": [1]}),
    "davg_zero": Case("set_davg_zero true, two-sided, davg 0", TWO | AVG0),
    "env_protection": Case("env_protection 0.3", {"env_protection": 0.3}),
    "atom_ener": Case("atom_ener for type 1 only", {}, {"atom_ener": [None, -1.7]}),
    "atom_ener_param": Case("atom_ener and parameters", {}, FA1 | {"atom_ener": [0.6, -1.7]}),
    "fparam_aparam": Case("2 fparam, 1 aparam", SMALL | {"sel": [28, 24]}, FA2, yaml=True),
    "default_fparam": Case("default_fparam used: none given", {}, FDEF, give_fparam=False),
    "float32": Case("float32 in both, two-sided", TWO | F32, F32),
    "float32_descriptor": Case("float32 descriptor, float64 fitting", F32),
    "float32_fitting": Case("float64 descriptor, float32 fitting", {}, F32),
    "precision_default": Case("precision 'default' in both", DEFAULT, DEFAULT),
    "three_types": Case("three types, all skips", THREE, {"neuron": [16, 5, 7, 14]}, ntypes=3),
    "three_types_two_sided": Case("three types, two-sided", TWO | {"neuron": [5, 7, 14]}, ntypes=3),
    "skip_first_equal": Case("first layers skip, equal width", SKIP1, {"neuron": [8, 16, 16]}),
    "skip_first_double": Case("first layers skip, double width", SKIP2, {"neuron": [16, 16]}),
    "one_layer": Case("one hidden layer; axis = last width", {"neuron": [4]}, {"neuron": [6]}),
    "sel_zero": Case("sel 0 for type 1, two-sided", TWO | {"sel": [60, 0]}),
    "compressed_one_sided": packed("one-sided, default strides", {"neuron": [2, 4]}, 0.8, 0.01),
    "compressed_two_sided": packed(
        "two-sided; pairs in both parts of the table", TWO | {"neuron": [5, 5, 10]}, 2.0, 0.05
    ),
    "compressed_beyond": packed("two-sided; pairs beyond the end of the table", TWO | SMALL, 2.5, 0.05, 2, narrow=True),
    "compressed_exclude": packed("one-sided, exclude_types (0,1)", SMALL | E_01, 0.8, 0.05),
    "compressed_float32": packed("float32 in both", SMALL | F32, 0.8, 0.02, fitting=F32),
}


def model_params(case: Case) -> Dict:
    """Return the ``model`` section of the input script of a case."""
    nt = case.ntypes
    descriptor = {
        "type": "se_e2_a",
        **{"rcut": 4.0, "rcut_smth": 1.6},
        "sel": [45] if nt == 1 else [30] * nt,
        **{"neuron": [3, 6, 12], "axis_neuron": 4, "resnet_dt": False},
        **{"type_one_side": True, "seed": 1},
        **case.descriptor,
    }
    fitting = {"neuron": [10, 10, 10], "resnet_dt": True, "seed": 2, **case.fitting}
    types = ["H", "O", "C"][:nt]
    return {"type_map": types, "descriptor": descriptor, "fitting_net": fitting, **case.model}


def randomize(model: Any, case: Case, rng: np.random.Generator) -> None:
    """Give a model random parameters and random, non-trivial constants."""

    def put(tensor: torch.Tensor, value: np.ndarray) -> None:
        tensor.copy_(torch.as_tensor(np.broadcast_to(value, tensor.shape).copy()))

    with torch.no_grad():
        for name, par in model.named_parameters():
            if name.endswith("idt"):
                put(par, rng.uniform(-0.3, 0.4, par.shape))
            elif name.endswith(("matrix", "bias")):
                scale = 1.0 if par.shape[-1] == 1 and "fitting" in name else case.gain
                put(par, 0.47 * scale * rng.normal(size=par.shape))
        atomic, fit = model.atomic_model, model.atomic_model.fitting_net
        sea = getattr(atomic.descriptor, "sea", None) or atomic.descriptor.se_atten
        for net in fit.filter_layers.networks:  # descriptors are small numbers
            net.layers[0].matrix[: sea.get_dim_out()] *= 25.0
        nt = case.ntypes
        avg = rng.uniform(0.05, 0.25, (nt, 1, 4)) * (not sea.set_davg_zero)
        std = rng.uniform(0.5, 0.9, (nt, 1, 4)) * (0.25 if case.narrow else 1.0)
        avg[..., 1:] = 0.0  # the form that training gives: per center type one mean,
        std[..., 2:] = std[..., 1:2]  # one radial and one angular deviation
        put(sea.mean, avg)
        put(sea.stddev, std)
        put(atomic.out_bias, rng.normal(size=(1, nt, 1)))
        put(atomic.out_std, rng.uniform(0.5, 2.0, (1, nt, 1)))
        put(fit.bias_atom_e, rng.normal(size=(nt, 1)))
        for kind, num in (("fparam", fit.numb_fparam), ("aparam", fit.numb_aparam)):
            if num:
                put(fit[kind + "_avg"], rng.normal(size=num))
                put(fit[kind + "_inv_std"], rng.uniform(0.4, 2.5, num))


def images(num: int, cell: Any) -> np.ndarray:
    """Return the lattice vectors up to ``num`` cells away (only zero if open)."""
    grid = np.array(np.meshgrid(*[range(-num, num + 1)] * 3)).reshape(3, -1).T
    return np.zeros((1, 3)) if cell is None else grid @ cell


def place(rng: np.random.Generator, nat: int, cell: np.ndarray | None, dmin: float) -> np.ndarray:
    """Put atoms at random, no two (images included) nearer than ``dmin``."""
    shifts = images(3, cell)
    out: list[np.ndarray] = []
    while len(out) < nat:
        if cell is not None and len(out) % 2 == 0:
            new = rng.uniform(size=3) @ cell
        else:  # near an atom that is there
            step = rng.normal(size=3)
            base = out[rng.integers(len(out))] if out else np.zeros(3)
            new = base + step / np.linalg.norm(step) * rng.uniform(dmin, 3.0)
        if all(np.linalg.norm(new - old + shifts, axis=1).min() > dmin for old in out):
            out.append(new)
    return np.array(out)


def structures(rcut: float, nt: int) -> dict[str, tuple[np.ndarray, Any, np.ndarray]]:
    """Return name -> (coords, cells or None, atom_types) for a cutoff and type count."""
    rng = np.random.default_rng([7, int(rcut * 10), nt])
    out: dict[str, tuple[np.ndarray, Any, np.ndarray]] = {}

    def types(nat: int) -> np.ndarray:
        return np.resize(np.arange(nt), nat)[rng.permutation(nat)]

    cell = np.eye(3) * (2 * rcut + 1.3)
    coords = place(rng, 22, cell, 0.8)
    coords[::5] += np.array([1, -1, 2]) @ cell  # some atoms are given outside the cell
    out["box"] = coords[None], cell[None], types(22)
    cell = np.eye(3) * 3.1
    out["small_cell"] = place(rng, 3, cell, 0.9)[None], cell[None], types(3)
    first = [[4.1, 0.0, 0.0], [2.6, 3.4, 0.0], [-1.9, 2.1, 3.3]]
    cells = np.array([first, [[3.8, 0.3, -0.4], [-2.4, 3.5, 0.2], [2.2, -1.9, 3.6]]])
    out["triclinic"] = np.array([place(rng, 4, c, 0.9) for c in cells]), cells, types(4)
    cell = np.array([[2.9, 0.0, 0.0], [1.4, 2.7, 0.0], [1.3, 0.9, 2.8]])
    out["one_atom_cell"] = rng.uniform(size=(1, 1, 3)) @ cell, cell[None], np.array([nt - 1])
    coords = np.concatenate([place(rng, 9, None, 0.8), [[30.0, 0, 0], [0, -40.0, 5.0]]])
    out["cluster"] = coords[None], None, np.append(types(9), [0, nt - 1])
    out["single_atom"] = np.array([[[0.3, -0.2, 0.9]]]), None, np.array([0])
    return out


def check(params: Dict, coords: np.ndarray, cell: Any, types: np.ndarray) -> None:
    """Assert that no ``sel`` overflows (DeePMD-kit would drop neighbors)."""
    sel, rcut = np.atleast_1d(params["descriptor"]["sel"]), params["descriptor"]["rcut"]
    shifts = images(6, cell)
    if cell is not None:  # wrapped, so that the grid of images suffices
        coords = coords - np.floor(coords @ np.linalg.inv(cell)) @ cell
    dist = np.linalg.norm(coords[None, :, None] + shifts - coords[:, None, None], axis=-1)
    dist[dist < 1e-8] = np.inf
    assert dist.min() > 0.8
    count = (dist < rcut + 1e-6).sum(axis=-1)
    assert np.array_equal(count, (dist < rcut - 1e-6).sum(axis=-1))
    assert count.sum(axis=1).max() <= sum(sel)
    for tt, num in enumerate(sel):
        assert num == 0 or count[:, types == tt].sum(axis=1).max(initial=0) <= num


def build(name: str, case: Case, params: Dict, tmp: Path, models: Path) -> DeepPot:
    """Make the model files of a case; return DeePMD-kit's evaluator."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    model = get_model(copy.deepcopy(params))
    randomize(model, case, rng)
    if case.min_nbor_dist is not None:
        model.min_nbor_dist = torch.tensor(case.min_nbor_dist, dtype=torch.float64)
    model.model_def_script = json.dumps(params)
    model.eval()
    pth, dp = tmp / f"{name}.pth", models / f"{name}.dp"
    torch.jit.save(torch.jit.script(model), str(pth))
    convert_backend(INPUT=str(pth), OUTPUT=str(dp))
    if case.yaml:
        convert_backend(INPUT=str(dp), OUTPUT=str(dp.with_suffix(".yaml")))
    if case.compress is not None:
        plain = load_dp_model(str(dp))
        plain["min_nbor_dist"] = case.min_nbor_dist  # where ``dp --dp compress`` looks for it
        save_dp_model(str(tmp / "plain.dp"), plain)
        enable_compression(str(tmp / "plain.dp"), str(dp), **case.compress)
        stride, extrapolate = case.compress["stride"], case.compress["extrapolate"]
        model.enable_compression(extrapolate, stride, 10 * stride, -1)
        saved = load_dp_model(str(dp))["model"]["descriptor"]["compress"]["@variables"]
        sea = model.atomic_model.descriptor.sea
        infos = zip(sea.compress_info, saved["compress_info"], strict=True)
        assert all(torch.equal(mine, torch.as_tensor(theirs)) for mine, theirs in infos)
        tol = 1e-4 if sea.prec == torch.float32 else 1e-12
        with torch.no_grad():  # evaluate with exactly the tables of the file
            for mine, theirs in zip(sea.compress_data, saved["compress_data"], strict=True):
                scale = stride ** (np.arange(theirs.shape[1]) % 6)  # high orders are noisy
                assert np.abs((mine.detach().numpy() - theirs) * scale).max() < tol
                mine.copy_(torch.as_tensor(theirs))
        torch.jit.save(torch.jit.script(model), str(pth))
    return DeepPot(str(pth))


def make(cases: dict[str, Case], params_of: Callable[[Case], Dict], output: str) -> None:
    """Make the models of all cases and the file of what DeePMD-kit computes with them."""
    models = HERE / "models"
    models.mkdir(exist_ok=True)
    inputs: dict[tuple[str, float, int], dict[str, h5py.Dataset]] = {}
    with (
        h5py.File(HERE / output, "w", libver=("v110", "v110")) as h5,
        tempfile.TemporaryDirectory() as tmpdir,
    ):
        for package in (deepmd, torch, np, h5py):
            h5.attrs[package.__name__ + "_version"] = str(package.__version__)
        h5.attrs["date"] = datetime.datetime.now(tz=datetime.UTC).isoformat()

        def save(group: h5py.Group, key: str, value: np.ndarray) -> h5py.Dataset:
            gzip = "gzip" if value.nbytes > 1000 else None
            return group.create_dataset(key, data=value, compression=gzip)

        for name, case in cases.items():
            params = params_of(case)
            pot = build(name, case, params, Path(tmpdir), models)
            top = h5.create_group(name)
            top.attrs["about"] = case.about
            rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
            rcut = params["descriptor"]["rcut"]
            for sname, (coords, cells, types) in structures(rcut, case.ntypes).items():
                group, nf, nat = top.create_group(sname), len(coords), len(types)
                for ff in range(nf):
                    check(params, coords[ff], None if cells is None else cells[ff], types)
                kwargs: Dict = {}
                if pot.get_dim_fparam() and case.give_fparam:
                    kwargs["fparam"] = rng.normal(size=(nf, pot.get_dim_fparam()))
                if pot.get_dim_aparam():
                    kwargs["aparam"] = rng.normal(size=(nf, nat, pot.get_dim_aparam()))
                cell9 = None if cells is None else cells.reshape(nf, 9)
                # optimized TorchScript fails on atom_ener ("view of a leaf Variable")
                with torch.jit.optimized_execution(False):
                    result = pot.eval(coords, cell9, types, atomic=True, **kwargs)
                for key, value in kwargs.items():
                    save(group, key, value)
                known = inputs.setdefault((sname, rcut, case.ntypes), {})
                given = {"coords": coords, "cells": cell9, "atom_types": types.astype(np.int32)}
                for key, value in given.items():
                    if value is not None and key not in known:
                        known[key] = save(group, key, value)
                    elif value is not None:  # a hard link: stored once for all models
                        group[key] = known[key]
                keys = ("energy", "force", "virial", "atom_energy", "atom_virial")
                for key, value in zip(keys, result, strict=True):
                    assert np.isfinite(value).all()
                    save(group, key, np.asarray(value, dtype=np.float64))
            print(f"{name}: {case.about}", flush=True)


if __name__ == "__main__":
    make(CASES, model_params, "golden.h5")
