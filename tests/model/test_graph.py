"""DeePMD-kit's frozen TensorFlow graphs: the numbers are TensorFlow's, and forged files are refused."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dphpc import DeepPot
from dphpc.core.errors import ModelFileError
from dphpc.model.container import read_tree
from dphpc.model.graph_file import Graph
from dphpc.model.graph_tree import read_graph
from dphpc.model.model_file import read_model, write_model

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = GOLDEN / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.pb"))
PLAIN = MODELS / "skip_first_equal.pb"
Nodes = dict[str, bytes]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_tensorflow(name: str, tmp_path: Path) -> None:
    model = read_model(MODELS / f"{name}.pb")
    write_model(model, tmp_path / "model.dp")
    single = "float32" in (model.descriptor.precision, model.fitting.precision)
    potentials = [DeepPot(model), DeepPot(tmp_path / "model.dp")]
    with h5py.File(GOLDEN / "golden_tf.h5") as wanted, h5py.File(GOLDEN / "golden.h5") as golden:
        for structure, numbers in wanted[name].items():
            given = {key: value[()] for key, value in golden[name][structure].items()}
            parameters = {key: given[key] for key in ("fparam", "aparam") if key in given}
            for potential in potentials:
                found = potential.eval(
                    given["coords"], given.get("cells"), given["atom_types"], atomic=True, **parameters
                )
                for key, array in zip(("energy", "force", "virial", "atom_energy"), found, strict=False):
                    # measured 2e-14 (energies) and 3e-12 (forces, virials); with float32 3e-7 and 7e-7
                    array = np.asarray(array).reshape(numbers[key].shape)
                    np.testing.assert_allclose(array, numbers[key][()], rtol=0, atol=3e-6 if single else 1e-10)


@pytest.mark.parametrize("name", ["atom_ener_param", "float32_fitting"])
def test_networks_are_those_of_the_dp_file(name: str) -> None:
    ours, theirs = read_model(MODELS / f"{name}.pb"), read_model(MODELS / f"{name}.dp")
    d, f = ours.descriptor, ours.fitting
    for mine, other in zip(d.networks, theirs.descriptor.networks, strict=True):
        for (path, a), (_, b) in zip(mine.parameters(), other.parameters(), strict=True):
            assert np.array_equal(a, b), path
    out = read_tree(MODELS / f"{name}.dp")["model"]["@variables"]
    for mine, other, std in zip(f.networks, theirs.fitting.networks, out["out_std"].ravel(), strict=True):
        for layer, same in zip(mine.layers[:-1], other.layers[:-1], strict=True):
            assert all(
                np.array_equal(a, b) for (_, a), (_, b) in zip(layer.parameters(), same.parameters(), strict=True)
            )
        for a, b in ((mine.layers[-1].w, other.layers[-1].w), (mine.layers[-1].b, other.layers[-1].b)):
            assert np.array_equal(a, (b * std).astype(b.dtype))
    np.testing.assert_array_equal(f.bias_atom_e, theirs.fitting.bias_atom_e * out["out_std"].ravel())
    for key in ("out_bias", "type_map", "min_nbor_dist"):
        assert np.array_equal(getattr(ours, key), getattr(theirs, key)), key
    for key in ("sel", "axis_neuron", "resnet_dt", "precision", "type_one_side", "activation_function"):
        assert getattr(d, key) == getattr(theirs.descriptor, key), key
    np.testing.assert_array_equal(d.davg, theirs.descriptor.davg)
    np.testing.assert_array_equal(d.dstd, theirs.descriptor.dstd)
    for key in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std"):
        assert np.array_equal(getattr(f, key), getattr(theirs.fitting, key)), key


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    value, found = value & 0xFFFF_FFFF_FFFF_FFFF, b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    """A field of bytes, or of a whole number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name: str, operation: str, tensor: bytes | None = None) -> bytes:
    """A node, with the value of a constant."""
    value = b"" if tensor is None else field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, name.encode()) + field(2, operation.encode()) + value


def tensor(kind: int, shape: tuple[int, ...], values: bytes) -> bytes:
    """A tensor of a type and a shape, and the fields of its values."""
    return field(1, kind) + field(2, b"".join(field(2, field(1, n)) for n in shape)) + values


def doubles(*values: float, shape: tuple[int, ...]) -> bytes:
    return tensor(2, shape, field(4, struct.pack(f"<{len(values)}d", *values)))


