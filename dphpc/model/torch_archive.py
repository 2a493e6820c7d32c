"""PyTorch's files (`.pt`, `.pth`) as plain values, without PyTorch; nothing in them is executed.

They are zip archives of arrays, `NAME/data/KEY`, and of a pickle, `NAME/data.pkl`, that tells how these belong
together.  A pickle is a program for a stack machine, and what makes it dangerous is that it may import and call
anything.  Here its instructions are followed without either: a class or function is its name, a call of the few
functions that torch writes is the value that it stands for, and any other is kept as an `Item`.
"""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dphpc.core.errors import ModelFileError

PROGRAM_LIMIT = 1 << 24
"""Most bytes of a pickle, of which each may become a hundred bytes of memory; a model's has some hundred kB."""

_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip

_PUSHED = ("BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TAGS = ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


class _Name(str):
    """A class or function, as `module name`."""


@dataclass
class Item:
    """An object of some class, or the result of some call: its name, and its attributes."""

    kind: str
    entries: dict[Any, Any] = field(default_factory=dict)


def read_archive(path: Path) -> Any:
    """What `torch.save` or `torch.jit.save` wrote: dictionaries, lists, arrays and `Item`s.

    An array is a view of the file's bytes: all of them together take no more memory than the file has.

    Raises
    ------
    ModelFileError
        It is no such file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Machine(archive, path.stat().st_size).run()
    except ModelFileError:
        raise
    except Exception as error:  # a forged or damaged file makes the parsers raise whatever they come across
        raise ModelFileError(
            f"the file is damaged or none of PyTorch: {error}", expected="a zip archive of torch.save"
        ) from error


class _Machine:
    """A pickle's stack machine that can neither import nor call."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive, self._size = archive, size
        programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError("it has no file data.pkl")
        self._root = programs[0].removesuffix("data.pkl")
        self._storages: dict[str, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []

    def run(self) -> Any:
        """The value that the program ends with."""
        if f"{self._root}byteorder" in self._archive.namelist() and self._bytes("byteorder", 16) != b"little":
            raise ValueError("its numbers are not little-endian")
        memo: dict[Any, Any] = {}
        stack = self._stack
        for op, argument, _ in pickletools.genops(self._bytes("data.pkl", PROGRAM_LIMIT)):
            match op.name:
                case "STOP":
                    return stack.pop()
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    self._marks.append(len(stack))
                case name if name in _PUSHED:
                    stack.append(argument)
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name:
                    self._build(name, argument)
        raise ValueError("its program does not end")

    def _build(self, name: str, argument: Any) -> None:
        """Do an instruction that makes or fills an object."""
        stack = self._stack
        match name:
            case "PROTO":
                pass
            case "GLOBAL":
                stack.append(_Name(argument))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                parts = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(parts)))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = self._since_mark()
                stack[-1].extend(values)
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                stack[-1][key] = value
            case "SETITEMS":
                values = self._since_mark()
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case "BINPERSID":
                stack.append(tuple(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._value_of(called, arguments))
            case "BUILD":
                entries = stack.pop()
                if isinstance(stack[-1], Item) and isinstance(entries, dict):
                    stack[-1].entries = entries
            case _:
                raise ValueError(f"an instruction {name}, which torch does not write")

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _value_of(self, called: Any, arguments: Any) -> Any:
        """What a call stands for."""
        if not isinstance(called, _Name):
            raise ValueError("it calls what is no function")
        module, _, name = called.partition(" ")
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._tensor(*arguments[:4])
        if called == "collections OrderedDict":
            return dict(*arguments)
        if (module == "torch.jit._pickle" and name in _TAGS) or called == "torch._utils _rebuild_parameter":
            return arguments[0]
        return Item(called)

    def _tensor(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """An array within a storage, or an `Item` if it holds numbers that NumPy has not."""
        _, kind, key, _, _ = storage
        dtype = _DTYPES.get(kind.rpartition(" ")[2])
        if dtype is None:
            return Item(kind)
        if key not in self._storages:
            self._storages[key] = self._bytes(f"data/{key}", self._size)
        numbers = np.frombuffer(self._storages[key], dtype)
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, last) < 0 or max(prod(shape), last + 1) > len(numbers):
            raise ValueError(f"an array of shape {shape} is larger than what is stored of it")
        steps = [stride * numbers.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)

    def _bytes(self, name: str, most: int) -> bytes:
        """A member of the archive, which torch does not compress."""
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(most, self._size):
            raise ValueError(f"{name} is packed or too long")
        return self._archive.read(info)
