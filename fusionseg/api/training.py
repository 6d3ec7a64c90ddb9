"""Configurations and trainings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionseg.api.runs import Run
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
    for entry in dropped:
        log.warning("%s", entry)
    return loaded


def train(config: str | Path | RunConfig, overrides: Overrides = ()) -> Run:
    """Train a segmentation network, or continue its training, and wait for the end.

    The run is written to the folder `output`/`name` of the configuration. The call is the same as
    `python -m fusionseg.train`: started again with the same configuration, it continues from the newest checkpoint.
    Started by torchrun or srun, it trains on all ranks. Ctrl-C (in a notebook: interrupt) saves a checkpoint and ends.

    Args:
        config: as for `load_config`.
        overrides: as for `load_config`.

    Returns:
        The run. `run.status` is "completed", "plateau" (`stop.plateau` ended it) or "interrupted".

    Raises:
        UserError: the configuration or the data are wrong, or the folder holds another run.
        TrainingStopped: the training cannot go on, for example because the memory does not suffice.

    Example:
        >>> import fusionseg
        >>> short = {"train.steps": 2, "schedule.warmup": 1, "data.folds": 3, "data.patch": [32, 32, 32]}
        >>> small = {"model": {"name": "unet", "channels": [4, 8]}}
        >>> run = fusionseg.train("demo", {"data.root": "data", "name": "first", **short, **small})
        >>> run.status, run.step
        ('completed', 2)
    """
    return _start(load_config(config, overrides), pretraining=False)


def pretrain(config: str | Path | RunConfig, overrides: Overrides = ()) -> Run:
    """Pre-train an encoder by masked reconstruction, without labels, and wait for the end.

    A training starts from it with `init_from`: `fusionseg.train("parse_fusion_od", {"init_from": run.folder})`.

    Args:
        config: as for `load_config`; it has a `pretrain` section, as the shipped `mae_swin` does.
        overrides: as for `load_config`.

    Returns:
        The run.

    Raises:
        UserError: as for `train`.
        TrainingStopped: as for `train`.

    Example:
        >>> import fusionseg
        >>> short = {"train.steps": 2, "schedule.warmup": 1, "data.folds": 3}
        >>> run = fusionseg.pretrain("hippocampus_pretrain", {"data.root": "data", "name": "encoder", **short})
        >>> run.status
        'completed'
    """
    return _start(load_config(config, overrides), pretraining=True)


def _start(config: RunConfig, *, pretraining: bool) -> Run:
    from fusionseg.api.runs import load_run
    from fusionseg.runs.folder import run_folder_of
    from fusionseg.training.start import train
    from fusionseg.utils.errors import UserError

    if config.pretrain is not None and not pretraining:
        raise UserError(f"pretrain: {config.name} has this section; call fusionseg.pretrain, or remove it")
    if config.pretrain is None and pretraining:
        raise UserError(f"pretrain: {config.name} lacks this section; call fusionseg.train, or add it (as in mae_swin)")
    with _restored_logging():
        train(config)
    return load_run(run_folder_of(config))


@contextmanager
def _restored_logging() -> Iterator[None]:
    """A training logs to the screen and to its log.txt; afterwards the messages go where they went before."""
    before = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.level, log.propagate = before


def _parse_overrides(overrides: Overrides) -> list[Override]:
    from fusionseg.config import RunConfig
    from fusionseg.config.override import Override, parse_override
    from fusionseg.utils.errors import UserError

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
