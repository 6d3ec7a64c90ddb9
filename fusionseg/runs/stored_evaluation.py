"""The evaluation of a run on its own validation cases, as `fusionseg evaluate` left it in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from fusionseg.runs.records import read_object


@dataclass(frozen=True)
class StoredEvaluation:
    """The part of an evaluation that the table shows."""

    figures: dict[str, float]
    """Dice and HD95 in the geometry of the label files."""
    trained_on: bool
    """Whether some of its cases were trained on."""
    remarks: tuple[str, ...]
    """Its differences from the training's validation, beside the geometry."""


def stored_evaluation(run: Path, validation: Mapping[str, Any], weights: str) -> StoredEvaluation | None:
    """The evaluation of the same weights as a validation; None if there is none.

    Of several, the one without averaged flips and with the run's own overlap is taken first.

    Args:
        validation: the val record.
        weights: "last" or "best".
    """
    own = [
        (options, summary)
        for path in sorted(run.glob("evaluation*/summary.json"))
        if (options := _options(path, summary := read_object(path))) is not None
    ]
    usable = [(options, summary) for options, summary in own if _is_of(summary, validation, weights)]
    if usable:
        options, summary = min(usable, key=lambda entry: len(entry[0]))
        remarks = [f"was evaluated with {option}" for option in options]
        if is_number(validation.get("cases")) and summary.get("cases") != validation["cases"]:
            of = f"{summary.get('cases')} cases, its validation of {validation['cases']}"
            remarks.append(f"its evaluation is of {of}")
        return StoredEvaluation(_figures(summary), bool(summary.get("trained_on")), tuple(remarks))
    if own:
        names = " and ".join(sorted({Path(str(summary.get("checkpoint"))).name for _, summary in own}))
        which = f"other weights ({names})" if names != f"{weights}.pt" else f"an earlier {names}"
        advice = f"fusionseg evaluate RUN --checkpoint {weights} makes the one for this table"
        return StoredEvaluation({}, False, (f"its evaluation is not used: it is of {which}; {advice}",))
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _options(path: Path, summary: Mapping[str, Any]) -> list[str] | None:
    """Settings of the prediction that differ from the run's own; None if it is of other cases, or of an ensemble."""
    request = summary.get("request")
    if not isinstance(request, dict):  # older versions wrote none
        return [] if path.parent.name == "evaluation" and summary and "averaged_with" not in summary else None
    if request.get("dataset") is not None or request.get("with"):
        return None
    options = [option for option in ("--tta", "--include-trained") if request.get(option[2:].replace("-", "_"))]
    return options + ([] if request.get("overlap") is None else [f"--overlap {request['overlap']}"])


def _is_of(summary: Mapping[str, Any], validation: Mapping[str, Any], weights: str) -> bool:
    """Whether it is of the weights that were validated, or of later ones of an interrupted run."""
    step = summary.get("step")
    return isinstance(step, int) and (step == validation["step"] or (weights == "last" and step > validation["step"]))


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, Any] = {"dice": summary.get("dice")}
    classes = summary.get("classes")
    for name, entry in classes.items() if isinstance(classes, dict) else ():
        dice = entry.get("dice") if isinstance(entry, dict) else None
        found[f"dice_per_class.{name}"] = dice.get("mean") if isinstance(dice, dict) else None
    found["hd95_mm"] = summary.get("hd95_mm")
    return {key: float(value) for key, value in found.items() if is_number(value)}
