"""Branch of a run: a new folder that begins at a checkpoint of another run, with its optimizer and its records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.runs.accounts.history import CHANGE_BRANCHED, read_changes, write_change
from fusionseg.runs.checkpoints import newest_intact, read_training_state
from fusionseg.runs.continuation.changes import BRANCH, config_of_branch
from fusionseg.runs.continuation.extension import changes_of, refusals
from fusionseg.runs.divided.folders import link_folder, point_to
from fusionseg.runs.paths import BEST, LAST, RunPaths, free_folder, is_divided, numbered_name, run_of_weights
from fusionseg.runs.records import rewind_records
from fusionseg.runs.run_config import write_run_config
from fusionseg.runs.trust.foreign_code import check_code
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import user_path, whole_file


@dataclass(frozen=True)
class Branch:
    """The checkpoint that a branch begins from."""

    run: Path
    """The folder of the run that has trained it."""
    checkpoint: Path
    step: int
    config: dict[str, Any]
    """The plain configuration in the checkpoint."""
    has_best: bool
    """Whether best.pt of the run is from before the checkpoint."""


def find_branch(origin: Path, config: RunConfig) -> Branch:
    """Find and verify the checkpoint that a branch begins from.

    Args:
        origin: a run folder, for its newest checkpoint that is intact; or a checkpoint in one.
        config: the configuration of the branch.

    Raises:
        UserError: there is none, or the configuration is not for a branch of it.
    """
    path, run = user_path(str(origin)), config_of_branch(origin).parent
    if path == run:
        newest = newest_intact(RunPaths(run).checkpoints, read_training_state)
    else:
        newest = path, read_training_state(path)
    if newest is None:
        raise UserError(f"{BRANCH} {origin}: holds no checkpoint: train it first, or start without {BRANCH}")
    checkpoint, content = newest
    check_code(content["config"], checkpoint)  # of the other run, whose optimizer and schedule are imported
    step, best = content["step"], content["best"]
    if problems := refusals(run, changes_of(content["config"], config), config, step):
        raise UserError(problems)
    return Branch(run, checkpoint, step, content["config"], best is not None and _best_step(run) == best["step"])


def make_branch(branch: Branch, folder: Path, config: RunConfig) -> list[str]:
    """Make a run folder begin at the checkpoint of another run. Call it with the folder locked.

    The checkpoint comes last: without it, the branch is not complete, and `unfinished_branch` says so.

    Args:
        branch: the checkpoint.
        folder: the new run folder, which holds no checkpoints.
        config: its configuration.

    Returns:
        The changes of the configuration.

    Raises:
        UserError: the other run has deleted the checkpoint meanwhile.
    """
    changes = changes_of(branch.config, config)
    ours, theirs = RunPaths(folder), RunPaths(branch.run)
    write_change(folder, CHANGE_BRANCHED, branch.step, changes, branch.config, branch.checkpoint.resolve())
    for path, other in ((ours.split, theirs.split), (ours.metrics, theirs.metrics)):
        if other.is_file():
            with whole_file(path) as temporary:
                temporary.write_bytes(other.read_bytes())
    # Without the end of the other run: a branch that is killed before its first step would count as finished.
    rewind_records(folder, branch.step, validated=branch.step)
    write_run_config(folder, config)
    try:
        if branch.has_best:
            _link(theirs.checkpoints / BEST, ours.checkpoints / BEST)
        if is_divided(branch.checkpoint):
            link_folder(branch.checkpoint.resolve(), path := free_folder(ours.checkpoints, branch.step))
            point_to(ours.checkpoints / LAST, path)
        else:
            for name in (LAST, numbered_name(branch.step)):
                _link(branch.checkpoint, ours.checkpoints / name)
    except FileNotFoundError:
        raise UserError(
            f"{branch.checkpoint}: has been deleted by its run, which trains on: start the same command again"
        ) from None
    return changes


def refuse_other_origin(folder: Path, origin: Path) -> None:
    """Refuse to branch into a folder that holds a run already, unless it is the branch of the same run.

    Args:
        folder: the run folder, which holds checkpoints.
        origin: the run, or the checkpoint, that a start names.

    Raises:
        UserError: the folder holds another run.
    """
    begun = [change.origin for change in read_changes(folder) if change.origin is not None]
    path = user_path(str(origin)).resolve()
    if not begun:
        raise UserError(f"{folder}: holds a run already, and {BRANCH} begins a new one: choose another name")
    if path not in (begun[-1], run_of_weights(begun[-1])):
        raise UserError(
            f"{folder}: is a branch of {begun[-1]}, and not of {origin}: choose another name, or leave {BRANCH} out"
        )


def unfinished_branch(folder: Path) -> Path | None:
    """The checkpoint from which a branch was to begin, of a folder that holds no checkpoints; None for another run."""
    return next((change.origin for change in reversed(read_changes(folder)) if change.origin is not None), None)


def _best_step(run: Path) -> int | None:
    """The step of best.pt; None if there is none that can be read."""
    import torch

    try:
        content = torch.load(RunPaths(run).checkpoints / BEST, map_location="cpu", weights_only=True, mmap=True)
        return int(content["step"])
    except Exception:  # it is then left out of the branch, and the next best validation writes one
        return None


def _link(file: Path, path: Path) -> None:
    """Give a checkpoint a second name, or copy it where the file system has no links. No checkpoint is ever changed."""
    with whole_file(path) as temporary:
        try:
            os.link(file.resolve(), temporary)
        except FileNotFoundError:
            raise
        except OSError:
            temporary.write_bytes(file.read_bytes())
