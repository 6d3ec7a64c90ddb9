"""Checks of a start that need neither torch nor the data set: wrong paths, and a run that has already finished."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.config.data.splits import ALL
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.continuation.branch import refuse_other_origin
from fusionseg.runs.continuation.changes import EXTEND, PLAIN, Continuation
from fusionseg.runs.folder import run_folder_of
from fusionseg.runs.paths import RunPaths, last_step
from fusionseg.runs.records import RunStatus, has_finished, last_end
from fusionseg.runs.run_config import plain_config, relevant_changes
from fusionseg.utils.errors import Problems, UserError
from fusionseg.utils.files import user_path, writable_folder

_SETTLED_S = 120.0
"""Seconds after which every node of a cluster sees a change of a file. NFS caches attributes for up to 60 s."""


def check_places(plain: Mapping[str, Any]) -> None:
    """Make sure that the paths in a configuration can be used. The rest of the configuration may be wrong.

    Args:
        plain: plain values under the keys of the file. Values that are no paths are ignored.

    Raises:
        UserError: `data.root` or `init_from` does not exist, or `output` cannot be written. With
            `finetune.from_scratch` the run does not read `init_from`.
    """
    problems = Problems()
    data, output, init_from = plain.get("data"), plain.get("output", "runs"), plain.get("init_from")
    root = data.get("root") if isinstance(data, Mapping) else None
    finetune = plain.get("finetune")
    if isinstance(finetune, Mapping) and finetune.get("from_scratch") is True:
        init_from = None
    for key, text in (("data.root", root), ("init_from", init_from)):
        with problems.collect():
            _check_exists(key, text)
    if isinstance(output, str):
        with problems.collect():
            writable_folder(user_path(output), "output")
    problems.raise_if_any()


def _check_exists(key: str, text: Any) -> None:
    if isinstance(text, str) and not user_path(text).exists():
        raise UserError(f"{key}={Path(text)}: does not exist (from here, {Path.cwd()}): correct the path")


def finished_message(config: RunConfig, *, alone: bool, continuation: Continuation = PLAIN) -> str:
    """Say that the run of a configuration has finished, and how to use it; an empty text if it has not.

    A run has finished if its last record says so, its last checkpoint is there, and its configuration gives the same
    results as this one. In every other case the training itself decides.

    Args:
        config: of this start.
        alone: whether this process is the only one of the run. If it is not, a record that is younger than two minutes
            does not count: a rank on another node may not see it yet, and would wait for the others.
        continuation: the word of this start.

    Raises:
        UserError: the run has finished, and is not the branch that the word names.
    """
    folder = run_folder_of(config)
    metrics = RunPaths(folder).metrics
    if config.resume == "never" or not metrics.is_file():
        return ""
    end = last_end(folder)
    if end is None or not has_finished(end["status"]) or last_step(folder) != end["step"]:
        return ""
    if not alone and time.time() - metrics.stat().st_mtime < _SETTLED_S:
        return ""
    try:
        same = not relevant_changes(plain_config(folder), config.to_dict())
    except UserError:
        return ""
    if same and continuation.branch is not None:
        refuse_other_origin(folder, continuation.branch)
    return finished_text(config, folder, end["status"], end["step"]) if same else ""


def finished_text(config: RunConfig, folder: Path, status: str, step: int) -> str:
    """The message about a run that has finished.

    Args:
        config: of the run.
        folder: of the run.
        status: `completed` or `plateau`.
        step: the last step of the run.
    """
    use = f"predict with it: fusionseg predict {folder} -i IMAGES -o MASKS"
    if config.task_info.evaluation == "reconstruction":
        use = f"start a segmentation from it: fusionseg train --config FILE init_from={folder}"
    has_validation = config.data.fold != ALL
    if config.task_info.evaluation == "validation":
        use = f"use its best weights: {folder}/checkpoints/best.pt"
        use = use if has_validation else f"use its weights: {folder}/checkpoints/last.pt"
    evaluation = f"  evaluate it: fusionseg evaluate {folder}\n"
    if not has_validation:
        evaluation = f"  it was {NO_VALIDATION}\n"
        if config.task_info.evaluation == "masks":
            evaluation = f"  evaluate it on other cases: fusionseg evaluate {folder} --dataset FOLDER\n"
    return (
        f"{folder}: this run has finished ({status} at step {step}); there is nothing left to train\n"
        f"{evaluation}"
        f"  {use}\n"
        f"  train it longer: the same command with {_longer(status, step)} {EXTEND}\n"
        "  train another one: the same command with name=ANOTHER_NAME"
    )


def _longer(status: str, step: int) -> str:
    """The setting with which a finished run goes on, for a message."""
    return "stop.plateau=null" if status == RunStatus.PLATEAU else f"train.steps={2 * step}"
