"""The configuration that a run folder holds: that of config.yaml, or, where it is damaged, of the checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fusionseg.config import validate
from fusionseg.config.yaml_location import Places, read_yaml
from fusionseg.runs.checkpoints import numbered_checkpoints, read_checkpoint
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")


def stored_config(run: Path) -> tuple[dict[str, Any], Places]:
    """The plain configuration of a run folder, and where each key was written.

    Raises:
        UserError: config.yaml cannot be read, and no checkpoint beside it holds the configuration.
    """
    path = run / "config.yaml"
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is no file")
        plain, places = read_yaml(path)
        if not plain:
            raise UserError(f"{path}: is empty")
        return plain, places
    except UserError as error:
        found = _of_checkpoints(run / "checkpoints")
        if found is None:
            raise
        checkpoint, config = found
        log.warning("%s: the configuration is taken from %s", error.problems[0], checkpoint)
        return config, {}


def resolved(plain: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration with the defaults of keys that are younger than it; as it is, if it is no valid one."""
    try:
        return validate(plain).to_dict()
    except UserError:
        return plain


def _of_checkpoints(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in (*(path for _, path in numbered_checkpoints(folder)), folder / "last.pt", folder / "best.pt"):
        try:
            config = read_checkpoint(path).get("config")
        except UserError:
            continue
        if isinstance(config, dict):
            return path, config
    return None
