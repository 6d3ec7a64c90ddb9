"""Training and pre-training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.api.configuration import Overrides, load_config
from fusionseg.api.runs import Run, load_run
from fusionseg.utils.errors import UserError
from fusionseg.utils.logs import log

if TYPE_CHECKING:
    from fusionseg.config import RunConfig


def train(
    config: str | Path | RunConfig,
    overrides: Overrides = (),
    *,
    extend: bool = False,
    branch: str | Path | None = None,
) -> Run:
    """Train a segmentation network, or continue its training, and wait for the end.

    The run is written to the folder `output`/`name` of the configuration. The call does the same as
    `python -m fusionseg.train`: with the same configuration again, it continues from the newest checkpoint. In a
    program that torchrun or srun starts, it trains on all ranks. Ctrl-C (in a notebook: interrupt) saves a checkpoint
    and ends the training.

    Args:
        config: as for `load_config`.
        overrides: as for `load_config`.
        extend: go on in the folder of a run with a changed configuration: more steps, another learning rate, another
            micro-batch. Without it such a start is refused.
        branch: a run folder, or a checkpoint in one. The new run begins at its newest checkpoint, or at this one, with
            its optimizer.

    Returns:
        The run. `run.status` is "completed", "plateau" (`stop.plateau` ended it) or "interrupted".

    Raises:
        UserError: the configuration or the data are wrong, or the folder holds another run.
        TrainingStopped: the training cannot go on, for example because the memory does not suffice.

    Example:
        >>> import fusionseg
        >>> short = {"train.steps": 2, "schedule.warmup": 1, "data.folds": 3, "data.workers": 1}
        >>> small = {"model": {"name": "unet", "channels": [4, 8]}, "data.patch": [32, 32, 32]}
        >>> run = fusionseg.train("demo", {"data.root": "data", "name": "first", **short, **small})
        >>> run.status, run.step
        ('completed', 2)
    """
    return _start(load_config(config, overrides), pretraining=False, extend=extend, branch=branch)


def pretrain(
    config: str | Path | RunConfig,
    overrides: Overrides = (),
    *,
    extend: bool = False,
    branch: str | Path | None = None,
) -> Run:
    """Pre-train an encoder by masked reconstruction, without labels, and wait for the end.

    A training starts from it with `init_from`: `fusionseg.train("parse_fusion_od", {"init_from": run.folder})`.

    Args:
        config: as for `load_config`; it has a `pretrain` section, as the shipped `mae_swin` does.
        overrides: as for `load_config`.
        extend, branch: as for `train`.

    Returns:
        The run.

    Raises:
        UserError: as for `train`.
        TrainingStopped: as for `train`.

    Example:
        >>> import fusionseg
        >>> short = {"train.steps": 2, "schedule.warmup": 1, "data.folds": 3, "data.workers": 1}
        >>> short |= {"train.global_batch": 1, "train.micro_batch": 1, "train.precision": "fp32"}
        >>> run = fusionseg.pretrain("hippocampus_pretrain", {"data.root": "data", "name": "encoder", **short})
        >>> run.status
        'completed'
    """
    return _start(load_config(config, overrides), pretraining=True, extend=extend, branch=branch)


def _start(config: RunConfig, *, pretraining: bool, extend: bool, branch: str | Path | None) -> Run:
    from fusionseg.runs.continuation.changes import Continuation
    from fusionseg.runs.folder import patience_of_start, run_folder_of
    from fusionseg.training.start import train

    if config.pretrain is not None and not pretraining:
        raise UserError(f"pretrain: {config.name} has this section; call fusionseg.pretrain, or remove it")
    if config.pretrain is None and pretraining:
        raise UserError(f"pretrain: {config.name} lacks this section; call fusionseg.train, or add it (as in mae_swin)")
    if extend and branch is not None:
        raise UserError("extend, branch: go on in the folder of the run, or in a new one; give one of them")
    continuation = Continuation(extend, None if branch is None else Path(branch))
    with _restored_logging():
        train(config, patience_of_start(os.environ), continuation=continuation)
    return load_run(run_folder_of(config))


@contextmanager
def _restored_logging() -> Iterator[None]:
    """Restore the handlers and the level of the log after the body: a training replaces them."""
    before = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.level, log.propagate = before
