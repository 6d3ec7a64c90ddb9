"""Loading of configurations, and overrides in the forms that a caller of the API gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionseg.utils.errors import UserError
from fusionseg.utils.logs import log

if TYPE_CHECKING:
    from fusionseg.config import RunConfig
    from fusionseg.config.override import Override

Overrides = Sequence[str] | Mapping[str, Any]
"""["train.steps=10"], as on the command line, or {"train.steps": 10}."""


def load_config(config: str | Path | RunConfig, overrides: Overrides = ()) -> RunConfig:
    """Load and validate the configuration of a run.

    Args:
        config: a YAML file, the name of a shipped configuration (`fusionseg configs` lists them), or a configuration
            that was loaded before.
        overrides: values that replace those of the file: `["train.steps=10"]`, as on the command line, or
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
    raw, locations = (config.to_dict(), {}) if isinstance(config, RunConfig) else read_raw(config)
    loaded = validate(*lay_over(raw, locations, _parse_overrides(overrides), dropped))
    given = overrides if isinstance(overrides, Mapping) else {}
    whole = {key for key, value in given.items() if isinstance(value, Mapping)}
    for entry in dropped:
        # A file or a whole section states the keys it wants. A caller who changes a name alone may expect to keep them.
        if not entry.from_file and entry.section not in whole:
            log.warning("%s", entry)
    return loaded


def override_texts(overrides: Overrides) -> list[str]:
    """Convert overrides to texts of the form `key.path=value`."""
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
    """Convert a Python value to one that YAML has: a path to a string, a tuple to a list."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
