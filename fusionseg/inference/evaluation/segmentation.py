"""The evaluation of a segmentation: metrics per case and class or region, in the geometry of the label files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.problems import CaseError
from fusionseg.distributed.world import World
from fusionseg.inference.calls.dealt_cases import gathered, own_share, single_rank
from fusionseg.inference.evaluation.aggregate import detail_rows, detail_tables, summarise
from fusionseg.inference.evaluation.cases import CasesToScore
from fusionseg.inference.evaluation.kept_masks import KeptMasks
from fusionseg.inference.evaluation.measuring import CaseMeasurer, PredictedCase, Score, metric_definitions
from fusionseg.inference.evaluation.parallel_measuring import measured_cases
from fusionseg.inference.evaluation.picture import draw_best_and_worst
from fusionseg.inference.evaluation.results import Evaluation
from fusionseg.inference.evaluation.scoring import Scorer
from fusionseg.inference.postprocessing.evaluated import EvaluatedPostProcessing
from fusionseg.inference.postprocessing.files import refuse_other_classes
from fusionseg.inference.predictor import Predictor
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.evaluations import PICTURE, EvaluationRequest, check_details, write_evaluation
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder
from fusionseg.utils.parallel import WorkerDied
from fusionseg.utils.tables import counted

log = logging.getLogger("fusionseg")


def evaluate_segmentation(
    predictor: Predictor,
    chosen: CasesToScore,
    config: RunConfig,
    request: EvaluationRequest,
    folder: Path,
    *,
    masks: bool = True,
    workers: int | None = None,
    postprocessing: EvaluatedPostProcessing | None = None,
    world: World | None = None,
) -> Evaluation:
    """Predict labelled cases, compare the masks with the labels voxel by voxel, and write the results.

    Several ranks divide the cases. Rank 0 writes the results, and all ranks return them.

    Args:
        predictor: the network, or several whose predictions are averaged.
        chosen: the cases.
        config: the configuration of the run, whose sections `metrics` and `evaluate` are about this evaluation.
        request: the options of the evaluation, which summary.json records.
        folder: the folder for the results.
        masks: keep the masks in this folder.
        workers: processes that compute metrics while further cases are predicted; None chooses their number.
        postprocessing: of the masks.
        world: the ranks, all of which call this function with the same arguments; None for a single one.

    Raises:
        UserError: the names of labels or channels do not match, the section `evaluate` or the post-processing names
            an unknown class, the folder cannot be written, or no case can be scored.
        WriteError: a file cannot be written, for example on a full disk.
    """
    world = world or single_rank()
    steps = None if postprocessing is None else postprocessing.steps
    own, dataset = request.dataset is None, chosen.dataset
    with world.wait_for_all(f"set up the evaluation in {folder}"):
        measure = CaseMeasurer(predictor.scheme, config.evaluate, config.metrics)
        if postprocessing is None:
            scorer = Scorer(predictor, dataset, own=own, measure=measure)
        else:  # the masks of the same request without post-processing need no network
            plain = KeptMasks(
                folder.parent / replace(request, postprocess=None).folder_name, predictor, dataset.readers
            )
            known = plain.find_outputs
            scorer = Scorer(predictor, dataset, own=own, measure=measure, postprocessing=steps, known=known)
        kept = KeptMasks(folder, predictor, dataset.readers, steps)
        cases = own_share(world, chosen.cases, dataset.readers)

    def prepare() -> None:
        writable_folder(folder, "evaluate")
        if postprocessing is not None:
            refuse_other_classes(postprocessing.path, postprocessing.steps, predictor.scheme)
        check_details(folder, detail_tables(config.evaluate))
        if masks:
            kept.check(chosen.cases)

    world.rank_zero_first(f"prepare {folder}", prepare)
    if world.size > 1:
        log.info("%d ranks divide %s", world.size, counted(len(chosen.cases), "case"))
    with world.wait_for_all(f"score its cases for {folder}"):
        own_scores, own_failed = _score_cases(scorer, chosen, cases, kept if masks else None, workers, world)
    order = [case.name for case in chosen.cases]
    scores = [score for of_case in gathered(world, own_scores, order).values() for score in of_case]
    failed = gathered(world, own_failed, order)
    counted_scores = [score for score in scores if score.case not in chosen.left_out]
    if not counted_scores:
        raise UserError(
            [
                f"{chosen.dataset.root}: none of the {len(chosen.cases) - len(chosen.left_out)} cases could be"
                " evaluated:",
                *(f"  {name}: {reason}" for name, reason in failed.items()),
            ]
        )
    names = list(dict.fromkeys(score.case for score in counted_scores))
    first, *others = predictor.members
    summary = {
        "checkpoint": str(first.path),
        **({"averaged_with": [str(other.path) for other in others]} if others else {}),
        "step": first.step,
        **summarise(counted_scores),
        **chosen.marks(names),
        "failed": failed,
        "dataset": str(chosen.dataset.place),
        "request": request.to_json(),
        **({"postprocessing": postprocessing.to_json(map(chosen.images.get, names))} if postprocessing else {}),
        "definitions": metric_definitions(config.evaluate, config.metrics),
    }

    def write() -> None:
        kept.remove_others([case for case in chosen.cases if masks and case.name not in failed])
        rows = _rows(scores)
        write_evaluation(folder, rows, summary, rows, detail_rows(scores, config.evaluate))
        draw_best_and_worst(folder / PICTURE, counted_scores, chosen.cases, scorer, kept if masks else None)

    world.rank_zero_first(f"write {folder}", write)
    return Evaluation(folder, summary, tuple(scores))


def _score_cases(
    scorer: Scorer,
    chosen: CasesToScore,
    cases: Sequence[Case],
    kept: KeptMasks | None,
    workers: int | None,
    world: World,
) -> tuple[dict[str, list[Score]], dict[str, str]]:
    """The scores of the cases of this rank, and the problem of each one that cannot be scored, by name."""
    scores: dict[str, list[Score]] = {}
    failed: dict[str, str] = {}
    count = len(cases)

    def fail(name: str, error: Exception) -> None:
        failed[name] = str(error)
        log.error("%s is not scored: %s", name, error)

    def predicted() -> Iterator[PredictedCase]:
        for case in cases:
            try:
                made = scorer.predicted(case)
                if kept is not None:
                    kept.write(case, made.prediction)
            except CaseError as error:
                fail(case.name, error)
                continue
            yield made

    processes = world.launch.local_world_size
    with counting_progress("evaluating", shown=world.is_rank_zero) as progress:
        progress(0, count)
        for case, outcome in measured_cases(predicted(), scorer.measure, count, workers, processes):
            if isinstance(outcome, CaseError | WorkerDied):
                fail(case.name, outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                scores[case.name] = [replace(score, trained_on=chosen.trained_on[case.name]) for score in outcome]
            progress(len(scores) + len(failed), count)
    return scores, failed


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The rows of the table of cases; without the columns about missing annotation if there is none."""
    unused = {
        "annotated": all(score.is_annotated for score in scores),
        "voxels_ignored": not any(score.voxels_ignored for score in scores),
    }
    return [{key: value for key, value in score.to_row().items() if not unused.get(key)} for score in scores]
