"""Modules that can be called: `fusionseg.train` is both the module of a command and a function of the API."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module `fusionseg.NAME`. Calling it calls the function `fusionseg.api.NAME`."""

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("fusionseg.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function of the API with the name of this module; its documentation is in docs/api.md."""
        return self._function(*arguments, **keywords)


def make_callable(module: str) -> None:
    """Make a module callable. Under `python -m MODULE` its name is __main__, and nothing is done.

    Args:
        module: its name, `__name__`.
    """
    if module != "__main__":
        sys.modules[module].__class__ = CallableModule