def nodes_of(path: Path) -> Nodes:
    """The messages of a file's nodes."""
    return {name: bytes(message) for name, (_, message) in Graph(path)._nodes.items()}


def forged(tmp_path: Path, change: Callable[[Nodes], object], source: Path = PLAIN) -> Path:
    """A graph whose nodes went through `change`."""
    nodes = nodes_of(source)
    change(nodes)
    path = tmp_path / "forged.pb"
    path.write_bytes(b"".join(field(1, message) for message in nodes.values()))
    return path


def script_with(**changes: Any) -> Callable[[Nodes], object]:
    """The training input with other entries: `section__key`, or `section`; None removes."""
    name = "train_attr/training_script"

    def change(nodes: Nodes) -> None:
        script = json.loads(Graph(PLAIN).text(name))
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = script
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                place.pop(key)
            else:
                place[key] = value
        nodes[name] = node(name, "Const", tensor(7, (), field(8, json.dumps(script).encode())))

    return change


def test_values_are_repeated_as_tensorflow_does(tmp_path: Path) -> None:
    def change(nodes: Nodes) -> None:
        two = struct.pack("<2d", 1.5, 2.5)
        values = {
            "last": tensor(2, (2, 2), field(6, two)),
            "single": tensor(1, (3,), varint(5 << 3 | 5) + struct.pack("<f", 0.1)),
            "none": tensor(3, (2,), b""),
            "packed": tensor(9, (3,), field(10, varint(300) + varint(-2))),
            "loose": tensor(3, (2,), field(7, 4) + field(7, -1)),
            "scalar": tensor(2, (), field(6, two[:8])),
        }
        nodes.update({name: node(name, "Const", value) for name, value in values.items()})

    graph = Graph(forged(tmp_path, change))
    assert graph.array("last").tolist() == [[1.5, 2.5], [2.5, 2.5]]
    assert graph.array("single").tolist() == [np.float32(0.1)] * 3
    assert graph.array("none").tolist() == [0, 0]
    assert graph.array("packed").tolist() == [300, -2, -2]
    assert graph.array("loose").tolist() == [4, -1]
    assert graph.array("scalar").tolist() == 1.5
    assert graph.array("single").dtype == np.float32


def test_graphs_before_2_1(tmp_path: Path) -> None:
    def change(nodes: Nodes) -> None:
        for name in (
            "fitting_attr/t_bias_atom_e",
            "model_attr/model_attr/t_out_bias",
            "model_attr/model_attr/t_out_std",
        ):
            del nodes[name]
        nodes["atom_1_ener"] = node("atom_1_ener", "Const", doubles(-3.5, shape=()))

    model = read_model(forged(tmp_path, change))
    assert model.energy_bias.tolist() == [0.0, -3.5]


