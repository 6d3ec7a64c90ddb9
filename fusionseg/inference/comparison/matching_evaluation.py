"""Search for the evaluations of a run that have the same weights and cases as one of its validations."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.runs.evaluations import evaluations_of
from fusionseg.runs.json_files import is_number
from fusionseg.runs.paths import EVALUATION, WEIGHTS

_POSTPROCESSED_ALONE = (
    "has no evaluation without post-processing; --postprocessed shows those with it, and fusionseg evaluate RUN makes"
    " the one for this row"
)


@dataclass(frozen=True)
class MatchingEvaluation:
    """Metrics and remarks of an evaluation, as the table of `fusionseg compare` shows them."""

    metrics: dict[str, float]
    """Dice, HD95, and the means over the classes of all other metrics, in the geometry of the label files."""
    trained_on: bool
    """Whether some of its cases were trained on."""
    remarks: tuple[str, ...]
    """Differences from the training's validation, other than the geometry."""
    others: tuple[Path, ...] = ()
    """The other runs of an ensemble."""
    folder: Path | None = None
    """The folder of the results; None if there are none of the weights."""
    postprocess: str | None = None
    """The post-processing that was asked for: "auto" or the path of a file; None for masks without one."""


def matching_evaluation(run: Path, validation: Mapping[str, Any], weights: str) -> MatchingEvaluation | None:
    """Find the evaluation of the weights that a validation scored.

    If several match, the result is the one whose options differ least from the run's own settings.

    Args:
        run: the run folder.
        validation: the record of the validation.
        weights: "last" or "best".

    Returns:
        The evaluation. If all evaluations are of other weights, it has no metrics, and a remark says so. None if the
        run has no evaluation of its own validation cases.
    """
    found = evaluations_of(run)
    own = [
        (options, folder, summary)
        for folder, summary in found
        if (options := _differing_options(folder, summary)) is not None
    ]
    usable = [one for one in own if _is_of(one[2], validation, weights)]
    if usable:
        options, folder, summary = min(usable, key=lambda one: len(one[0]))
        remarks = [f"was evaluated with {option}" for option in options]
        if is_number(validation.get("cases")) and summary.get("cases") != validation["cases"]:
            remarks.append(
                f"its evaluation is of {summary.get('cases')} cases, its validation of {validation['cases']}"
            )
        return MatchingEvaluation(_metrics(summary), bool(summary.get("trained_on")), tuple(remarks), folder=folder)
    if own:
        names = " and ".join(sorted({Path(str(summary.get("checkpoint"))).name for *_, summary in own}))
        expected = WEIGHTS[weights]
        which = f"other weights ({names})" if names != expected else f"an earlier {names}"
        advice = f"fusionseg evaluate RUN --checkpoint {weights} makes the one for this table"
        return MatchingEvaluation({}, False, (f"its evaluation is not used: it is of {which}; {advice}",))
    requests = (summary.get("request") for _, summary in found)
    if any(isinstance(one, dict) and one.get("postprocess") and one.get("dataset") is None for one in requests):
        return MatchingEvaluation({}, False, (_POSTPROCESSED_ALONE,))
    return None


def further_evaluations(run: Path, validation: Mapping[str, Any], weights: str) -> list[MatchingEvaluation]:
    """Find the evaluations of ensembles of a run and others, and those of masks with post-processing.

    They are on the validation cases of the run.

    Args:
        run: the run folder.
        validation: the record of the validation that the table shows for the run alone.
        weights: "last" or "best".
    """
    found = []
    for folder, summary in evaluations_of(run):
        request = summary.get("request")
        if not isinstance(request, dict) or request.get("dataset") is not None:
            continue
        if not request.get("with") and not request.get("postprocess"):
            continue
        if request.get("checkpoint") == weights and _is_of(summary, validation, weights):
            remarks = tuple(f"was evaluated with {option}" for option in _changed_options(request))
            others = tuple(Path(str(other)) for other in request.get("with") or ())
            asked, trained_on = request.get("postprocess"), bool(summary.get("trained_on"))
            found.append(MatchingEvaluation(_metrics(summary), trained_on, remarks, others, folder, asked))
    return found


def _differing_options(folder: Path, summary: Mapping[str, Any]) -> list[str] | None:
    """Options of the prediction that differ from the run's own settings; None if the cases or the networks differ."""
    request = summary.get("request")
    if not isinstance(request, dict):  # an evaluation by an older version, which did not record the request
        return [] if folder.name == EVALUATION and summary and "averaged_with" not in summary else None
    if request.get("dataset") is not None or request.get("with") or request.get("postprocess"):
        return None
    return _changed_options(request)


def _changed_options(request: Mapping[str, Any]) -> list[str]:
    changed = prediction_options({**request, "postprocess": None})  # a row with post-processing has its name
    return [*changed, *(["--include-trained"] if request.get("include_trained") else [])]


def prediction_options(request: Mapping[str, Any]) -> list[str]:
    """The options of the prediction that an evaluation was asked for, as `fusionseg predict` takes them.

    Args:
        request: `request` of the summary of the evaluation.
    """
    given = [f"--{key} {request[key]}" for key in ("overlap", "precision") if request.get(key) is not None]
    if asked := request.get("postprocess"):
        given.append(f"--postprocess {shlex.quote(str(asked))}")
    return [*(["--tta"] if request.get("tta") else []), *given]


def _is_of(summary: Mapping[str, Any], validation: Mapping[str, Any], weights: str) -> bool:
    """Tell whether an evaluation is of the validated weights, or of later ones that an interrupted run saved."""
    step = summary.get("step")
    return isinstance(step, int) and (step == validation["step"] or (weights == "last" and step > validation["step"]))


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, Any] = {"dice": summary.get("dice")}
    classes = summary.get("classes")
    for name, metrics in classes.items() if isinstance(classes, dict) else ():
        dice = metrics.get("dice") if isinstance(metrics, dict) else None
        found[f"dice_per_class.{name}"] = dice.get("mean") if isinstance(dice, dict) else None
    found["hd95_mm"] = summary.get("hd95_mm")
    further = summary.get("metrics")
    found |= further if isinstance(further, dict) else {}
    return {key: float(value) for key, value in found.items() if is_number(value)}
