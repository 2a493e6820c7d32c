"""Input files as typed models: strict keys, DeePMD-kit's comments and aliases, errors that name the nearest key.

A section of an input is a `Config`; `load_config` reads a JSON or YAML file into one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from dphpc.core.errors import InputError, did_you_mean, nearest, reason_of
from dphpc.core.foreign import recognized

Seed = Annotated[int, Field(ge=0, lt=2**60)]
"""A seed in the range that `core.random` takes."""

INPUTS = {
    "md": ("run file of molecular dynamics", frozenset({"structure", "stages", "timestep_fs", "thermo", "trajectory"})),
    "train": ("training input", frozenset({"training", "learning_rate", "loss", "optimizer"})),
    "learn": ("run file of active learning", frozenset({"train", "rounds", "label", "select", "retrain"})),
    "ipi": ("driver input for i-PI", frozenset({"graph_file", "coord_file", "atom_type", "use_unix"})),
    "": ("param.json of DP-GEN", frozenset({"default_training_param", "init_data_sys", "sys_configs", "fp_style"})),
}
"""Command -> what its input is, and keys that the others' lack, of which every such file has two at least."""

MAX_INPUT_BYTES = 16 * 2**20
MAX_REPORTED = 10


class Config(BaseModel):
    """A section of an input file.

    Keys that begin with an underscore (`_comment`) are ignored, aliases become the key's name, and
    every other key must be a field.  Instances are immutable: change them with `updated`.

    Class attributes
    ----------------
    key_aliases
        Other spellings: alias to field name.
    unsupported_keys
        Keys that the format knows and we do not act on: name to the values that ask for nothing and are
        therefore accepted (and dropped).  Any other value is refused by name.
    ignored_keys
        Keys of the format that mean nothing any more: accepted and dropped.
    other_words
        What other programs call our keys, for the remedy: their word to our key.
    taken_by
        The command whose whole input this is, one of `INPUTS`; empty for others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=False)

    key_aliases: ClassVar[Mapping[str, str]] = {}
    unsupported_keys: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    ignored_keys: ClassVar[frozenset[str]] = frozenset()
    other_words: ClassVar[Mapping[str, str]] = {}
    taken_by: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kept: dict[str, Any] = {}
        problems: list[dict[str, str]] = []
        for key, value in data.items():
            if not isinstance(key, str):
                problems.append({"key": str(key), "what": "is not a text key", "remedy": "write it in quotes"})
            elif key.startswith("_") or key in cls.ignored_keys:
                continue
            elif key in cls.unsupported_keys:
                if not any(_same(value, neutral) for neutral in cls.unsupported_keys[key]):
                    problems.append(_unsupported(key, cls.unsupported_keys[key]))
            elif (name := cls.key_aliases.get(key, key)) not in cls.model_fields:
                problems.append({"key": key, "what": "is not a known key", "remedy": cls._suggest(key)})
            elif name in kept:
                problems.append({"key": key, "what": f"gives '{name}' twice", "remedy": "keep one of them"})
            else:
                kept[name] = value
        if problems and cls._is_of_this_kind(data):  # else they may be another kind's keys: the type is what is wrong
            raise PydanticCustomError("keys", "wrong keys", {"problems": problems})
        return kept

    @classmethod
    def _is_of_this_kind(cls, data: Mapping[str, Any]) -> bool:
        """Whether a check that stands before the field `type` takes its value."""
        field = cls.model_fields.get("type")
        checks = [m.func for m in field.metadata if isinstance(m, BeforeValidator)] if field else []
        try:
            for check in checks if "type" in data else ():
                check(data["type"])  # type: ignore[call-arg]
        except ValueError:
            return False
        return True

    @classmethod
    def _suggest(cls, key: str) -> str:
        if key in cls.other_words:
            return f"here it is '{cls.other_words[key]}'"
        near = nearest(key, [*cls.model_fields, *cls.key_aliases, *cls.unsupported_keys])
        return did_you_mean(key, [near] if near else cls.model_fields)

    def updated(self: ConfigT, **changes: Any) -> ConfigT:
        """A copy with other values, checked again."""
        return type(self).model_validate({**self.model_dump(), **changes})


ConfigT = TypeVar("ConfigT", bound=Config)


def listed(value: Any) -> Any:
    """A list of one text or number, for keys that take one or several; other values as they are."""
    return [value] if isinstance(value, str) or _is_number(value) else value


def _same(a: Any, b: Any) -> bool:
    return a == b and (type(a) is type(b) or (_is_number(a) and _is_number(b)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unsupported(key: str, neutral: tuple[Any, ...]) -> dict[str, str]:
    remedy = "remove it" + (f" or set it to {json.dumps(neutral[0])}" if neutral else "")
    return {"key": key, "what": "is a key of DeePMD-kit that dphpc does not support yet", "remedy": remedy}


def load_config(kind: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a JSON or YAML file into `kind`.

    Raises
    ------
    InputError
        The file cannot be read, or a key or value is wrong; the message names file and key.
    """
    return parse_config(kind, read_mapping(path), source=str(path))