def test_a_changed_sel_keeps_what_the_moments_are_divided_by(tmp_path: Path) -> None:
    def change(nodes: Nodes) -> None:
        name = "descrpt_attr/original_sel"
        nodes[name] = node(name, "Const", tensor(3, (2,), field(7, varint(10) + varint(20))))
        if davg_zero:
            size = read_tree(MODELS / "skip_first_equal.dp")["model"]["descriptor"]["@variables"]["davg"].size
            davg = doubles(*[0.0] * size, shape=(2, size // 2))
            nodes["descrpt_attr/t_avg"] = node("descrpt_attr/t_avg", "Const", davg)

    davg_zero = False
    with pytest.raises(ModelFileError, match="a changed sel"):
        read_model(forged(tmp_path, change))
    davg_zero = True
    first = read_model(forged(tmp_path, change)).fitting.networks[0].layers[0].w
    original = read_model(PLAIN).fitting.networks[0].layers[0].w
    np.testing.assert_allclose(first, original * 4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (script_with(model__descriptor__type="se_atten"), "(?s)descriptor 'se_atten'.*dp convert-backend forged.pb"),
        (script_with(model__descriptor__type="hybrid"), "descriptor 'hybrid' in a .pb file"),
        (script_with(model__fitting_net__type="dipole"), "fitting 'dipole'"),
        (script_with(model__type="linear_ener"), "a model of type 'linear_ener'"),
        (script_with(model__type_embedding={"neuron": [8]}), "'type_embedding' in section model"),
        (script_with(model__fitting_net_dict={"a": {}}), "'fitting_net_dict' in section model"),
        (script_with(model__fitting_net__tot_ener_zero=True), "'tot_ener_zero'"),
        (script_with(model__descriptor=None), "no model/descriptor"),
        (script_with(model__fitting_net__neuron=[8, 16, 16, 16]), "the graph has no 'layer_3_type_0/matrix'"),
        (script_with(model=None), "no entry 'model'"),
        (script_with(nvnmd__enable=True), "NVNMD"),
        (lambda n: n.pop("train_attr/training_script"), r"(?s)without which its settings.*--init-frz-model forged.pb"),
        (lambda n: n.update(a=node("a", "TabulateFusionSeA")), r"(?s)is compressed.*the input of dp compress"),
        (lambda n: n.pop("layer_2_type_1/idt"), "no 'layer_2_type_1/idt'"),
        (lambda n: n.pop("ProdEnvMatA"), "0 operations ProdEnvMatA"),
        (lambda n: n.update(a=node("a", "ProdEnvMatA")), "2 operations ProdEnvMatA"),
        (lambda n: n.update(ProdEnvMatA=node("ProdEnvMatA", "ProdEnvMatA")), "no number 'sel_a'"),
        (
            lambda n: n.update({"layer_0_type_0/bias": node("layer_0_type_0/bias", "VariableV2")}),
            "(?s)a variable without a value.*dp --tf freeze",
        ),
        (
            lambda n: n.update(
                {"model_attr/model_type": node("model_attr/model_type", "Const", tensor(7, (), field(8, b"dipole")))}
            ),
            "a model of type 'dipole'",
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tmp_path: Path, change: Callable[[Nodes], object], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(forged(tmp_path, change))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (doubles(1.0, shape=(2,)), r"has 8 bytes for shape \(2,\)"),
        (tensor(2, (1 << 40,), field(6, struct.pack("<d", 1.0))), "repeats a value"),
        (tensor(2, (1 << 62, 1 << 62), b""), "repeats a value"),
        (tensor(2, (-1,), b""), "a size that is none"),
        (tensor(2, (1,) * 9, b""), "9 sizes"),
        (tensor(2, (1,), field(6, bytes(16))), "has 2 values"),
        (tensor(2, (1,), field(6, bytes(7))), "cut off"),
        (tensor(3, (1,), field(7, b"\xff")), "does not end"),
        (tensor(2, (1,), field(6, 3)), "a number where bytes"),
        (tensor(19, (1,), b""), "of type float16"),
        (tensor(7, (), field(8, b"a")), "holds text"),
        (field(1, b"a") + field(2, b""), "is of type"),
        (field(2, field(3, 1)) + field(1, 2), "its shape is unknown"),
        (b"", "is of type"),
        (b"\x12\x7f", "127 bytes where 0 are left"),
    ],
)
def test_constants_that_are_none(tmp_path: Path, value: bytes, message: str) -> None:
    name = "final_layer_type_0/bias"
    with pytest.raises(ModelFileError, match=message):
        read_model(forged(tmp_path, lambda nodes: nodes.update({name: node(name, "Const", value)})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no graph"),
        (b"not a model", "damaged or no frozen graph"),
        (b'node {\n  name: "a"\n}\n', "(?s)text form.*convert-from pbtxt"),
        (b"\x08\x01\x12\x03abc", "(?s)a TensorFlow SavedModel.*dp --tf freeze"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field of"),
        (field(1, b"\x0a" + varint(1 << 60)), "a field of"),
        (field(1, node("", "Const")), "has no name"),
        (2 * field(1, node("a", "Const")), "two nodes are named 'a'"),
        (field(1, node("a", "Const")), "no Deep Potential model"),
        (field(1, node("a", "Const")) + field(1, 5), "a number where bytes"),
        (b"\x0a" * 11, "damaged"),
        (b"\xff" * 11, "does not end"),
        (b"\x0b", "of kind 3"),
        (field(1, field(1, b"\xff")), "damaged"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "graph.pb"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value.where)


def test_damage_is_refused_without_much_memory(tmp_path: Path) -> None:
    random.seed(5)
    whole, path = PLAIN.read_bytes(), tmp_path / "damaged.pb"
    for end in (*range(1, 40), *(random.randrange(len(whole)) for _ in range(60))):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelFileError):
            read_model(path)
    refused = 0
    tracemalloc.start()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(40):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            read_graph(path)
        except (ModelFileError, ValueError, KeyError, TypeError, AttributeError):  # what read_model words
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 50
    assert peak < 30 * len(whole)
