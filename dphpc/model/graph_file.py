"""Frozen TensorFlow graphs (`.pb`): a strict reader of the constants and settings in them.

A file is a GraphDef in protobuf's wire format: fields, each a number, a kind and a value, some of them messages of
fields themselves.  Read are the nodes' names, operations and attributes; nothing is executed, nothing outside the file
is looked at, and a length is compared with what there is before memory is taken.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import ModelFileError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES = {1: "float32", 2: "float64", 3: "int32", 7: "text", 9: "int64"}
_OTHER_TYPES = {10: "bool", 14: "bfloat16", 19: "float16"}
_VALUES = {"float32": 5, "float64": 6, "int32": 7, "text": 8, "int64": 10}  # fields of a tensor's values, by type
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_LARGEST = 1 << 31  # bytes; protobuf has no larger messages
_REPEATED_LIMIT = 1 << 26  # bytes; more is a forged shape: one value stands for all only where a tensor is constant
_NOT_FROZEN = "freeze the model of a checkpoint: dp --tf freeze -o graph.pb"


class Graph:
    """The constants and settings of a frozen graph, by the names of its nodes.

    Raises
    ------
    ModelFileError
        The file is none, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nodes: dict[str, tuple[str, memoryview]] = {}  # operation, and the message to be read for attributes
        if path.stat().st_size > _LARGEST:
            raise ModelFileError("the file is larger than any graph", expected="up to 2 GiB")
        data = path.read_bytes()
        if data[:1] == b"\x08":
            raise ModelFileError("the file is a TensorFlow SavedModel", expected="a frozen graph", remedy=_NOT_FROZEN)
        if data.lstrip().startswith(b"node {"):
            raise ModelFileError(
                "the file is a graph in text form",
                remedy=f"dp convert-from pbtxt -i {path.name} -o graph.pb",
            )  # fmt: skip
        try:
            for number, value in _fields(memoryview(data)):
                if number == 1:
                    self._add(_bytes(value))
        except ValueError as error:
            raise ModelFileError(
                f"the file is damaged or no frozen graph: {error}", expected="a model of dp freeze"
            ) from error
        if not self._nodes:
            raise ModelFileError("the file holds no graph", expected="a model of dp freeze")

    def _add(self, message: memoryview) -> None:
        name = operation = ""
        for number, value in _fields(message):
            if number in (1, 2):
                text = str(_bytes(value), "utf-8")
                name, operation = (text, operation) if number == 1 else (name, sys.intern(text))
        if not name or name in self._nodes:
            raise ValueError(f"two nodes are named '{name}'" if name else "a node has no name")
        self._nodes[name] = operation, message

    def _attribute(self, name: str, key: str) -> dict[int, int | memoryview]:
        """The fields of a node's attribute.

        Raises
        ------
        ValueError
            There is none, or it is damaged.
        """
        for number, value in _fields(self._nodes[name][1]):
            if number == 5:
                entry = dict(_fields(_bytes(value)))
                if _bytes(entry.get(1, 0)) == key.encode():
                    return dict(_fields(_bytes(entry.get(2, 0))))
        raise ValueError(f"it has no {key}")

    def __contains__(self, name: str) -> bool:
        """Whether there is such a constant."""
        return name in self._nodes and self._nodes[name][0] == "Const"

    def operations(self, *kinds: str) -> list[str]:
        """The names of the nodes with one of these operations."""
        return [name for name, (operation, _) in self._nodes.items() if operation in kinds]

    def array(self, name: str) -> np.ndarray:
        """A numeric constant.

        Raises
        ------
        ModelFileError
            There is none of this name, or it is damaged or of another type.
        """
        kind, shape, fields = self._tensor(name)
        if kind == "text":
            raise self._wrong(name, "holds text", "numbers")
        dtype = np.dtype(kind).newbyteorder("<")
        size = prod(shape)
        content = b"".join(value for number, value in fields if number == 4 and not isinstance(value, int))
        if content:
            if len(content) != size * dtype.itemsize:
                raise self._wrong(name, f"has {len(content)} bytes for shape {shape}", f"{size * dtype.itemsize}")
            return np.frombuffer(content, dtype).reshape(shape).astype(kind)
        try:
            values = _numbers([value for number, value in fields if number == _VALUES[kind]], dtype)
        except ValueError as error:
            raise self._wrong(name, f"is damaged: {error}", "a tensor") from error
        if len(values) > size:
            raise self._wrong(name, f"has {len(values)} values for shape {shape}", str(size))
        if len(values) < size:  # TensorFlow's rule: the last value stands for the rest, 0 where there is none
            if size * dtype.itemsize > _REPEATED_LIMIT:
                raise self._wrong(name, f"repeats a value over shape {shape}", f"up to {_REPEATED_LIMIT} bytes")
            last = values[-1:] if len(values) else np.zeros(1, dtype)
            values = np.concatenate((values, np.repeat(last, size - len(values))))
        return values.reshape(shape).astype(kind)

    def text(self, name: str) -> str:
        """A constant that is one text.

        Raises
        ------
        ModelFileError
            As `array`.
        """
        kind, shape, fields = self._tensor(name)
        texts = [value for number, value in fields if number == _VALUES["text"]]
        if kind != "text" or prod(shape) != 1 or len(texts) != 1:
            raise self._wrong(name, "is not one text", "a text")
        try:
            return str(_bytes(texts[0]), "utf-8")
        except ValueError as error:
            raise self._wrong(name, "holds bytes that are no text", "UTF-8") from error

    def setting(self, name: str, key: str) -> Any:
        """An attribute of a node: a number with a point, stored in float32, or a list of whole numbers.

        Raises
        ------
        ModelFileError
            There is none, or it is something else.
        """
        try:
            found = self._attribute(name, key)
            if 4 in found:
                return float(struct.unpack("<f", _bytes(found[4]))[0])
            entries = [value for number, value in _fields(_bytes(found[1])) if number == 3]
            return _numbers(entries, np.dtype(np.int64)).tolist()
        except (ValueError, KeyError, struct.error) as error:
            raise ModelFileError(f"the graph's operation '{name}' has no number '{key}'") from error

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], list[tuple[int, int | memoryview]]]:
        """Type, shape and fields of a constant."""
        if name not in self:
            unfrozen = self._nodes.get(name, ("",))[0] in _VARIABLES
            raise ModelFileError(
                f"'{name}' of the graph is a variable without a value" if unfrozen else f"the graph has no '{name}'",
                expected="a frozen model", remedy=_NOT_FROZEN if unfrozen else "is it complete?",
            )  # fmt: skip
        try:
            fields = list(_fields(_bytes(self._attribute(name, "value").get(8, 0))))
            last = dict(fields)
            kind, shape = last.get(1), _sizes(_bytes(last.get(2, memoryview(b""))))
        except ValueError as error:
            raise self._wrong(name, f"is damaged: {error}", "a tensor") from error
        if not isinstance(kind, int) or kind not in _TYPES:
            known = _OTHER_TYPES.get(kind) if isinstance(kind, int) else None
            raise self._wrong(name, f"is of type {known or 'number ' + str(kind)}", "float64 or float32")
        return _TYPES[kind], shape, fields

    def _wrong(self, name: str, what: str, expected: str) -> ModelFileError:
        return ModelFileError(f"'{name}' of the graph {what}", expected=expected)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: a whole number, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field has number 0")
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field is of kind {kind}")
        if length > len(message) - at:
            raise ValueError(f"a field of {length} bytes where {len(message) - at} are left")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number of 64 bits, 7 in a byte, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
    raise ValueError("a number does not end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _sizes(shape: memoryview) -> tuple[int, ...]:
    """The sizes of a shape."""
    sizes = []
    for number, value in _fields(shape):
        if number == 3 and value:
            raise ValueError("its shape is unknown")
        if number == 2:
            size = dict(_fields(_bytes(value))).get(1, 0)
            if not isinstance(size, int) or _signed(size) < 0:
                raise ValueError("its shape has a size that is none")
            sizes.append(size)
    if len(sizes) > 8:
        raise ValueError(f"its shape has {len(sizes)} sizes")
    return tuple(sizes)


def _numbers(found: list[int | memoryview], dtype: np.dtype[Any]) -> np.ndarray:
    """Values of a repeated field, packed into bytes or not."""
    if dtype.kind == "f":
        content = b"".join(_bytes(value) for value in found)
        if len(content) % dtype.itemsize:
            raise ValueError("values that are cut off")
        return np.frombuffer(content, dtype)
    values: list[int] = []
    for value in found:
        if isinstance(value, int):
            values.append(_signed(value))
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            values.append(_signed(number))
    return np.array(values, np.int64).astype(dtype)
