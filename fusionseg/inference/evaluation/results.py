"""The results of an evaluation, their statistics, and the tables of `fusionseg evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fusionseg.inference.evaluation.measuring import ranked_cases
from fusionseg.inference.postprocessing.evaluated import postprocessing_notes
from fusionseg.metrics.definitions import DEFINITIONS, title_and_digits
from fusionseg.runs.evaluations import CASES
from fusionseg.utils.errors import some_of
from fusionseg.utils.tables import fixed_number, markdown_table

_COLUMNS = 5  # metrics of a table


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    folder: Path
    """The folder that they were written to."""
    summary: dict[str, Any]
    """Means and deviations, as in summary.json."""
    scores: Any
    """A tuple of `Score` for a segmentation; the metrics of each case by its name for a pre-training; empty for another
    task."""

    @property
    def failed(self) -> dict[str, str]:
        """The problem of each case that could not be scored, by its name."""
        failed: dict[str, str] = self.summary["failed"]
        return failed


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of the values that are known.

    Args:
        values: one value for each case; nan where it is not known.

    Returns:
        `mean`, `std` (of the sample; 0 for one value) and `cases`, the number of known values. Mean and deviation are
        nan, and null in a JSON file, if no value is known.
    """
    known = [value for value in values if not isnan(value)]
    if not known:
        return {"mean": nan, "std": nan, "cases": 0}
    return {"mean": fmean(known), "std": stdev(known) if len(known) > 1 else 0.0, "cases": len(known)}


def segmentation_table(summary: Mapping[str, Any]) -> str:
    """Format the summary of a segmentation as Markdown: the metrics per class, their means, and notes.

    There is a table for every few metrics, so that each fits into a terminal. Metrics of some classes alone, as those
    of lesions, have a table with these classes.
    """
    tables = []
    for part, classes in _parts_of_table(summary):
        rows = [["class", "cases", *(_title(name) for name in part)]]
        for name in classes:
            metrics = summary["classes"][name]
            cases = metrics[part[0]]["cases"]
            cells = [_cell(metrics[key], _digits(key), cases) for key in part]
            rows.append([name, str(cases), *cells])
        means = {**summary["metrics"], "dice": summary["dice"], "hd95_mm": summary["hd95_mm"]}
        rows.append(["mean", str(summary["cases"]), *(fixed_number(means[key], _digits(key)) for key in part)])
        if set(part) & set(summary["micro"]):
            micro = [fixed_number(summary["micro"].get(key, nan), _digits(key)) for key in part]
            rows.append(["all voxels", str(summary["cases"]), *micro])
        tables.append(markdown_table(rows))
    return "\n".join(["\n\n".join(tables), *evaluation_notes(summary)])


def _parts_of_table(summary: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the metrics of each table, and its classes."""
    of_all = ["dice", "hd95_mm"]
    of_some: dict[tuple[str, ...], list[str]] = {}
    for name in summary["metrics"]:
        used, known = summary["definitions"][name], DEFINITIONS.get(name)
        # `classes` of a metric of the user, which has another text, is an argument of its own.
        is_of_some = known is not None and used["text"] == known.text and "classes" in used["parameters"]
        names = of_some.setdefault(tuple(used["parameters"]["classes"]), []) if is_of_some else of_all
        names.append(name)
    every = list(summary["classes"])
    for classes, names in ((every, of_all), *of_some.items()):
        for start in range(0, len(names), _COLUMNS):
            yield names[start : start + _COLUMNS], [label for label in every if label in classes]


def _title(name: str) -> str:
    return title_and_digits(name, DEFINITIONS.get(name))[0]


def _digits(name: str) -> int:
    return title_and_digits(name, DEFINITIONS.get(name))[1]


def best_and_worst(evaluation: Evaluation) -> str:
    """A line about the cases with the highest and the lowest mean Dice, of those that the means count.

    Args:
        evaluation: of a segmentation.
    """
    left_out = evaluation.summary.get("left_out", ())
    ranked = ranked_cases([score for score in evaluation.scores if score.case not in left_out])
    if not ranked:
        return "no case has a Dice"
    (worst, low), (best, high) = ranked[0], ranked[-1]
    return f"best: {best} (Dice {high:.4f}); worst: {worst} (Dice {low:.4f})"


def pretraining_table(summary: Mapping[str, Any]) -> str:
    """Format the summary of a pre-training as Markdown: SSIM and PSNR of the network and of the trivial fill-ins."""
    metrics = summary["figures"]
    rows = [["", "SSIM", "SSIM, hidden voxels", "PSNR dB", "PSNR dB, hidden voxels"]]
    for name, suffix in (("network", ""), ("mean", "_mean_fill"), ("interpolation", "_linear_fill")):
        keys = (f"{key}{suffix}" for key in ("ssim", "ssim_hidden", "psnr", "psnr_hidden"))
        rows.append([name, *(_cell(metrics[key], 4 if key.startswith("ssim") else 2) for key in keys)])
    return markdown_table(rows)


def validation_table(summary: Mapping[str, Any]) -> str:
    """Format the summary of another task as Markdown: the fields of its validation, and notes."""
    rows = [["field", "value"]]
    for name, value in _flat(summary["fields"]):
        rows.append([name, fixed_number(value, 4) if isinstance(value, float) else str(value)])
    return "\n".join([markdown_table(rows), *evaluation_notes({"cases": summary["fields"].get("cases"), **summary})])


def _flat(fields: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their dotted keys."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def evaluation_notes(summary: Mapping[str, Any]) -> list[str]:
    """Lines about the cases that a reader of the scores needs.

    Args:
        summary: of the evaluation.
    """
    notes = []
    cases = summary["cases"]
    if postprocessing := summary.get("postprocessing"):
        notes += postprocessing_notes(postprocessing, cases)
    if trained_on := summary.get("trained_on"):
        notes.append(f"not scores of new cases: {trained_on} of the {cases} cases were trained on")
    if unknown := summary.get("trained_on_unknown"):
        notes.append(f"whether {unknown} of the {cases} cases were trained on is unknown")
    if left_out := summary.get("left_out"):
        notes.append(f"not in these means, because they were trained on: {some_of(left_out)} ({CASES} has them)")
    partial = [
        f"{name} in {cases - of_class['annotated']}"
        for name, of_class in summary.get("classes", {}).items()
        if of_class.get("annotated", cases) < cases
    ]
    if partial:
        notes.append(f"not in these means, because they are not annotated: {', '.join(partial)} of the {cases} cases")
    if ignored := summary.get("ignored"):
        notes.append(f"not scored: {ignored['voxels']} voxels of {ignored['cases']} cases, which are marked as ignored")
    return notes


def _cell(metric: Mapping[str, float], digits: int, cases: int | None = None) -> str:
    """Mean and deviation; their number of cases too, if it is not that of the line."""
    if isnan(metric["mean"]):
        return "-"
    others = "" if cases in (None, metric["cases"]) else f" ({metric['cases']:.0f})"
    return f"{fixed_number(metric['mean'], digits)} ± {fixed_number(metric['std'], digits)}{others}"
