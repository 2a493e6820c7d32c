"""Inputs shown in the README, the guide and the examples are inputs that the program takes; links lead somewhere."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dphpc.active.config import LearnConfig, Round
from dphpc.active.result import RoundSummary
from dphpc.core.config import Config, parse_config
from dphpc.md.config import Deviation, Fixed, MdConfig, ModelInputs, Restart, Thermo, Trajectory, Velocities
from dphpc.md.selection import Selection
from dphpc.md.stages import Stage
from dphpc.train.schema import parse_input

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_inputs_on_the_page_are_valid(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text()):
        if language == "yaml":
            given = yaml.safe_load(text)
            if "rounds" in given:
                parse_config(LearnConfig, given)
            else:  # a loop fills in the structure
                parse_config(MdConfig, ({"structure": "a"} if page.name == "learn.md" else {}) | given)
        elif language == "json":
            parse_input(json.loads(text))
        else:
            assert language == "python", f"a block in {language} is not looked at"
            compile(text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_example_run_files_are_valid(path: Path) -> None:
    parse_config(MdConfig, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("input.json")), ids=lambda path: path.parent.name)
def test_example_training_inputs_are_valid(path: Path) -> None:
    parse_input(json.loads(path.read_text()))


def test_every_md_key_is_in_the_guide() -> None:
    page = (ROOT / "docs" / "md.md").read_text()
    assert not [key for key in MdConfig.model_fields if f"`{key}`" not in page]
    # Sections are shown as they are written: in a table of their own, or as `{every: 10, …}`.
    sections = {Velocities, Fixed, Selection, Stage, Thermo, Trajectory, Restart, Deviation, ModelInputs}
    assert sections == _sections_of(MdConfig)
    keys = {key for section in sections for key in section.model_fields}
    assert not [key for key in keys if not re.search(rf"`{key}`|\b{key}: ", page)]


def test_every_learn_key_is_in_its_guide() -> None:
    page = (ROOT / "docs" / "learn.md").read_text()
    sections = {LearnConfig, *_sections_of(LearnConfig)}
    keys = {key for section in sections | _sections_of(Round) for key in section.model_fields}
    assert {"temperature_K", "stop_above", "command", "label"} <= keys
    assert not [key for key in keys if not re.search(rf"`{key}`|\b{key}: ", page)]
    columns = (ROOT / "docs" / "learn.md").read_text().partition("`rounds.csv` | meaning")[2]
    hidden = {"round", "entry", "converged"}
    assert not [f.name for f in fields(RoundSummary) if f.name not in hidden and f"`{f.name}`" not in columns]


def _sections_of(config: type[Config]) -> set[type[Config]]:
    return {kind for field in config.model_fields.values() for kind in _sections_in(field.annotation)}


def _sections_in(annotation: Any) -> set[type[Config]]:
    """The sections that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return {annotation}
    return set().union(*map(_sections_in, get_args(annotation)))
