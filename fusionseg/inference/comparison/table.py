"""The table of `fusionseg compare`: as Markdown with its notes, and as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from fusionseg.inference.comparison.layout import remark_notes
from fusionseg.inference.comparison.paired import baseline_of, paired_cells, paired_difference, paired_markdown
from fusionseg.inference.comparison.rows import Comparison, Row, Spread, TaskTable, digits_of, higher_is_better
from fusionseg.inference.comparison.run_summary import FILES, PATCHES, PREPARED
from fusionseg.utils.files import write_text
from fusionseg.utils.latex import latex_table
from fusionseg.utils.tables import markdown_table


def comparison_markdown(comparison: Comparison) -> str:
    """Format a comparison as Markdown: mean ± standard deviation, notes; of each data set the best score in bold, and
    the second best in italics if there are three or more."""
    marks = _marks(comparison)
    blocks = []
    for table in comparison.tables:
        title = f"{table.task}:\n\n" if len(comparison.tables) > 1 else ""
        blocks.append(title + markdown_table(_cells(table, marks)))
    blocks += paired_markdown(comparison)
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in comparison_notes(comparison))])


def comparison_latex(comparison: Comparison) -> str:
    """Format a comparison as LaTeX, with the tables of the Markdown; titles and notes are comments.

    Args:
        comparison: the tables.
    """
    blocks = [f"% {title}\n{latex_table(cells)}" for title, cells in comparison_cells(comparison)]
    return "\n\n".join([*blocks, "\n".join(f"% {note}" for note in comparison_notes(comparison))])


def comparison_cells(comparison: Comparison) -> list[tuple[str, list[list[str]]]]:
    """The title and the cells of each table, with `**bold**` and `*italic*` as in Markdown; the first row is the head.

    Args:
        comparison: the tables.
    """
    marks = _marks(comparison)
    return [(table.task, _cells(table, marks)) for table in comparison.tables] + paired_cells(comparison)


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Write compare.md, compare.csv and compare.tex, and return the Markdown.

    Args:
        comparison: the tables.
        folder: for the files.
    """
    table = comparison_markdown(comparison)
    write_text(table_path(folder), table + "\n")
    write_text(folder / "compare.csv", comparison_csv(comparison))
    write_text(folder / "compare.tex", comparison_latex(comparison) + "\n")
    return table


def table_path(folder: Path) -> Path:
    """The Markdown file of a table.

    Args:
        folder: of the sweep, or of `fusionseg compare --output`.
    """
    return folder / "compare.md"


