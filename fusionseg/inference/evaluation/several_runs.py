"""`fusionseg evaluate` of several runs: each by itself, one that fails does not end the others."""

from __future__ import annotations

import logging
import re
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import RunConfig
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.evaluation.cases import evaluation_config
from fusionseg.inference.evaluation.pretraining import evaluate_pretraining
from fusionseg.inference.evaluation.segmentation import evaluate, request_for
from fusionseg.inference.evaluation.table import evaluation_table
from fusionseg.inference.predictor import PredictOptions
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.evaluations import CASES, PICTURE, SUMMARY, VOLUMES, evaluation_folder, is_current
from fusionseg.runs.paths import has_weights, holds_runs, is_run_folder, run_folders
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import markdown_table

log = logging.getLogger("fusionseg")

EVALUATED, KEPT, NO_WEIGHTS, INCOMPLETE, FAILED = "evaluated", "kept", "no weights yet", "cases failed", "failed"
_MAX_REMARK = 100
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


@dataclass(frozen=True)
class Wanted:
    """The options of an evaluation, the same for each run."""

    options: PredictOptions
    overrides: Sequence[str]
    dataset_root: str | None = None
    others: Sequence[Path] = ()
    include_trained: bool = False
    skip_existing: bool = False
    volumes: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run."""

    state: str
    remark: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing failed; a run without weights has not failed."""
        return self.state not in (INCOMPLETE, FAILED)


@dataclass
class Outcomes:
    """The outcome of several runs."""

    states: dict[Path, Outcome] = field(default_factory=dict)

    @property
    def all_well(self) -> bool:
        return all(outcome.is_whole for outcome in self.states.values())

    def table(self) -> str:
        """Each run with its state, as Markdown."""
        rows = [(str(run), outcome.state, outcome.remark) for run, outcome in self.states.items()]
        return markdown_table([("run", "state", ""), *rows])


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Runs and folders of runs, and `key.path=value` settings, from the words of a command line.

    A word of the form of a setting is one, unless there is a run or a folder of runs of this name.
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
    """Whether a request is for a single run, and not for a folder of them."""
    return len(paths) == 1 and (is_run_folder(paths[0]) or not holds_runs(paths[0]))


def evaluate_run(run: Path, wanted: Wanted) -> Outcome:
    """Evaluate a run, and print its table.

    Raises:
        UserError: it cannot be evaluated as asked.
    """
    config = evaluation_config(run, wanted.overrides)
    _refuse_options_of_the_other_kind(run, config, wanted)
    if wanted.skip_existing and (folder := _existing(run, config, wanted)) is not None:
        log.info("%s: is newer than the weights and is kept", folder)
        return Outcome(KEPT, folder.name)
    of_kind = _evaluate_segmentation if config.pretrain is None else _evaluate_pretraining
    return of_kind(run, config, wanted)


def _evaluate_segmentation(run: Path, config: RunConfig, wanted: Wanted) -> Outcome:
    result = evaluate(
        run,
        config,
        wanted.options,
        dataset_root=wanted.dataset_root,
        others=wanted.others,
        include_trained=wanted.include_trained,
    )
    print(evaluation_table(result.summary))
    print(f"weights: {_weights(result.summary)}")
    print(f"{result.folder}: {CASES}, {SUMMARY}, {PICTURE}")
    return _outcome(result.failed, f"Dice {result.summary['dice']:.4f}")


def _evaluate_pretraining(run: Path, config: RunConfig, wanted: Wanted) -> Outcome:
    result = evaluate_pretraining(run, config, wanted.options, volumes=wanted.volumes)
    print(result.table())
    print(f"weights: {_weights(result.summary)}; on the prepared grid")
    print(f"{result.folder}: {CASES}, {SUMMARY}" + (f", {VOLUMES}/" if wanted.volumes else ""))
    return _outcome(result.failed, f"SSIM {result.summary['figures']['ssim']['mean']:.4f}")


def _refuse_options_of_the_other_kind(run: Path, config: RunConfig, wanted: Wanted) -> None:
    """Refuse options that are for pre-trainings to a segmentation, and the other way round.

    Raises:
        UserError: with all of them.
    """
    if config.pretrain is None:
        if wanted.volumes:
            raise UserError(f"--volumes: {run} is a segmentation; fusionseg predict writes its masks")
        return
    options = wanted.options
    given = {
        "--dataset": wanted.dataset_root is not None,
        "--with": bool(wanted.others),
        "--include-trained": wanted.include_trained,
        "--tta": options.flips,
        "--overlap": options.overlap is not None,
        "--memory": options.memory_gb is not None,
    }
    if problems := [name for name, is_given in given.items() if is_given]:
        raise UserError(
            f"{', '.join(problems)}: {run} is a pre-training, which is evaluated on its own validation volumes, each"
            " patch once; remove it"
        )


def _weights(summary: Mapping[str, Any]) -> str:
    return f"{Path(str(summary['checkpoint'])).name}, step {summary['step']}"


def _outcome(failed: dict[str, str], remark: str) -> Outcome:
    if failed:
        return Outcome(INCOMPLETE, f"{remark}; not scored: {', '.join(sorted(failed))}")
    return Outcome(EVALUATED, remark)


def evaluate_runs(paths: Sequence[Path], wanted: Wanted) -> Outcomes:
    """Evaluate the runs among some paths, and those within the others.

    Raises:
        UserError: a path holds no run, or the request is for a single one.
    """
    folders = run_folders(paths)
    if wanted.others:
        raise UserError(f"--with: averages with one run, and {len(folders)} are named; evaluate them one by one")
    outcomes = Outcomes()
    for number, run in enumerate(folders, start=1):
        if not has_weights(run):
            log.info("%s has no weights yet: it is passed over", run)
            outcomes.states[run] = Outcome(NO_WEIGHTS, "passed over")
            continue
        log.info("%s (%d of %d)", run, number, len(folders))
        try:
            outcomes.states[run] = evaluate_run(run, wanted)
        except UserError as error:
            log.error("%s", error)
            outcomes.states[run] = Outcome(FAILED, textwrap.shorten(error.problems[0], _MAX_REMARK, placeholder=" ..."))
        except (OSError, torch.OutOfMemoryError) as error:  # the next run may be smaller, or lie on another disk
            reason = str(error).partition("\n")[0]
            log.error("%s: %s", run, reason)
            outcomes.states[run] = Outcome(FAILED, textwrap.shorten(reason, _MAX_REMARK, placeholder=" ..."))
        except RuntimeError as error:  # a fault of the program: told in full, and the other runs are evaluated
            log.error("%s: %s", run, traceback.format_exc())
            outcomes.states[run] = Outcome(FAILED, type(error).__name__)
    return outcomes


def _existing(run: Path, config: RunConfig, wanted: Wanted) -> Path | None:
    """The folder of an evaluation that was asked for in the same words, of these weights and of all cases."""
    dataset = None
    if wanted.dataset_root is not None:
        dataset = open_dataset(
            wanted.dataset_root, "auto", default_labels=config.data.labels, readers=Readers(config.data.reader)
        )
    request = request_for(
        config,
        wanted.options,
        dataset,
        wanted.dataset_root,
        wanted.others,
        include_trained=wanted.include_trained,
    )
    folder = evaluation_folder(run, request)
    weights = [find_weights(one, wanted.options.checkpoint) for one in (run, *wanted.others)]
    return folder if is_current(folder, request, weights, volumes=wanted.volumes) else None
