"""The table of `fusionseg evaluate`."""

from __future__ import annotations

from math import isnan
from typing import Any

from fusionseg.runs.evaluations import CASES
from fusionseg.utils.errors import some_of
from fusionseg.utils.tables import markdown_table


def evaluation_table(summary: dict[str, Any]) -> str:
    """Per class and over all: mean and deviation, as Markdown."""
    means = summary.get("metrics", {})
    rows: list[tuple[str, ...]] = [("class", "cases", "Dice", "HD95 mm", *means)]
    for name, entry in summary["classes"].items():
        further = [_cell(entry[metric], 4) for metric in means]
        rows.append((name, str(entry["dice"]["cases"]), _cell(entry["dice"], 4), _cell(entry["hd95_mm"], 2), *further))
    further = [_number(value, 4) for value in means.values()]
    rows.append(("mean", str(summary["cases"]), _number(summary["dice"], 4), _number(summary["hd95_mm"], 2), *further))
    return "\n".join([markdown_table(rows), *_notes(summary)])


def _notes(summary: dict[str, Any]) -> list[str]:
    """Lines on the cases that the figures must not be read without."""
    notes = []
    cases = summary["cases"]
    if trained_on := summary.get("trained_on"):
        notes.append(f"not figures of new cases: {trained_on} of the {cases} cases were trained on")
    if unknown := summary.get("trained_on_unknown"):
        notes.append(f"whether {unknown} of the {cases} cases were trained on is unknown")
    if left_out := summary.get("left_out"):
        notes.append(f"not in these means, for they were trained on: {some_of(left_out)} ({CASES} has them)")
    return notes


def _cell(entry: dict[str, float], digits: int) -> str:
    return f"{_number(entry['mean'], digits)} ± {_number(entry['std'], digits)}"


def _number(value: float, digits: int) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"
