"""Tables in Markdown: that of `fusionseg evaluate`, and how all of them are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any


def evaluation_table(summary: dict[str, Any]) -> str:
    """Per class and over all: mean and deviation, as Markdown."""
    rows = [("class", "cases", "Dice", "HD95 mm")]
    for name, entry in summary["classes"].items():
        rows.append((name, str(entry["dice"]["cases"]), _cell(entry["dice"], 4), _cell(entry["hd95_mm"], 2)))
    rows.append(("mean", str(summary["cases"]), _number(summary["dice"], 4), _number(summary["hd95_mm"], 2)))
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(entry: dict[str, float], digits: int) -> str:
    return f"{_number(entry['mean'], digits)} ± {_number(entry['std'], digits)}"


def _number(value: float, digits: int) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"
