"""The page of an evaluation: its scores, and its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import stdev
from typing import Any

from fusionseg.inference.evaluation.results import evaluation_notes
from fusionseg.inference.reports.case_sections import (
    ReportOptions,
    case_figures,
    case_table,
    common_properties,
    distributions,
    look_at_cases,
)
from fusionseg.inference.reports.scores import CaseScores, cases_of, metric_texts, metrics_of
from fusionseg.inference.statistics.intervals import mean_interval
from fusionseg.runs.evaluations import CASES, SUMMARY, read_summary
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import REPORT
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_text
from fusionseg.utils.html_page import Cell, TableRow, heading, html_page, paragraph, sortable_table, table, tiles
from fusionseg.utils.tables import counted


def write_evaluation_page(folder: Path, options: ReportOptions) -> Path:
    """Write report.html into the folder of an evaluation.

    Args:
        folder: of the evaluation, in a run folder.
        options: of the page.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder holds no evaluation.
    """
    summary = read_summary(folder)
    if not summary:
        raise UserError(
            f"{folder}: holds no evaluation ({SUMMARY} is missing or damaged): fusionseg evaluate writes it"
        )
    title = f"Evaluation of {folder.resolve().parent.name}"
    parts = _segmentation(folder, summary, options) if "classes" in summary else _other_task(summary)
    page = folder / REPORT
    write_text(page, html_page(title, [paragraph(str(folder.resolve()), "note"), *parts]))
    return page


def _segmentation(folder: Path, summary: JsonObject, options: ReportOptions) -> list[str]:
    cases = cases_of(summary)
    left_out = set(summary.get("left_out") or ())
    ranked = sorted(
        (case for case in cases if case.name not in left_out and not isnan(case.dice)), key=lambda c: c.dice
    )
    count = min(options.pictures or 10, len(ranked) // 2) or len(ranked)
    worst = ranked[:count]
    best = ranked[count:][-count:][::-1]
    seen = look_at_cases(folder, summary, ranked, [*worst, *best], options)
    parts = [_tiles(summary), *(paragraph(_sentence(note), "warning") for note in evaluation_notes(summary))]
    if summary.get("failed"):
        parts += [heading("Cases that could not be scored")]
        parts += [
            table(["case", "reason"], [(escape(k), escape(str(v))) for k, v in summary["failed"].items()], texts=2)
        ]
    parts += [heading("Scores", _interval_note(len(ranked))), _class_table(summary, cases, left_out)]
    parts += distributions(ranked, {case.name for case in worst}, seen)
    parts += common_properties(ranked, worst, seen)
    parts += case_figures("Worst cases", worst, seen) + case_figures("Best cases", best, seen)
    if seen.problem:
        shown = "There are no pictures" if not seen.pictures else "There are no more pictures"
        parts.append(paragraph(f"{shown}: {seen.problem}", "warning"))
    note = f"A click on a heading sorts the table. {CASES} beside this page has all values. Red: left out of the means."
    parts += [heading("All cases", note), case_table(cases, left_out, seen)]
    return [*parts, *_definitions(summary)]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _tiles(summary: JsonObject) -> str:
    values = [(f"{summary['cases']}", "cases")]
    for name in ("dice", "hd95_mm"):
        title, digits = metric_texts(name)
        values.append((_number(summary.get(name), digits), f"mean {escape(title)}"))
    weights = Path(str(summary.get("checkpoint"))).name
    values.append((escape(weights), f"weights, step {summary.get('step')}"))
    if others := summary.get("averaged_with"):
        values.append((f"{1 + len(others)}", "runs are averaged"))
    values.append((escape(Path(str(summary.get("dataset"))).parent.name), "data set"))
    request = summary.get("request") or {}
    values.append(("all labelled cases" if request.get("dataset") else "validation cases", "were scored"))
    return tiles(values)


def _interval_note(cases: int) -> str:
    return (
        f"Mean over the {counted(cases, 'case')} with its 95 % confidence interval, and the standard deviation over the"
        " cases. The interval is about new cases from the same source; it knows nothing of other seeds, folds or"
        " hospitals."
    )


def _class_table(summary: JsonObject, cases: Sequence[CaseScores], left_out: set[str]) -> str:
    metrics = metrics_of(cases)
    rows = []
    for name in summary["classes"]:
        row, counts = [escape(name)], 0
        for metric in metrics:
            values = [case.values(metric).get(name, nan) for case in cases if case.name not in left_out]
            known = [value for value in values if isfinite(value)]
            digits = metric_texts(metric)[1]
            counts = max(counts, len(known))
            row.append(_with_interval(known, digits))
        rows.append([row[0], str(counts), *row[1:]])
    means = {"dice": summary.get("dice"), "hd95_mm": summary.get("hd95_mm"), **(summary.get("metrics") or {})}
    rows.append(
        [
            "<b>mean over classes</b>",
            str(summary["cases"]),
            *(f"<b>{_number(means.get(metric), metric_texts(metric)[1])}</b>" for metric in metrics),
        ]
    )
    return table(["class", "cases", *(escape(metric_texts(metric)[0]) for metric in metrics)], rows, texts=1)


def _with_interval(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    interval = mean_interval(values)
    text = f"{interval.mean:.{digits}f}"
    if isnan(interval.low):
        return text
    return f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}] &plusmn; {stdev(values):.{digits}f}"


def _definitions(summary: JsonObject) -> list[str]:
    found = summary.get("definitions") or {}
    if not found:
        return []
    rows = [
        (escape(metric_texts(name)[0]), f"<span>{escape(str(one.get('text')))}</span>", escape(str(one.get("absent"))))
        for name, one in found.items()
    ]
    body = "".join(
        f"<tr><td class=text>{name}</td><td class=reason>{text}</td><td class=reason>{absent}</td></tr>"
        for name, text, absent in rows
    )
    head = "<tr><th class=text>metric</th><th class=text>definition</th><th class=text>absent class</th></tr>"
    return [heading("Definitions"), f"<div class='wide'><table>{head}{body}</table></div>"]


def _other_task(summary: JsonObject) -> list[str]:
    """The scores of a pre-training, or the fields of another task's validation."""
    fields: Mapping[str, Any] = summary.get("figures") or summary.get("fields") or {}
    rows = []
    for name, value in fields.items():
        values = value if isinstance(value, Mapping) else {"": value}
        shown = ", ".join(f"{key} {_number(one, 4)}".strip() for key, one in values.items())
        rows.append((escape(name), escape(shown)))
    weights = Path(str(summary.get("checkpoint"))).name
    parts = [tiles([(escape(weights), f"weights, step {summary.get('step')}")]), heading("Scores")]
    parts.append(table(["score", "value"], rows, texts=2))
    scores = summary.get("scores")
    if isinstance(scores, Mapping) and scores:
        names = list(dict.fromkeys(key for one in scores.values() for key in one))
        lines = [
            TableRow([Cell(escape(case)), *(Cell(escape(_number(one.get(key), 4))) for key in names)])
            for case, one in scores.items()
        ]
        parts += [
            heading("All cases", "A click on a heading sorts the table."),
            sortable_table(["case", *map(escape, names)], lines),
        ]
    return parts


def _number(value: Any, digits: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}" if isfinite(value) else ""
