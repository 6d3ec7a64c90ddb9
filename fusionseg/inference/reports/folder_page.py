"""The page of a folder of runs: its tables, its curves, the score against the cost, and links to the runs' pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from fusionseg.inference.comparison.figures import COST_SCALES, COST_TITLES, learning_curve, tradeoff_score
from fusionseg.inference.comparison.layout import unique_names
from fusionseg.inference.comparison.rows import Comparison, Row, TaskTable, compare, digits_of, higher_is_better
from fusionseg.inference.comparison.run_summary import RunSummary
from fusionseg.inference.comparison.table import comparison_cells, comparison_notes
from fusionseg.inference.statistics.analysis import analyse
from fusionseg.inference.statistics.pooled import pool
from fusionseg.inference.statistics.tables import statistics_cells, statistics_notes
from fusionseg.observability.progress import duration
from fusionseg.runs.paths import REPORT, is_run_folder
from fusionseg.runs.records import RecordKind, has_finished
from fusionseg.utils.charts import PALETTE, Curve, Point, curve_chart, legend, scatter_chart
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_text
from fusionseg.utils.html_page import (
    Cell,
    TableRow,
    cell_table,
    figure,
    heading,
    html_page,
    paragraph,
    sortable_table,
    tiles,
)


def write_folder_page(folder: Path) -> Path:
    """Write report.html into a folder of run folders.

    Args:
        folder: holds run folders. Those that have a page are linked.

    Returns:
        The path of the page.

    Raises:
        UserError: no run has a validation, or none can be read.
    """
    comparison = compare([folder], ensembles=True, postprocessed=True)
    parts = [paragraph(str(folder.resolve()), "note"), _tiles(comparison), heading("Comparison")]
    for title, cells in comparison_cells(comparison):
        parts += [_subheading(title)] if len(comparison.tables) > 1 else []
        parts.append(cell_table(cells))
    parts += [_note(text) for text in comparison_notes(comparison)]
    parts += _statistics(comparison)
    for table in comparison.tables:
        of_task = f": {table.task}" if len(comparison.tables) > 1 else ""
        parts += [*_curves(table, of_task), *_costs(table, of_task)]
    parts += _runs(folder, comparison)
    page = folder / REPORT
    write_text(page, html_page(f"Runs in {folder.resolve().name}", parts))
    return page


def _tiles(comparison: Comparison) -> str:
    runs = [run for row in comparison.rows for run in _single_runs(row)]
    seconds = sum(run.metrics.get("total_s", 0.0) for run in runs)
    values = [
        (str(len(runs)), "runs"),
        (str(sum(has_finished(run.status) for run in runs)), "finished runs"),
        (str(len(comparison.rows)), "configurations"),
        (str(len({row.data.key for row in comparison.rows})), "data sets"),
    ]
    return tiles([*values, *([(duration(seconds), "wall time of all runs")] if seconds else [])])


def _statistics(comparison: Comparison) -> list[str]:
    note = "Pooled cross-validation: each case counts once, scored by the runs that did not train on it."
    parts = [heading("Statistics", note)]
    try:
        found = analyse(pool(comparison))
    except UserError as error:
        return [*parts, *(_note(problem) for problem in error.problems)]
    for title, cells in statistics_cells(found):
        parts += [_subheading(title.removesuffix(":")), cell_table(cells)]
    return [*parts, *(_note(text) for text in statistics_notes(found)[1:])]


def _curves(table: TaskTable, of_task: str) -> list[str]:
    """The score of the validation and the losses: one line for each row, the mean over its runs."""
    names, colors = unique_names(table), _colors(table)
    charts = []
    for kind, field, title in (
        (RecordKind.VAL, None, f"{table.rows[0].runs[0].task.score} of the validation (prepared grid)"),
        (RecordKind.TRAIN, "loss", "loss of the training"),
        (RecordKind.VAL, "loss", "loss of the validation"),
    ):
        means = [learning_curve(row, kind, field) for row in table.rows]
        lines = [
            Curve(name, list(mean), list(mean.values()), color)
            for name, mean, color in zip(names, means, colors, strict=True)
        ]
        if chart := curve_chart(lines, "step", title, log_y=kind == RecordKind.TRAIN):
            charts.append(figure(chart, title))
    if not charts:
        return []
    note = "Means over the runs of a row, at the steps that all of them have."
    return [heading(f"Curves{of_task}", note), f"<div class='charts'>{''.join(charts)}</div>"]


def _costs(table: TaskTable, of_task: str) -> list[str]:
    """The score against parameters, time and memory: one point for each row."""
    score = tradeoff_score(table)
    if score is None:
        return []
    names, colors = unique_names(table), _colors(table)
    charts = []
    for cost, title in COST_TITLES.items():
        points = []
        for row, name, color in zip(table.rows, names, colors, strict=True):
            value, price = row.spread(score), row.spread(cost)
            if value is not None and price is not None:
                text = f"{name}: {value.mean:.{digits_of(score)}f}"
                points.append((price.mean * COST_SCALES.get(cost, 1.0), Point(value.mean, text, color=color)))
        if chart := scatter_chart(points, title, score):
            charts.append(figure(chart, f"{score} and {title}"))
    if not charts:
        return []
    note = "Means over the runs of a row" + ("; a lower score is better." if not higher_is_better(score) else ".")
    shown = f"<div class='charts'>{''.join(charts)}</div>"
    return [heading(f"Score and cost{of_task}", note), shown, legend(names, colors)]


def _runs(folder: Path, comparison: Comparison) -> list[str]:
    """A table of all runs, which sorts, with links to their pages. Ensembles are no runs."""
    rows = []
    scores = [tradeoff_score(table) for table in comparison.tables]
    named = {score for score in scores if score is not None}
    for table, score in zip(comparison.tables, scores, strict=True):
        for row, name in zip(table.rows, unique_names(table), strict=True):
            for run in _single_runs(row):
                title = escape(run.name)
                if run.path.parent.resolve() == folder.resolve() and (run.path / REPORT).is_file():
                    title = f"<a href='./{quote(run.path.name)}/{REPORT}'>{title}</a>"
                value, seconds = run.metrics.get(score or ""), run.metrics.get("total_s")
                cells = [
                    Cell(title),
                    Cell(escape(name)),
                    Cell(escape(run.fold)),
                    Cell(escape(run.status)),
                    Cell("") if value is None or score is None else _score_cell(value, score, len(named) > 1),
                    Cell("" if seconds is None else duration(seconds), "" if seconds is None else f"{seconds:.0f}"),
                ]
                rows.append(TableRow(cells, is_marked=not has_finished(run.status)))
    head = ["run", "row", "fold", "status", escape(named.pop() if len(named) == 1 else "score"), "time"]
    note = "A red line: not finished. A click on a heading sorts."
    return [heading("Runs", note), sortable_table(head, rows)]


def _single_runs(row: Row) -> list[RunSummary]:
    """The runs of a row that are run folders, and no further evaluations of them."""
    return [run for run in row.runs if is_run_folder(run.path)]


def _score_cell(value: float, score: str, is_named: bool) -> Cell:
    number = f"{value:.{digits_of(score)}f}"
    return Cell(f"{escape(score)} {number}" if is_named else number, number)


def _colors(table: TaskTable) -> Sequence[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(len(table.rows))]


def _note(text: str) -> str:
    """A note of a table in Markdown, without the marks of its code."""
    return paragraph(text.replace("`", ""), "note")


def _subheading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"