def comparison_csv(comparison: Comparison) -> str:
    """Format a comparison as CSV in full precision: of each metric the mean, the deviation and the number of runs; with
    a baseline also the mean difference, half the width of its interval, and the number of pairs."""
    settings = list(dict.fromkeys(key for table in comparison.tables for key in table.settings))
    metrics = list(dict.fromkeys(name for table in comparison.tables for name in table.metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ("task", *settings, "data_set", "folds", "weights", "runs", "not_finished", "marks")
    baseline = comparison.baseline
    suffixes = ("", "_std", "_runs", *(() if baseline is None else ("_minus_baseline", "_half_width", "_pairs")))
    writer.writerow([*fixed, *(f"{name}{suffix}" for name in metrics for suffix in suffixes)])
    for table in comparison.tables:
        for row, data in zip(table.rows, table.data_names(), strict=True):
            cells: list[Any] = [table.task, *(_setting_text(row.settings.get(key)) for key in settings)]
            cells += [data, " ".join(row.folds), comparison.weights, len(row.runs), sum(row.not_finished().values())]
            cells.append("; ".join(row.marks))
            for metric in metrics:
                spread = row.spread(metric)
                cells += ["", "", 0] if spread is None else [spread.mean, _or_empty(spread.deviation), spread.count]
                if baseline is not None:
                    other = baseline_of(table, row, baseline)
                    pair = None if other is None else paired_difference(row, other, metric)
                    cells += ["", "", 0] if pair is None else [pair.mean, _or_empty(pair.half_width), pair.pairs]
            writer.writerow(cells)
    return out.getvalue()


def _cells(table: TaskTable, marks: list[str]) -> list[list[str]]:
    """The cells of a table, its header first."""
    header = list(table.settings)
    body = [[_setting_text(row.settings.get(key)) for key in table.settings] for row in table.rows]
    names = table.data_names()
    if table.data_differ:
        header.append("data set")
        body = [[*cells, name] for cells, name in zip(body, names, strict=True)]
    if table.folds_differ:
        header.append("folds")
        body = [[*cells, ", ".join(row.folds)] for cells, row in zip(body, table.rows, strict=True)]
    header.append("runs")
    body = [[*cells, _runs_text(row, marks)] for cells, row in zip(body, table.rows, strict=True)]
    for metric in table.metrics:
        header.append(metric)
        ranked = _ranked_means(table, metric, names)
        for cells, row, name in zip(body, table.rows, names, strict=True):
            spread = row.spread(metric)
            text = _spread_text(metric, spread, len(row.runs))
            means = [] if row.is_validated_on_training_cases or spread is None else ranked.get(name, [])
            rank = means.index(spread.mean) if means and spread is not None else None
            cells.append(f"**{text}**" if rank == 0 else f"*{text}*" if rank == 1 and len(means) > 2 else text)
    return [header, *body]


def _ranked_means(table: TaskTable, metric: str, names: list[str]) -> dict[str, list[float]]:
    """The means of a score by data set, the best first, where at least two rows can be compared."""
    is_higher = higher_is_better(metric)
    if is_higher is None:
        return {}
    means: dict[str, list[float]] = {}
    for row, name in zip(table.rows, names, strict=True):
        spread = row.spread(metric)
        if spread is not None and not row.is_validated_on_training_cases:
            means.setdefault(name, []).append(spread.mean)
    return {name: sorted(set(values), reverse=is_higher) for name, values in means.items() if len(values) > 1}


def _marks(comparison: Comparison) -> list[str]:
    """The marks of all rows; the cells name them by their positions, from 1."""
    return list(dict.fromkeys(mark for row in comparison.rows for mark in row.marks))


def comparison_notes(comparison: Comparison) -> list[str]:
    """Sentences about the tables, for below them.

    Args:
        comparison: the tables.
    """
    metrics = {name for table in comparison.tables for name in table.metrics}
    notes = [
        "Weights: each run's at its last validation; `--checkpoint best` takes those of the best validation."
        if comparison.weights == "last"
        else "Weights: each run's at its best validation, so they were chosen on the cases that these metrics are of."
    ]
    has_files = any(name.endswith(FILES) for name in metrics)
    if has_files:
        notes.append(f"`{FILES.strip()}`: `fusionseg evaluate`, in the geometry of the label files.")
    if any(name.endswith(PREPARED) for name in metrics):
        advice = "" if has_files else "; `fusionseg evaluate` measures in the geometry of the files"
        notes.append(f"`{PREPARED.strip()}`: the training's own validation, on resampled and cropped volumes{advice}.")
    if any(name.endswith(PATCHES) for name in metrics):
        notes.append(f"`{PATCHES.strip()}`: means over patches, padding included, by an older version.")
    if any(row.not_finished() for row in comparison.rows):
        notes.append("Runs that have not finished count with the last validation they have, or with none.")
    if any(table.folds_differ for table in comparison.tables):
        notes.append("The rows are not over the same folds: their means are not of the same cases.")
    if any(table.data_differ for table in comparison.tables):
        notes.append("The rows are of different data sets: bold is the best of each.")
    notes += [f"[{number}] {mark}" for number, mark in enumerate(_marks(comparison), start=1)]
    notes += remark_notes([run for row in comparison.rows for run in row.runs])
    return [*notes, *(f"left out: {problem}" for problem in comparison.damaged)]


def _runs_text(row: Row, marks: list[str]) -> str:
    open_runs = ", ".join(f"{count} {state}" for state, count in row.not_finished().items())
    numbers = "".join(f" [{marks.index(mark) + 1}]" for mark in row.marks)
    return f"{len(row.runs)}" + (f" ({open_runs})" if open_runs else "") + numbers


def _setting_text(value: Any) -> str:
    return "-" if value is None else str(value)


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value


def _spread_text(metric: str, spread: Spread | None, runs: int) -> str:
    """The cell of a metric.

    Args:
        runs: number of runs of the row; some of them may lack the metric.
    """
    if spread is None:
        return "-"
    some = f" ({spread.count} of {runs})" if spread.count < runs else ""
    if metric == "parameters":
        return f"{spread.mean / 1e6:.2f} M"
    if metric == "steps":
        return f"{spread.low:.0f}" if spread.low == spread.high else f"{spread.low:.0f} to {spread.high:.0f}"
    if metric in ("mfu", "roofline"):
        deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
        return f"{100 * spread.mean:.1f}{deviation} %{some}"
    digits = digits_of(metric)
    text = f"{spread.mean:.{digits}f}"
    return (text if spread.deviation is None else f"{text} ± {spread.deviation:.{digits}f}") + some
