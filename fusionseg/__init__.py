"""fusionseg: distributed training for 3D medical image segmentation.

The names in `__all__` are the public Python API, which docs/api.md describes. All other modules are internal.

The import of the package is fast: the code of a name, with torch and MONAI if it needs them, is imported when the name
is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionseg.utils.version import __version__

if TYPE_CHECKING:
    from fusionseg.api import (
        Run,
        TrainingStopped,
        UserError,
        build_network,
        evaluate,
        load_config,
        load_run,
        open_dataset,
        predict,
        pretrain,
        register_loss,
        register_network,
        register_optimizer,
        register_schedule,
        train,
    )

__all__ = [
    "Run",
    "TrainingStopped",
    "UserError",
    "__version__",
    "build_network",
    "evaluate",
    "load_config",
    "load_run",
    "open_dataset",
    "predict",
    "pretrain",
    "register_loss",
    "register_network",
    "register_optimizer",
    "register_schedule",
    "train",
]

# `python -m fusionseg.train` is a command, and `fusionseg.train(...)` is a function: these modules are both.
_ENTRY_POINTS = ("pretrain", "train")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _ENTRY_POINTS:
        return importlib.import_module(f"fusionseg.{name}")
    if name in __all__:
        return getattr(importlib.import_module("fusionseg.api"), name)
    raise AttributeError(f"module 'fusionseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
