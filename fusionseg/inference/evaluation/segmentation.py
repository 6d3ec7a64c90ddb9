"""`fusionseg evaluate`: what a run is worth, per case and class, in the geometry of the label files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.formats.problems import CaseError
from fusionseg.inference.evaluation.cases import choose_cases
from fusionseg.inference.evaluation.picture import best_and_worst
from fusionseg.inference.evaluation.scoring import Score, Scorer
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.evaluations import PICTURE, EvaluationRequest, evaluation_folder, write_evaluation
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run, and where they were written."""

    folder: Path
    scores: tuple[Score, ...]
    failed: dict[str, str]
    summary: dict[str, Any]


def evaluate(
    run: Path,
    config: RunConfig,
    options: PredictOptions,
    *,
    dataset_root: str | None = None,
    others: Sequence[Path] = (),
    include_trained: bool = False,
) -> Evaluation:
    """Predict labelled cases and compare with their labels, voxel by voxel of the files.

    Args:
        run: the run folder.
        config: its configuration (with the paths that hold now).
        dataset_root: another data set, all of whose labelled cases are used; None is the run's validation cases.
        others: runs that are averaged with this one.
        include_trained: the means count cases that were trained on too, and are marked.

    Raises:
        UserError: also if one of the others has trained on cases that are evaluated.
    """
    writable_folder(run, "evaluate")
    predictor = Predictor([run, *others], options)
    chosen = choose_cases(config, predictor.members, dataset_root, include_trained=include_trained)
    dataset, cases = chosen.dataset, chosen.cases
    other = None if dataset_root is None else dataset
    request = request_for(config, options, other, dataset_root, others, include_trained=include_trained)
    folder = evaluation_folder(run, request)
    writable_folder(folder, "evaluate")
    further = [metric for metric in config.metrics if metric.name not in ("dice", "hd95_mm")]
    scorer = Scorer(predictor, dataset, own=dataset_root is None, metrics=further)
    scores: list[Score] = []
    failed: dict[str, str] = {}
    with counting_progress("evaluating") as progress:
        for done, case in enumerate(cases):
            progress(done, len(cases))
            try:
                scores += [replace(score, trained_on=chosen.trained_on[case.name]) for score in scorer(case)]
            except CaseError as error:
                failed[case.name] = str(error)
                log.error("%s is not scored: %s", case.name, error)
        progress(len(cases), len(cases))
    counted = [score for score in scores if score.case not in chosen.apart]
    if not counted:
        raise UserError(
            [
                f"{dataset.root}: none of the {len(cases) - len(chosen.apart)} cases could be evaluated:",
                *(f"  {name}: {reason}" for name, reason in failed.items()),
            ]
        )
    summary = {
        **summarise(counted, predictor),
        **chosen.marks({score.case for score in counted}),
        "failed": failed,
        "dataset": str(dataset.place),
        "request": request.to_json(),
    }
    plain_scores = [score.to_row() for score in scores]
    write_evaluation(folder, plain_scores, summary, plain_scores)
    best_and_worst(folder / PICTURE, counted, cases, scorer)
    return Evaluation(folder, tuple(scores), failed, summary)


def request_for(
    config: RunConfig,
    options: PredictOptions,
    dataset: Dataset | None = None,
    given: str | None = None,
    others: Sequence[Path] = (),
    *,
    include_trained: bool = False,
) -> EvaluationRequest:
    """Build the request, the form that tells evaluations apart.

    Args:
        dataset, given: another data set and the path by which it was given; None is the run's validation cases.
    """
    return EvaluationRequest(
        dataset=dataset,
        given=given,
        others=tuple(others),
        checkpoint=options.checkpoint,
        overlap=None if options.overlap == config.validation.overlap else options.overlap,
        flips=options.flips,
        include_trained=include_trained,
    )


def summarise(scores: list[Score], predictor: Predictor) -> dict[str, Any]:
    """Per class and over the classes: mean and deviation of Dice and HD95."""
    classes = {}
    for name in dict.fromkeys(score.label for score in scores):
        own = [score for score in scores if score.label == name]
        classes[name] = {
            measure: _spread([score.to_row()[measure] for score in own])
            for measure in ("dice", "hd95_mm", *scores[0].metrics)
        }
    member = predictor.members[0]
    return {
        "checkpoint": str(member.path),
        **({"averaged_with": [str(other.path) for other in predictor.members[1:]]} if predictor.members[1:] else {}),
        "step": member.step,
        "cases": len({score.case for score in scores}),
        "dice": nanmean([entry["dice"]["mean"] for entry in classes.values()]),
        "hd95_mm": nanmean([entry["hd95_mm"]["mean"] for entry in classes.values()]),
        **({"metrics": _metric_means(list(scores[0].metrics), classes)} if scores[0].metrics else {}),
        "classes": classes,
    }


def _metric_means(names: list[str], classes: dict[str, Any]) -> dict[str, float]:
    """Over the classes, the mean of each metric of the configuration."""
    return {name: nanmean([entry[name]["mean"] for entry in classes.values()]) for name in names}


def _spread(values: list[float]) -> dict[str, float]:
    known = [value for value in values if not isnan(value)]
    if not known:
        return {"mean": float("nan"), "std": float("nan"), "cases": 0}
    return {"mean": fmean(known), "std": stdev(known) if len(known) > 1 else 0.0, "cases": len(known)}
