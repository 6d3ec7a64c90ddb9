"""The evaluation of one run, from its folder to its results."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from fusionseg.config.data.splits import ALL
from fusionseg.distributed.world import World
from fusionseg.inference.calls.dealt_cases import from_rank_zero, single_rank
from fusionseg.inference.evaluation.aggregate import detail_tables
from fusionseg.inference.evaluation.cases import CasesToScore, all_labelled_cases, validation_cases
from fusionseg.inference.evaluation.opening import EvaluationOptions, OpenedEvaluation, open_evaluation
from fusionseg.inference.evaluation.pretraining import evaluate_pretraining
from fusionseg.inference.evaluation.results import (
    Evaluation,
    best_and_worst,
    pretraining_table,
    segmentation_table,
    validation_table,
)
from fusionseg.inference.evaluation.segmentation import evaluate_segmentation
from fusionseg.inference.evaluation.validation import evaluate_by_validation
from fusionseg.inference.predictor import Predictor
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.evaluations import (
    CASES,
    MASKS,
    PICTURE,
    SUMMARY,
    VOLUMES,
    results_folder,
)
from fusionseg.utils.files import writable_folder
from fusionseg.utils.tables import printable

log = logging.getLogger("fusionseg")

EVALUATED, KEPT, NO_WEIGHTS, INCOMPLETE, FAILED = "evaluated", "kept", "no weights yet", "cases failed", "failed"
NOT_VALIDATED = "no validation cases"


@dataclass(frozen=True)
class Outcome:
    """The outcome of the evaluation of one run: a state, such as EVALUATED, and a remark for the table."""

    state: str
    remark: str

    @property
    def is_complete(self) -> bool:
        """False if a case or the whole run failed. A run without weights has not failed."""
        return self.state not in (INCOMPLETE, FAILED)


def evaluate_run(run: Path, options: EvaluationOptions, world: World | None = None) -> Outcome:
    """Evaluate a run, print its table, and write its results into its folder.

    Args:
        run: the run folder.
        options: the options of the evaluation.
        world: the ranks that divide the cases, all of which call this function; None for a single one.

    Raises:
        UserError: the run cannot be evaluated with these options.
    """
    world = world or single_rank()
    with world.wait_for_all(f"open the evaluation of {run}"):
        opened = open_evaluation(run, options)
        is_kept = options.skip_existing and opened.is_current()
    # Rank 0 decides: the others look a moment later, when a file may have changed.
    folder, is_kept = world.broadcast_object((opened.folder, is_kept))
    if is_kept:
        log.info("%s: is newer than the weights and is kept", folder)
        return Outcome(KEPT, folder.name)
    opened = replace(opened, folder=folder)
    evaluation = compute_evaluation(opened, world)
    text, outcome = _result(opened, evaluation)
    if world.is_rank_zero:
        print(printable(text))
    return outcome


def _result(opened: OpenedEvaluation, evaluation: Evaluation) -> tuple[str, Outcome]:
    """The lines that are printed about an evaluation, and its outcome."""
    summary, options = evaluation.summary, opened.options
    weights = f"weights: {Path(str(summary['checkpoint'])).name}, step {summary['step']}"
    if opened.config.data.fold == ALL:
        weights += f"; {NO_VALIDATION}"
    task = opened.config.task_info
    if task.evaluation == "validation":
        lines = [validation_table(summary), f"{weights}; by its validation", f"{evaluation.folder}: {SUMMARY}"]
        return "\n".join(lines), _outcome(evaluation, f"{task.score} {summary['score']:.4f}")
    if task.evaluation == "masks":
        written = [CASES, *detail_tables(opened.config.evaluate), SUMMARY, PICTURE]
        files = f"{evaluation.folder}: {', '.join(written)}" + (f", {MASKS}/" if options.masks else "")
        lines = [segmentation_table(summary), weights, best_and_worst(evaluation), files]
        return "\n".join(lines), _outcome(evaluation, f"Dice {summary['dice']:.4f}")
    files = f"{CASES}, {SUMMARY}" + (f", {VOLUMES}/" if options.volumes else "")
    lines = [pretraining_table(summary), f"{weights}; on the prepared grid", f"{evaluation.folder}: {files}"]
    return "\n".join(lines), _outcome(evaluation, f"SSIM {summary['figures']['ssim']['mean']:.4f}")


def compute_evaluation(opened: OpenedEvaluation, world: World | None = None) -> Evaluation:
    """Predict the cases of an evaluation, score them, and write the results.

    Args:
        opened: the evaluation.
        world: see `evaluate_run`.

    Raises:
        UserError: the folder cannot be written, the run has no weights, or its cases are not those of its training.
    """
    world = world or single_rank()
    run, config, options, request, folder = opened.run, opened.config, opened.options, opened.request, opened.folder
    world.rank_zero_first(f"prepare the results of {run}", lambda: writable_folder(results_folder(run), "evaluate"))
    if config.task_info.evaluation == "reconstruction":
        return evaluate_pretraining(run, config, options.prediction, request, folder, world, volumes=options.volumes)
    if config.task_info.evaluation == "validation":
        return from_rank_zero(
            world,
            f"validate {run}",
            lambda: evaluate_by_validation(run, config, options.prediction, request, folder),
        )
    with world.wait_for_all(f"load the networks of {run}"):
        predictor = Predictor([run, *options.others], options.prediction, world.launch)
    members, include_trained = predictor.members, options.include_trained

    def find_cases() -> CasesToScore:
        if opened.dataset is None:
            return validation_cases(config.data, config.output, members, include_trained=include_trained)
        return all_labelled_cases(opened.dataset, config.data, config.output, members, include_trained=include_trained)

    return evaluate_segmentation(
        predictor,
        from_rank_zero(world, f"find the cases of {run}", find_cases),
        config,
        request,
        folder,
        masks=options.masks,
        workers=options.workers,
        postprocessing=opened.postprocessing,
        world=world,
    )


def _outcome(evaluation: Evaluation, remark: str) -> Outcome:
    if evaluation.failed:
        return Outcome(INCOMPLETE, f"{remark}; not scored: {', '.join(sorted(evaluation.failed))}")
    return Outcome(EVALUATED, remark)
