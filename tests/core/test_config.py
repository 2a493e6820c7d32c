from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import BeforeValidator, Field

from dphpc.core.config import Config, load_config, parse_config
from dphpc.core.errors import InputError, nearest


class Inner(Config):
    key_aliases: ClassVar = {"cutoff": "rcut"}
    unsupported_keys: ClassVar = {"fancy": (False, 0)}
    ignored_keys: ClassVar = frozenset({"old"})

    rcut: float = Field(default=6.0, gt=0)
    steps: int = 1


class Outer(Config):
    inner: Inner = Inner()
    many: list[Inner] = Field(default=[])
    name: str


def refuse(data: dict, kind: type[Config] = Outer) -> InputError:
    with pytest.raises(InputError) as caught:
        parse_config(kind, data, source="in.json")
    return caught.value


def test_defaults_aliases_comments_and_ignored_keys() -> None:
    config = parse_config(Outer, {"name": "a", "_comment": 1, "inner": {"cutoff": 3, "old": 1, "fancy": False}})
    assert config.inner.rcut == 3.0
    assert config.updated(name="b").name == "b"
    assert config.name == "a"


def test_unknown_key_names_path_and_nearest_key() -> None:
    error = refuse({"name": "a", "inner": {"rcutt": 3}})
    assert error.where == "in.json: inner/rcutt"
    assert error.remedy == "did you mean 'rcut'?"
    assert "known are: inner, many, name" in str(refuse({"name": "a", "zzzzz": 1}))
    assert str(refuse({"name": "a", "zzzzz": 1, "yyyyy": 1})).count("known are: inner, many, name") == 1


def mine(value: str) -> str:
    if value != "mine":
        raise ValueError(f"thing '{value}' is not supported")
    return value


class Typed(Config):
    other_words: ClassVar = {"dt": "timestep"}

    type: Annotated[str, BeforeValidator(mine)] = "mine"
    timestep_fs: float = 1.0
    temperature_K: float = 1.0


def test_remedies_for_shortened_and_foreign_words() -> None:
    assert refuse({"temp": 1}, Typed).remedy == "did you mean 'temperature_K'?"
    assert refuse({"dt": 1}, Typed).remedy == "here it is 'timestep'"
    assert (refuse({"a": 1}, Typed).remedy or "").startswith("known are")
    assert nearest("temp", ["steps"]) is None


def test_the_type_is_what_is_wrong_where_the_other_keys_are_another_types() -> None:
    assert refuse({"type": "theirs", "charge": 1}, Typed).what == "thing 'theirs' is not supported"
    assert refuse({"type": "mine", "charge": 1}, Typed).what == "'charge' is not a known key"


def test_a_section_that_is_no_section_tells_its_keys() -> None:
    error = refuse({"name": "a", "inner": 3})
    assert error.expected == "a section with keys of its own: rcut, steps"


def test_unsupported_key_is_refused_by_name_unless_it_asks_for_nothing() -> None:
    error = refuse({"name": "a", "many": [{}, {"fancy": True}]})
    assert error.where == "in.json: many/1/fancy"
    assert "not support" in error.what
    parse_config(Outer, {"name": "a", "many": [{"fancy": 0}]})
    refuse({"name": "a", "many": [{"fancy": 0.5}]})


def test_wrong_values_missing_keys_and_several_errors() -> None:
    assert refuse({}).where == "in.json: name"
    assert "greater than 0" in str(refuse({"name": "a", "inner": {"rcut": -1}}))
    assert refuse({"name": "a", "many": 3}).expected == "a list in brackets: [...]"
    assert "a section with keys" in str(refuse({"name": "a", "inner": 3}))
    assert "'cutoff' gives 'rcut' twice" in str(refuse({"name": "a", "inner": {"rcut": 1, "cutoff": 2}}))
    both = str(refuse({"name": 1, "inner": {"rcut": -1, "steps": "x"}}))
    assert "3 errors in in.json" in both
    assert "inner/steps" in both


class Whole(Outer):
    taken_by: ClassVar = "md"


def test_another_commands_input_is_told_by_two_of_its_keys_and_none_of_ones_own() -> None:
    theirs = {"training": {}, "loss": {}}
    assert "training input" in refuse(theirs, Whole).what
    assert refuse(theirs, Whole).remedy == "use dphpc train"
    for given in ({"loss": {}}, theirs | {"stages": []}):
        assert "not a known key" in str(refuse(given, Whole))
    assert refuse({"graph_file": "a", "use_unix": True}, Whole).remedy == "use dphpc ipi"
    assert "docs/learn.md" in str(refuse({"sys_configs": [], "fp_style": "vasp"}, Whole).remedy)
    assert "not a known key" in str(refuse(theirs))


def test_infinity_is_no_number() -> None:
    assert "finite" in str(refuse({"name": "a", "inner": {"rcut": float("inf")}}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"name": "a",}', "not valid JSON"),
        ("a.yaml", "name: [1", "not valid YAML"),
        ("a.json", '{"name": "a", "name": "b"}', "key 'name' is given twice"),
        ("a.yaml", "name: a\nname: b", "key 'name' is given twice"),
        ("a.json", "[1]", "holds no keys"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("missing.json", None, "cannot read"),
        ("a.json\0", None, "cannot read the input file .*null"),
        ("a.json", "1" * 5000, "not valid JSON"),
        ("a.yaml", f"name: {'1' * 5000}", "not valid YAML"),
        ("a.yaml", "name: 2001-99-99", "not valid YAML"),
        *(("a.yaml", f"name: !!{tag} ''", "not valid YAML") for tag in ("timestamp", "int", "float", "bool")),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(Outer, tmp_path / name)


def test_yaml_reads_floats_without_a_point(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ninner: {rcut: 1e-3, _comment: x, steps: 1_0}\n")
    assert load_config(Outer, tmp_path / "a.yaml").inner.rcut == 1e-3


def test_json_comments_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"_comment": 1, "_comment": 2, "name": "a"}')
    assert load_config(Outer, tmp_path / "a.json").name == "a"
