"""Classes of libraries that a foreign configuration may name: they take numbers and texts, and run no code by them."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from fusionseg.config.outside import is_installed
from fusionseg.runs.trust.named_code import NamedCode

# Modules whose import does nothing else, and the base class of those of their classes that may be named.
_LIBRARIES = {
    "torch.nn": "torch.nn:Module",
    "torch.optim": "torch.optim:Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler:LRScheduler",
    "monai.networks.nets": "torch.nn:Module",
    "monai.losses": "torch.nn:Module",
    "monai.metrics": "monai.metrics:Metric",
    "monai.transforms": "monai.transforms:Transform",
}
# These load files, take a function or a class by its name, or write to a path: Load, Save, Lambda, TorchVision, hubs.
_ASKED = re.compile(
    r"Load|Save|WriteFile|(Rand)?Lambda|(Rand)?Torch([vV]ision|IO)|(Rand)?CuCIM|Compose|"
    r"Perceptual|Transchex|MultiModal|Bert|Ho[vV]er|SAM|NetAdapter"
)


def is_harmless(code: NamedCode) -> bool:
    """Tell whether a dotted path is of such a class, and would be found in the library itself.

    Args:
        code: the dotted path.
    """
    module, _, name = code.name.partition(":")
    if code.found_in is not None or not name.isidentifier() or code.file is None:
        return False
    file = Path(code.file)
    if module not in _LIBRARIES or not is_installed(file) or _ASKED.match(name):
        return False
    part = _part(module, name)
    base = _part(*_LIBRARIES[module].split(":"))
    if not inspect.isclass(part) or not inspect.isclass(base):
        return False
    return issubclass(part, base) and _is_defined_in(part, module.partition(".")[0])


def _part(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name, None)


def _is_defined_in(part: object, module: str) -> bool:
    """Tell whether a part is not one that the module has imported from elsewhere."""
    return f"{getattr(part, '__module__', '')}.".startswith(f"{module}.")
