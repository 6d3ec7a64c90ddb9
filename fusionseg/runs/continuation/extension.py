"""Extension of a run: it goes on in its folder with another configuration, which its history records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig, validate
from fusionseg.runs.accounts.history import CHANGE_EXTENDED, write_change
from fusionseg.runs.continuation.changes import BRANCH, EXTEND, fixed_changes, ways_text
from fusionseg.runs.paths import RunPaths, checkpoints_of, last_step
from fusionseg.runs.records import RunStatus, last_end, rewind_records
from fusionseg.runs.run_config import relevant_changes, stored_config, with_defaults
from fusionseg.utils.errors import UserError


def changes_of(before: dict[str, Any], config: RunConfig) -> list[str]:
    """List `key: before -> now` for each value that the results depend on.

    Args:
        before: the plain configuration under which the run was trained.
        config: the configuration of this start.
    """
    return relevant_changes(with_defaults(before), config.to_dict())


def changes_since(run: Path, config: RunConfig) -> list[str]:
    """List the changes since the configuration in a run folder, see `changes_of`; none for a run without checkpoints.

    Args:
        run: the run folder.
        config: the configuration of this start.
    """
    if not checkpoints_of(run) or not RunPaths(run).config.exists():
        return []
    return changes_of(stored_config(run)[0], config)


def refuse_unfit_extension(run: Path, before: dict[str, Any], config: RunConfig) -> None:
    """Refuse an extension that changes what a run keeps, or that leaves nothing to train.

    Args:
        run: the run folder.
        before: the plain configuration under which it was trained.
        config: the configuration of this start.

    Raises:
        UserError: with all problems.
    """
    changes = changes_of(before, config)
    if changes and (problems := refusals(run, changes, config, last_step(run))):
        raise UserError(problems)


def refusals(run: Path, changes: list[str], config: RunConfig, step: int) -> list[str]:
    """List what prevents a run from going on with another configuration from one of its checkpoints.

    Args:
        run: the run folder.
        changes: of the configuration.
        config: the configuration of this start.
        step: steps that the checkpoint has done.
    """
    problems = []
    if fixed := fixed_changes(changes):
        listed = "\n  ".join(fixed)
        problems.append(
            f"{run}: {EXTEND} and {BRANCH} train the same network on the same data; these values cannot change (stored"
            f" -> now):\n  {listed}\n{ways_text(run, fixed)}"
        )
    if config.train.steps <= step:
        problems.append(
            f"train.steps: {config.train.steps} leaves nothing to train after the {step} steps of the checkpoint of"
            f" {run}; raise it (train.steps={2 * step}), or branch from an earlier checkpoint: name=NAME {BRANCH}"
            f" {run}/checkpoints/step_*.pt"
        )
    end = last_end(run)
    ended = end is not None and end["status"] == RunStatus.PLATEAU and end["step"] == step
    if end is not None and ended and not any(line.startswith("stop.plateau") for line in changes):
        problems.append(
            f"{run}: stop.plateau has ended this run ({end['reason']}), and would end it again at once: set"
            " stop.plateau=null, or change its values"
        )
    return problems


def with_earlier_rate(before: dict[str, Any], config: RunConfig) -> RunConfig:
    """The present configuration with the optimizer, the schedule and the steps of an earlier one.

    Nothing else of the earlier one is read: a loss or an augmentation that it names may no longer exist.

    Args:
        before: the plain earlier configuration.
        config: the present one.

    Raises:
        UserError: the earlier values are not valid.
    """
    plain = config.to_dict()
    earlier: dict[str, Any] = {key: before[key] for key in ("optim", "schedule") if key in before}
    train = before.get("train")
    steps = {"steps": train["steps"]} if isinstance(train, dict) and "steps" in train else {}
    return validate({**plain, **earlier, "train": {**plain["train"], **steps}}, recorded=True)


def record_extension(run: Path, config: RunConfig) -> list[str]:
    """Record the changes of the configuration in the history of a run, with the configuration before them.

    Call it with the folder locked, and before the new configuration is written: from then on, checkpoints of the
    configuration before belong to the run.

    Args:
        run: the run folder.
        config: the configuration of this start, which `RunFolder.check` has allowed.

    Returns:
        The changes; none if the results do not depend on any.
    """
    changes = changes_since(run, config)
    if changes:
        write_change(run, CHANGE_EXTENDED, last_step(run), changes, stored_config(run)[0])
        if last_end(run) is not None:  # it is no longer the end
            rewind_records(run, sys.maxsize, validated=sys.maxsize)
    return changes
