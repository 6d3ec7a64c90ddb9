"""Files of `fusionseg statistics`: Markdown, CSV, LaTeX and JSON, and the table of all scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from fusionseg.inference.statistics.analysis import GroupStatistics, RowStatistics, Statistics
from fusionseg.inference.statistics.best import BEST, Choice
from fusionseg.inference.statistics.pooled import Pooled, pooled_rows
from fusionseg.inference.statistics.tables import deviation_of, statistics_latex, statistics_markdown
from fusionseg.runs.json_files import finite_or_none
from fusionseg.utils.files import write_json, write_text

NAME = "statistics"
"""Name of the files without their suffixes."""
POOLED = "pooled.csv"


def write_statistics(found: Statistics, pooled: Pooled, folder: Path, metrics: Sequence[str] | None = None) -> str:
    """Write all files of the statistics, and return the Markdown.

    Args:
        found: the statistics.
        pooled: the scores that they are of.
        folder: for statistics.json, .md, .csv, .tex, and pooled.csv.
        metrics: metrics of the tables in Markdown and LaTeX; None takes Dice, HD95 and NSD. The other files have all.
    """
    text = statistics_markdown(found, metrics)
    write_text(folder / f"{NAME}.md", text + "\n")
    write_text(folder / f"{NAME}.tex", statistics_latex(found, metrics) + "\n")
    write_text(folder / f"{NAME}.csv", _csv_text(list(_long_rows(found))))
    write_text(folder / POOLED, _csv_text(pooled_rows(pooled)))
    write_json(folder / f"{NAME}.json", finite_or_none(found.to_json()))
    return text


def write_best(choices: Sequence[Choice], folder: Path) -> None:
    """Write best.json.

    Args:
        choices: one for each data set.
        folder: for the file.
    """
    write_json(folder / BEST, finite_or_none([choice.to_json() for choice in choices]))


def _long_rows(found: Statistics) -> Iterator[dict[str, Any]]:
    """Lines of statistics.csv: one for each row, metric and class; "all" is the mean over the classes."""
    for group in found.groups:
        for index, row in enumerate(group.rows):
            for metric, of_row in row.metrics.items():
                for label, interval in (("all", of_row.cases), *of_row.classes.items()):
                    yield {
                        "data_set": group.data_set,
                        "name": row.name,
                        "metric": metric,
                        "label": label,
                        **interval.to_json(),
                        **_of_all_classes(group, row, index, metric, label == "all"),
                    }


def _of_all_classes(
    group: GroupStatistics, row: RowStatistics, index: int, metric: str, is_all: bool
) -> dict[str, Any]:
    """The cells of a line that are for the mean over the classes only."""
    of_row, ranks = row.metrics[metric], group.ranks.get(metric)
    test = of_row.test
    cells = {
        "sd_cases": of_row.deviation,
        "seeds": len(of_row.repetitions),
        "sd_seeds": deviation_of(of_row.repetitions),
        "folds": len(of_row.folds),
        "sd_folds": deviation_of(of_row.folds),
        "rank": "" if ranks is None else ranks.ranks[index],
        "first": "" if ranks is None else ranks.first[index],
        "pairs": "" if test is None else test.pairs,
        "difference": "" if test is None else test.difference.mean,
        "difference_low": "" if test is None else test.difference.low,
        "difference_high": "" if test is None else test.difference.high,
        "p": "" if test is None else test.p,
        "p_holm": "" if test is None else of_row.p_holm,
        "effect": "" if test is None else test.effect,
        "effect_low": "" if test is None else test.effect_low,
        "effect_high": "" if test is None else test.effect_high,
    }
    return cells if is_all else dict.fromkeys(cells, "")


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if isinstance(value, float) and isnan(value) else value for key, value in row.items()})
    return out.getvalue()