def parse_config(kind: type[ConfigT], data: Mapping[str, Any], *, source: str = "input") -> ConfigT:
    """Check a mapping against `kind`; `source` stands for the file in messages.

    Raises
    ------
    InputError
        A key or value is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _other_input(kind, data, source) or _input_error(error, data, source) from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON (`.json`) or YAML (any other suffix) file.

    Raises
    ------
    InputError
        No such file, too large, not JSON or YAML, no mapping, or a key given twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise InputError(f"'{path}' is too large for an input file", expected=f"at most {MAX_INPUT_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason_of(error)
        remedy = "check the path and its permissions"
        if isinstance(error, UnicodeDecodeError):
            remedy = "models, structures and restart files are named in an input, under the keys for them"
        raise InputError(f"cannot read the input file {str(path)!r}: {reason}", remedy=remedy) from None
    is_json = path.suffix.lower() == ".json"
    try:
        data = json.loads(text, object_pairs_hook=_unique) if is_json else yaml.load(text, Loader=_Loader)
    except _DuplicateKey as error:
        raise InputError(f"key '{error}' is given twice", where=str(path), remedy="keep one of them") from None
    except Exception as error:  # PyYAML passes on whatever the constructor of a tagged or malformed value raises
        kind = "JSON" if is_json else "YAML"
        raise _foreign(text, path) or InputError(f"the file is not valid {kind}: {error}", where=str(path)) from None
    if not isinstance(data, dict):
        raise _foreign(text, path) or InputError(
            "the file holds no keys", where=str(path), expected="YAML, lines as 'key: value', or JSON"
        )
    return data


def _foreign(text: str, path: Path) -> InputError | None:
    """The error that names another program's file, if it seems to be one."""
    if (kind := recognized(text)) is None:
        return None
    expected = "an input of dphpc, YAML or JSON"
    return InputError(f"the file seems to be {kind.what}", where=str(path), expected=expected, remedy=kind.remedy)


