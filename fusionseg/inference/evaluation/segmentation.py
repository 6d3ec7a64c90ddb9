"""The evaluation of a segmentation: metrics per case and class or region, in the geometry of the label files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.data.formats.problems import CaseError
from fusionseg.inference.evaluation.aggregate import summarise
from fusionseg.inference.evaluation.cases import CasesToScore
from fusionseg.inference.evaluation.detail_tables import detail_rows, detail_tables
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
) -> Evaluation:
    """Predict labelled cases, compare the masks with the labels voxel by voxel, and write the results.

    Args:
        predictor: the network, or several whose predictions are averaged.
        chosen: the cases.
        config: the configuration of the run, whose sections `metrics` and `evaluate` are about this evaluation.
        request: the options of the evaluation, which summary.json records.
        folder: the folder for the results.
        masks: keep the masks in this folder.
        workers: processes that compute metrics while further cases are predicted; None chooses their number.
        postprocessing: of the masks.

    Raises:
        UserError: the names of labels or channels do not match, the section `evaluate` or the post-processing names
            an unknown class, the folder cannot be written, or no case can be scored.
        WriteError: a file cannot be written, for example on a full disk.
    """
    writable_folder(folder, "evaluate")
    measure = CaseMeasurer(predictor.scheme, config.evaluate, config.metrics)
    steps = None
    if postprocessing is not None:
        steps = postprocessing.steps
        refuse_other_classes(postprocessing.path, steps, predictor.scheme)
    own = request.dataset is None
    scorer = Scorer(predictor, chosen.dataset, own=own, measure=measure, postprocessing=steps)
    check_details(folder, detail_tables(config.evaluate))
    kept = KeptMasks(folder, predictor, chosen.dataset.readers, steps)
    if masks:
        kept.check(chosen.cases)
    scores, failed = _score_cases(scorer, chosen, kept if masks else None, workers)
    counted = [score for score in scores if score.case not in chosen.left_out]
    if not counted:
        raise UserError(
            [
                f"{chosen.dataset.root}: none of the {len(chosen.cases) - len(chosen.left_out)} cases could be"
                " evaluated:",
                *(f"  {name}: {reason}" for name, reason in failed.items()),
            ]
        )
    names = list(dict.fromkeys(score.case for score in counted))
    first, *others = predictor.members
    summary = {
        "checkpoint": str(first.path),
        **({"averaged_with": [str(other.path) for other in others]} if others else {}),
        "step": first.step,
        **summarise(counted),
        **chosen.marks(names),
        "failed": failed,
        "dataset": str(chosen.dataset.place),
        "request": request.to_json(),
        **({"postprocessing": postprocessing.to_json(map(chosen.images.get, names))} if postprocessing else {}),
        "definitions": metric_definitions(config.evaluate, config.metrics),
    }
    kept.remove_others([case for case in chosen.cases if masks and case.name not in failed])
    plain_scores = _rows(scores)
    write_evaluation(folder, plain_scores, summary, plain_scores, detail_rows(scores, config.evaluate))
    draw_best_and_worst(folder / PICTURE, counted, chosen.cases, scorer, kept if masks else None)
    return Evaluation(folder, summary, tuple(scores))


def _score_cases(
    scorer: Scorer, chosen: CasesToScore, kept: KeptMasks | None, workers: int | None
) -> tuple[list[Score], dict[str, str]]:
    """The scores of the cases, and the problem of each case that cannot be scored, by its name."""
    scores: dict[str, list[Score]] = {}
    failed: dict[str, str] = {}
    count = len(chosen.cases)

    def fail(name: str, error: Exception) -> None:
        failed[name] = str(error)
        log.error("%s is not scored: %s", name, error)

    def predicted() -> Iterator[PredictedCase]:
        for case in chosen.cases:
            try:
                made = scorer.predicted(case)
                if kept is not None:
                    kept.write(case, made.prediction)
            except CaseError as error:
                fail(case.name, error)
                continue
            yield made

    with counting_progress("evaluating") as progress:
        progress(0, count)
        for case, outcome in measured_cases(predicted(), scorer.measure, count, workers):
            if isinstance(outcome, CaseError | WorkerDied):
                fail(case.name, outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                scores[case.name] = [replace(score, trained_on=chosen.trained_on[case.name]) for score in outcome]
            progress(len(scores) + len(failed), count)
    return [score for case in chosen.cases for score in scores.get(case.name, ())], failed


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The rows of the table of cases; without the columns about missing annotation if there is none."""
    unused = {
        "annotated": all(score.is_annotated for score in scores),
        "voxels_ignored": not any(score.voxels_ignored for score in scores),
    }
    return [{key: value for key, value in score.to_row().items() if not unused.get(key)} for score in scores]
