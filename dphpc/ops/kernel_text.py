"""CUDA source as it is compiled at run time: one string with all headers, which can be the key of a program cache."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


@lru_cache
def kernel_text(name: str, **definitions: str | int) -> str:
    """A file of `kernels/cuda` with its headers inlined, preceded by a `#define` for each definition."""
    defined = "".join(f"#define {key} {value}\n" for key, value in definitions.items())
    return defined + _with_headers(name)


@lru_cache
def _with_headers(name: str) -> str:
    seen: set[str] = set()

    def text_of(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        places = [resources.files("dphpc") / "_kernels" / folder / name for folder in ("cuda", "shared")]
        text = next(place for place in places if place.is_file()).read_text()
        return _INCLUDE.sub(lambda match: text_of(match[1]), text.replace("#pragma once\n", ""))

    return text_of(name)
