"""The optional packages of the readers: the extra `formats`."""

from __future__ import annotations

import importlib
from typing import Any

from fusionseg.data.formats.image_file import VolumeError

INSTALL = "pip install 'fusionseg[formats]'"


def optional_package(name: str) -> Any:
    """Import a package of the extra `formats`.

    Args:
        name: of the module.

    Raises:
        VolumeError: the package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VolumeError(
            "package", f"the package {name.partition('.')[0]} is not installed ({error})", INSTALL
        ) from None
