"""The evaluation of a segmentation: Dice and HD95 per case and class or region, in the geometry of the label files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.config.parts.metric import MetricConfig
from fusionseg.data.formats.problems import CaseError
from fusionseg.inference.evaluation.cases import CasesToScore
from fusionseg.inference.evaluation.picture import draw_best_and_worst
from fusionseg.inference.evaluation.results import Evaluation, mean_and_deviation
from fusionseg.inference.evaluation.scoring import Score, Scorer
from fusionseg.inference.predictor import Predictor
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.evaluations import PICTURE, EvaluationRequest, write_evaluation
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")


def evaluate_segmentation(
    predictor: Predictor,
    chosen: CasesToScore,
    metrics: Sequence[MetricConfig],
    request: EvaluationRequest,
    folder: Path,
) -> Evaluation:
    """Predict labelled cases, compare the masks with the labels voxel by voxel, and write the results.

    Args:
        predictor: the network, or several whose predictions are averaged.
        chosen: the cases.
        metrics: the section `metrics` of the run. Dice and HD95 are always computed.
        request: the options of the evaluation, which summary.json records.
        folder: the folder for the results.

    Raises:
        UserError: the names of labels or channels do not match, the folder cannot be written, or no case can be scored.
    """
    writable_folder(folder, "evaluate")
    further = [metric for metric in metrics if metric.name not in ("dice", "hd95_mm")]
    scorer = Scorer(predictor, chosen.dataset, own=request.dataset is None, metrics=further)
    scores, failed = _score_cases(scorer, chosen)
    counted = [score for score in scores if score.case not in chosen.left_out]
    if not counted:
        raise UserError(
            [
                f"{chosen.dataset.root}: none of the {len(chosen.cases) - len(chosen.left_out)} cases could be"
                " evaluated:",
                *(f"  {name}: {reason}" for name, reason in failed.items()),
            ]
        )
    summary = {
        **_summary(counted, predictor),
        **chosen.marks({score.case for score in counted}),
        "failed": failed,
        "dataset": str(chosen.dataset.place),
        "request": request.to_json(),
    }
    plain_scores = _rows(scores)
    write_evaluation(folder, plain_scores, summary, plain_scores)
    draw_best_and_worst(folder / PICTURE, counted, chosen.cases, scorer)
    return Evaluation(folder, summary, tuple(scores))


def _score_cases(scorer: Scorer, chosen: CasesToScore) -> tuple[list[Score], dict[str, str]]:
    """The scores of the cases, and the problem of each case that cannot be scored, by its name."""
    scores: list[Score] = []
    failed: dict[str, str] = {}
    with counting_progress("evaluating") as progress:
        for done, case in enumerate(chosen.cases):
            progress(done, len(chosen.cases))
            try:
                scores += [replace(score, trained_on=chosen.trained_on[case.name]) for score in scorer(case)]
            except CaseError as error:
                failed[case.name] = str(error)
                log.error("%s is not scored: %s", case.name, error)
        progress(len(chosen.cases), len(chosen.cases))
    return scores, failed


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The rows of the table of cases; without the columns about missing annotation if there is none."""
    unused = {
        "annotated": all(score.is_annotated for score in scores),
        "voxels_ignored": not any(score.voxels_ignored for score in scores),
    }
    return [{key: value for key, value in score.to_row().items() if not unused.get(key)} for score in scores]


def _summary(scores: Sequence[Score], predictor: Predictor) -> dict[str, Any]:
    """Mean and standard deviation of each metric per class, and the mean over the classes."""
    further = list(scores[0].metrics)
    classes: dict[str, Any] = {}
    for name in dict.fromkeys(score.label for score in scores):
        of_class = [score for score in scores if score.label == name]
        rows = [score.to_row() for score in of_class]
        classes[name] = {
            metric: mean_and_deviation([row[metric] for row in rows]) for metric in ("dice", "hd95_mm", *further)
        }
        if not all(score.is_annotated for score in scores):
            classes[name]["annotated"] = sum(score.is_annotated for score in of_class)
    ignored = {score.case: score.voxels_ignored for score in scores if score.voxels_ignored}
    means = {
        metric: nanmean([of_class[metric]["mean"] for of_class in classes.values()])
        for metric in ("dice", "hd95_mm", *further)
    }
    first, *others = predictor.members
    return {
        "checkpoint": str(first.path),
        **({"averaged_with": [str(other.path) for other in others]} if others else {}),
        "step": first.step,
        "cases": len({score.case for score in scores}),
        "dice": means["dice"],
        "hd95_mm": means["hd95_mm"],
        **({"metrics": {metric: means[metric] for metric in further}} if further else {}),
        **({"ignored": {"cases": len(ignored), "voxels": sum(ignored.values())}} if ignored else {}),
        "classes": classes,
    }
