"""The evaluation of several runs. A run that fails does not end the others."""

from __future__ import annotations

import logging
import re
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fusionseg.distributed.world import World
from fusionseg.inference.calls.dealt_cases import single_rank
from fusionseg.inference.evaluation.one_run import (
    FAILED,
    NO_WEIGHTS,
    NOT_VALIDATED,
    Outcome,
    evaluate_run,
)
from fusionseg.inference.evaluation.opening import EvaluationOptions, open_evaluation
from fusionseg.runs.cases.split_file import NO_VALIDATION, validates_none
from fusionseg.runs.paths import has_weights, holds_runs, is_run_folder, run_folders
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import markdown_table

log = logging.getLogger("fusionseg")

_MAX_REMARK = 100
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


@dataclass
class Outcomes:
    """The outcomes of several runs, by run folder."""

    by_run: dict[Path, Outcome] = field(default_factory=dict)

    @property
    def all_complete(self) -> bool:
        """False if a case or a run failed."""
        return all(outcome.is_complete for outcome in self.by_run.values())

    def table(self) -> str:
        """Format the outcomes as Markdown."""
        rows = [(str(run), outcome.state, outcome.remark) for run, outcome in self.by_run.items()]
        return markdown_table([("run", "state", ""), *rows])


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate the words of a command line into paths of runs and `key.path=value` settings.

    A word of the form of a setting is a setting, unless there is a run or a folder of runs of this name.
    """
    paths: list[Path] = []
    overrides: list[str] = []
    for word in words:
        if _OVERRIDE.match(word) and not holds_runs(Path(word)):
            overrides.append(word)
        else:
            paths.append(Path(word))
    return paths, overrides


def is_one_run(paths: Sequence[Path]) -> bool:
    """Tell whether paths name a single run, not a folder of runs."""
    return len(paths) == 1 and (is_run_folder(paths[0]) or not holds_runs(paths[0]))


def due_runs(folders: Sequence[Path], options: EvaluationOptions) -> list[Path]:
    """Return the runs that `evaluate_runs` with `skip_existing` would compute an evaluation of.

    A run that cannot be evaluated is left out: `evaluate_runs` names the reason.

    Args:
        folders: the run folders.
        options: the options of the evaluation.
    """
    return [
        run for run in folders if has_weights(run) and not _is_without_cases(run, options) and _is_due(run, options)
    ]


def _is_due(run: Path, options: EvaluationOptions) -> bool:
    try:
        return not open_evaluation(run, options).is_current()
    except (UserError, OSError):
        return False


def _is_without_cases(run: Path, options: EvaluationOptions) -> bool:
    return options.dataset_root is None and validates_none(run)


def evaluate_runs(paths: Sequence[Path], options: EvaluationOptions, world: World | None = None) -> Outcomes:
    """Evaluate runs, one after the other.

    Args:
        paths: run folders, and folders of run folders.
        options: the options of the evaluation.
        world: the ranks that divide the cases of each run, all of which call this function; None for a single one.

    Raises:
        UserError: a path holds no run, or the options are for a single run.
    """
    world = world or single_rank()
    with world.wait_for_all("list the runs"):
        folders = run_folders(paths)
    folders = world.broadcast_object(folders)
    if options.others:
        raise UserError(f"--with: averages with one run, and {len(folders)} are named; evaluate them one by one")
    outcomes = Outcomes()
    for position, run in enumerate(folders, start=1):
        # Rank 0 decides: the first weights of a run may be written while the ranks look.
        lacks_weights, lacks_cases = world.broadcast_object((not has_weights(run), _is_without_cases(run, options)))
        if lacks_weights:
            log.info("%s has no weights yet: it is skipped", run)
            outcomes.by_run[run] = Outcome(NO_WEIGHTS, "skipped")
            continue
        if lacks_cases:
            log.info("%s was %s: it is skipped (--dataset names other cases)", run, NO_VALIDATION)
            outcomes.by_run[run] = Outcome(NOT_VALIDATED, NO_VALIDATION)
            continue
        log.info("%s (%d of %d)", run, position, len(folders))
        outcomes.by_run[run] = _evaluate(run, options, world)
    return outcomes


def _evaluate(run: Path, options: EvaluationOptions, world: World) -> Outcome:
    """Evaluate a run. A failure is logged and becomes the outcome."""
    try:
        return evaluate_run(run, options, world)
    except UserError as error:
        log.error("%s", error)
        reason = error.problems[0]
    # After one of these errors, the next run may still succeed: it may be smaller, or on another disk.
    except (OSError, torch.OutOfMemoryError) as error:
        reason = str(error).partition("\n")[0]
        log.error("%s: %s", run, reason)
    except RuntimeError as error:  # a fault of the program: logged in full, and the other runs are evaluated
        log.error("%s: %s", run, traceback.format_exc())
        reason = type(error).__name__
    return Outcome(FAILED, textwrap.shorten(reason, _MAX_REMARK, placeholder=" ..."))
