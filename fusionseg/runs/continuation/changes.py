"""Changes of a configuration with which a run can go on from its newest checkpoint, and those that need a new run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.runs.paths import RunPaths, is_run_folder, run_of_weights
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import user_path

EXTEND, BRANCH = "--extend", "--branch"
"""The words of the command line; in Python, the arguments `extend` and `branch` of `fusionseg.train`."""

# The same network learns from the same cases. Everything else is in the settings of how it learns.
_CHANGEABLE_SECTIONS = ("augment", "loss", "optim", "schedule", "stop", "train", "validate")
_FIXED_KEYS = ("optim.name",)  # the state of another optimizer does not fit


@dataclass(frozen=True)
class Continuation:
    """The word of a start that goes on from a checkpoint of another configuration. Without one, it is refused."""

    extend: bool = False
    """Go on in the folder of the run."""
    branch: Path | None = None
    """Go on in a new folder, from a copy of the newest checkpoint of this run, or from this checkpoint."""


PLAIN = Continuation()


def fixed_changes(changes: Iterable[str]) -> list[str]:
    """The changes with which a run cannot go on from its checkpoint.

    Args:
        changes: as `differences` lists them: `key: before -> now`.
    """
    return [line for line in changes if not _is_changeable(_key(line))]


def ways_text(path: Path, changes: Sequence[str]) -> str:
    """Say how to go on with a changed configuration, for the message that refuses it.

    Args:
        path: the run folder, or a checkpoint in it.
        changes: see `fixed_changes`; not empty.
    """
    run = shlex.quote(str(run_of_weights(path)))
    fresh = f"name=NAME init_from={run} starts a new run at step 0 from its weights"
    if fixed := fixed_changes(changes):
        keys = ", ".join(_key(line) for line in fixed)
        return f"a run keeps {keys} from its beginning to its end; {fresh}, where they fit"
    return (
        f"to go on from its newest checkpoint with the new values: {EXTEND} (in this folder), or name=NAME {BRANCH}"
        f" {run} (in a new folder); {fresh}"
    )


def config_of_branch(origin: Path) -> Path:
    """The configuration of the run that a branch begins from.

    Args:
        origin: the run folder, or a checkpoint in it.

    Raises:
        UserError: it is neither.
    """
    run = run_of_weights(user_path(str(origin)))
    if not is_run_folder(run):
        raise UserError(
            f"{BRANCH} {origin}: is no run folder, and no checkpoint in one: give one that a training wrote"
        )
    return RunPaths(run).config


def _key(line: str) -> str:
    return line.partition(": ")[0]


def _is_changeable(key: str) -> bool:
    return key.partition(".")[0] in _CHANGEABLE_SECTIONS and key not in _FIXED_KEYS
