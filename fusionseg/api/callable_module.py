"""Modules that can be called: `fusionseg.train` is the module of a command and a function of the API."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module `fusionseg.NAME` whose call is that of `fusionseg.api.NAME`."""

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
    """Make a module callable. `python -m MODULE` runs it under the name __main__: that one stays as it is."""
    if module != "__main__":
        sys.modules[module].__class__ = CallableModule
