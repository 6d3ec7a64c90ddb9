"""Configurations, and overrides as a caller gives them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    from fusionseg.config import RunConfig
    from fusionseg.config.override import Override

Overrides = Sequence[str] | Mapping[str, Any]
"""["train.steps=10"], as on the command line, or {"train.steps": 10}."""

log = logging.getLogger("fusionseg")


def load_config(config: str | Path | RunConfig, overrides: Overrides = ()) -> RunConfig:
    """Load and validate the configuration of a run.

    Args:
        config: a YAML file, the name of a shipped configuration (`fusionseg configs` lists them), or a configuration
            that was loaded before.
        overrides: values that win over the file: `["train.steps=10"]`, as on the command line, or
            `{"train.steps": 10}`.

    Returns:
        The configuration. It cannot be changed: load it again with other overrides.

    Raises:
        UserError: there is no such file, or keys or values are wrong. The message lists all problems.

    Example:
        >>> import fusionseg
        >>> config = fusionseg.load_config("hippocampus_unet", {"train.steps": 100, "output": "runs"})
        >>> config.train.steps, config.data.patch
        (100, (48, 64, 48))
    """
    from fusionseg.config import RunConfig, validate
    from fusionseg.config.loading import lay_over, read_raw
    from fusionseg.config.renaming import Dropped

    dropped: list[Dropped] = []
    raw, places = (config.to_dict(), {}) if isinstance(config, RunConfig) else read_raw(config)
    loaded = validate(*lay_over(raw, places, _parse_overrides(overrides), dropped))
    given = overrides if isinstance(overrides, Mapping) else {}
    whole = {key for key, value in given.items() if isinstance(value, Mapping)}
    for entry in dropped:
        # A whole section states its own keys, as a file does. A changed name alone may be expected to keep the others.
        if not entry.from_file and entry.section not in whole:
            log.warning("%s", entry)
    return loaded


def override_texts(overrides: Overrides) -> list[str]:
    """Overrides as texts, `key.path=value`."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in overrides.items()]


def _parse_overrides(overrides: Overrides) -> list[Override]:
    from fusionseg.config import RunConfig
    from fusionseg.config.override import Override, parse_override

    if isinstance(overrides, str):
        raise UserError(f'overrides: expected a list or a dictionary, got {overrides!r}; write ["{overrides}"]')
    if not isinstance(overrides, Mapping):
        return [parse_override(text, RunConfig) for text in overrides]
    return [Override(tuple(key.split(".")), _plain(value), f"overrides: {key}") for key, value in overrides.items()]


def _plain(value: Any) -> Any:
    """A Python value as YAML has it: paths are texts, tuples are lists."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