class _DuplicateKey(Exception):
    pass


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result and not str(key).startswith("_"):
            raise _DuplicateKey(key)
        result[key] = value
    return result


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3) and a key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        pairs = ((self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value)
        try:
            return _unique(pairs)
        except TypeError:
            raise yaml.constructor.ConstructorError(None, None, "a key is not text", node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _other_input(kind: type[Config], data: Mapping[str, Any], source: str) -> InputError | None:
    """The error that names the right command if an input seems to be another one's, else None."""
    if not kind.taken_by or INPUTS[kind.taken_by][1] & data.keys():
        return None
    for command, (what, telling) in INPUTS.items():
        if len(found := sorted(telling & data.keys())) > 1:
            return InputError(
                f"the file seems to be a {what}: it has the keys {', '.join(found)}", where=source,
                expected=f"a {INPUTS[kind.taken_by][0]}",
                remedy=f"use dphpc {command}" if command else "dphpc learn takes a run file of its own: docs/learn.md",
            )  # fmt: skip
    return None


def _input_error(error: ValidationError, data: Any, source: str) -> InputError:
    problems = _merged(p for details in error.errors(include_url=False) for p in _problems(details, data))
    if len(problems) == 1:
        (p,) = problems
        where = f"{source}: {p.where}" if p.where else source
        return InputError(p.what, where=where, expected=p.expected, remedy=p.remedy)
    lines, told = [], ""
    for p in problems[:MAX_REPORTED]:
        note = p.remedy or p.expected or ""
        # All known keys of a section are listed once.
        lines.append(f"{p.where or 'the whole'}: {p.what}" + (f" ({note})" if note not in ("", told) else ""))
        told = note
    more = len(problems) - len(lines)
    lines += [f"and {more} more"] if more > 0 else []
    return InputError(f"{len(problems)} errors in {source}:\n  - " + "\n  - ".join(lines))


class _Problem(NamedTuple):
    """One wrong key or value; `where` is its path in the input, empty for the whole input."""

    where: str
    what: str
    expected: str | None = None
    remedy: str | None = None


def _merged(problems: Iterable[_Problem]) -> list[_Problem]:
    """The problems, those of one value joined: pydantic reports one for each member of a union."""
    found: dict[tuple[str, str], _Problem] = {}
    for problem in problems:
        key = problem.where, problem.what
        if key in found and found[key].expected and problem.expected:
            other = problem.expected.removeprefix("input should be ")
            problem = problem._replace(expected=f"{found[key].expected}, or {other}")
        found[key] = problem
    return list(found.values())


def _problems(details: ErrorDetails, data: Any) -> list[_Problem]:
    """The problems that one of pydantic's errors stands for."""
    path = _path_in(details["loc"], data, with_last=details["type"] == "missing")
    if details["type"] == "keys":
        return [
            _Problem("/".join((*path, p["key"])), f"'{p['key']}' {p['what']}", remedy=p["remedy"])
            for p in details["ctx"]["problems"]
        ]
    key = path[-1] if path else "input"
    if details["type"] == "missing":
        return [_Problem("/".join(path), f"'{key}' is missing", remedy="add it")]
    if details["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in details["ctx"]["expected_tags"].split(",")]
        tag = details["ctx"]["tag"]
        near = did_you_mean(tag, tags) if nearest(tag, tags) else None
        where = "/".join((*path, "type"))
        return [_Problem(where, f"type '{tag}' is not supported", f"one of {', '.join(tags)}", near)]
    message = details["msg"].removeprefix("Value error, ").replace(" after validation", "")
    if details["type"] == "value_error":
        return [_Problem("/".join(path), message)]
    if details["type"] == "list_type":
        message = "a list in brackets: [...]"
    if details["type"] in ("model_type", "model_attributes_type", "dict_type"):
        kind = details.get("ctx", {}).get("class_name", "")
        keys = next((list(c.model_fields) for c in _kinds(Config) if c.__name__ == kind), [])
        message = "a section with keys of its own" + (f": {', '.join(keys)}" if keys else "")
    return [_Problem("/".join(path), f"'{key}' has the wrong value {_short(details['input'])}", _lower(message))]


def _kinds(kind: type[Config]) -> Iterator[type[Config]]:
    """All kinds of sections that have been defined."""
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _path_in(loc: tuple[int | str, ...], data: Any, *, with_last: bool) -> tuple[str, ...]:
    """The parts of a location that are keys or indices of the data (pydantic adds names of union members).

    `with_last` keeps the last part although the data lacks it.
    """
    parts: list[str] = []
    for i, part in enumerate(loc):
        inside = isinstance(data, Mapping) and part in data
        inside = inside or (isinstance(data, list | tuple) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (with_last and i == len(loc) - 1):
            continue
        parts.append(str(part))
    return tuple(parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
