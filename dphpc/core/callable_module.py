"""Packages that can be called: `dphpc.train(...)` is short for `dphpc.train.run.train(...)`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module_name: str, target: str) -> None:
    """Make calling a package call one of its functions, which is imported at the first call only.

    Parameters
    ----------
    module_name
        The package's `__name__`; call this from its `__init__.py`.
    target
        "package.module:function"; `inspect.signature` of the package shows this function's.
    """
    where, name = target.split(":")

    def load() -> Callable[..., Any]:
        return getattr(importlib.import_module(where), name)

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return load()(*args, **kwargs)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(load())

    sys.modules[module_name].__class__ = CallableModule
