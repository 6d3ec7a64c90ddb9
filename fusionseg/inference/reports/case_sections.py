"""The cases on the page of an evaluation: pictures, distributions, and what the worst have in common."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite, isnan, nan
from pathlib import Path

import torch

from fusionseg.data.formats.problems import CaseError
from fusionseg.inference.reports.evaluated_cases import EvaluatedCases
from fusionseg.inference.reports.scores import SHOWN_FIRST, CaseScores, metric_texts, metrics_of
from fusionseg.inference.reports.worst_cases import PROPERTIES, compare_worst, properties_of
from fusionseg.observability.case_pictures import draw_case
from fusionseg.observability.progress import with_progress
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.charts import Point, row_chart, scatter_chart
from fusionseg.utils.errors import UserError
from fusionseg.utils.html_page import Cell, TableRow, figure, heading, picture_uri, sortable_table, table
from fusionseg.utils.tables import plain_number

log = logging.getLogger("fusionseg")

MOST_CHARTED = 20
"""Number of classes with a row in a chart."""
_MOST_IN_TITLE = 6


@dataclass(frozen=True)
class ReportOptions:
    """The options of `fusionseg report`."""

    pictures: int = 10
    """Number of worst cases and of best cases with a picture; 0 reads no image."""
    device: str = "auto"
    """The device of the prediction."""
    overrides: Sequence[str] = ()
    """`key.path=value` settings, such as data.root, that are laid over the configuration of the run."""


@dataclass
class SeenCases:
    """Properties and pictures of the cases of an evaluation."""

    properties: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    """Address of the picture by case."""
    problem: str = ""
    """The reason why there are no pictures; empty if there are."""


def look_at_cases(
    folder: Path, summary: JsonObject, ranked: Sequence[CaseScores], drawn: Sequence[CaseScores], options: ReportOptions
) -> SeenCases:
    """Read the cases of an evaluation, and draw some of them. Cases that cannot be read are named and left out.

    Args:
        folder: of the evaluation.
        summary: of the evaluation.
        ranked: the cases whose properties are measured.
        drawn: the cases with a picture.
        options: of the page.
    """
    seen = SeenCases()
    if not options.pictures:
        seen.problem = "the page was made without them"
        return seen
    try:
        opened = EvaluatedCases(folder, summary, device=options.device, overrides=options.overrides)
    except UserError as error:
        seen.problem = str(error)
        log.warning("%s: the page has no pictures: %s", folder, error)
        return seen
    chosen = {case.name for case in drawn}
    for case in with_progress("drawing", list(ranked)):
        if case.name not in opened:
            log.warning("%s: is not drawn: the data set has no labelled case of this name any more", case.name)
            continue
        try:
            volume = opened.read(case.name)
            seen.properties[case.name] = properties_of(volume)
            if case.name in chosen:
                rgb = draw_case(
                    volume.image,
                    volume.label,
                    opened.predict(case.name),
                    volume.spacing_mm,
                    opened.scheme.output_names,
                    _picture_title(case),
                    renderings=True,
                )
                seen.pictures[case.name] = picture_uri(rgb, "jpeg")
        except CaseError as error:
            log.warning("%s: is not drawn: %s", case.name, error)
        except (MemoryError, torch.OutOfMemoryError) as error:  # the scores need no image
            reason = str(error).splitlines()[0] if str(error) else "no memory is left"
            seen.problem = f"{case.name}: {reason}; close what uses the memory, or add --device cpu"
            log.warning("%s: the page has no more pictures: %s", folder, seen.problem)
            break
    return seen


def _picture_title(case: CaseScores) -> str:
    known = [f"{name} {value:.3f}" for name, value in case.values("dice").items() if not isnan(value)]
    more = f" and {len(known) - _MOST_IN_TITLE} more" if len(known) > _MOST_IN_TITLE else ""
    return f"{case.name}: Dice {', '.join(known[:_MOST_IN_TITLE])}{more}"


def distributions(ranked: Sequence[CaseScores], worst: set[str], seen: SeenCases) -> list[str]:
    """Make charts of the scores: a point for each case, with a link to its row.

    Args:
        ranked: the cases that the means count.
        worst: names of those in another colour.
        seen: their properties.
    """
    charts = []
    for metric in SHOWN_FIRST:
        labels = list(dict.fromkeys(label for case in ranked for label in case.values(metric)))
        rows = {
            label: [
                Point(value, f"{case.name}: {value:.4g}", f"#{case.anchor}", case.name in worst)
                for case in ranked
                if isfinite(value := case.values(metric).get(label, nan))
            ]
            for label in labels[:MOST_CHARTED]
        }
        title = metric_texts(metric)[0]
        if chart := row_chart(rows, title):
            more = f", first {MOST_CHARTED} classes" if len(labels) > MOST_CHARTED else ""
            charts.append(figure(chart, f"{title} by class{more}"))
    points = [
        (
            seen.properties[case.name]["foreground_ml"],
            Point(case.dice, case.name, f"#{case.anchor}", case.name in worst),
        )
        for case in ranked
        if case.name in seen.properties
    ]
    if chart := scatter_chart(points, "foreground in the reference (ml)", "mean Dice"):
        charts.append(figure(chart, "Mean Dice and size"))
    if not charts:
        return []
    note = (
        "One point for each case; red: the worst by mean Dice. Line: median; box: quartiles. A click on a point leads"
        " to the row of the case."
    )
    return [heading("Distributions", note), f"<div class='charts'>{''.join(charts)}</div>"]


def common_properties(ranked: Sequence[CaseScores], worst: Sequence[CaseScores], seen: SeenCases) -> list[str]:
    """Compare the properties of the worst cases with those of the others, as a table; empty for a few cases.

    Args:
        ranked: the cases that the means count.
        worst: the worst of them.
        seen: their properties.
    """
    dice = {case.name: case.dice for case in ranked}
    found = compare_worst(dice, seen.properties, [case.name for case in worst])
    if not found:
        return []
    note = (
        f"Medians over the {len(worst)} worst cases and the {len(ranked) - len(worst)} others, and Spearman's rank"
        " correlation of the property with the mean Dice over all cases (1: large values have a high Dice, -1: a low"
        " one). This describes these cases; it is no test, and no cause. Properties that are the same in all cases"
        " are left out."
    )
    rows = [
        [
            escape(PROPERTIES[one.name]),
            plain_number(one.worst),
            plain_number(one.others),
            "" if isnan(one.correlation) else f"{one.correlation:+.2f}",
            str(one.cases),
        ]
        for one in found
    ]
    head = ["property", f"{len(worst)} worst", f"{len(ranked) - len(worst)} others", "rank correlation", "cases"]
    return [heading("What the worst cases have in common", note), table(head, rows, texts=1)]


def case_figures(title: str, cases: Sequence[CaseScores], seen: SeenCases) -> list[str]:
    """Show the pictures of cases, below a heading; empty without a picture.

    Args:
        title: the heading.
        cases: the cases.
        seen: their pictures.
    """
    shown = [case for case in cases if case.name in seen.pictures]
    if not shown:
        return []
    return [
        heading(title),
        *(
            figure(
                f"<img class=wide alt='' src='{seen.pictures[case.name]}'>",
                f"{case.name}, mean Dice {case.dice:.4f}",
                anchor=f"picture-{case.anchor}",
            )
            for case in shown
        ),
    ]


def case_table(cases: Sequence[CaseScores], left_out: set[str], seen: SeenCases) -> str:
    """Make the table of all cases, which sorts.

    Args:
        cases: all cases.
        left_out: names of the cases that the means leave out.
        seen: their properties and pictures.
    """
    metrics = metrics_of(cases)
    properties = list(PROPERTIES)[:4] if seen.properties else []
    head = ["case", "mean Dice"]
    labels = list(dict.fromkeys(label for case in cases for label in case.values("dice")))[:8]
    shown = [metric for metric in metrics if metric in SHOWN_FIRST]
    head += [f"{escape(label)}<br>{escape(metric_texts(metric)[0])}" for metric in shown for label in labels]
    head += [escape(PROPERTIES[key].split(" (")[0]) for key in properties]
    rows = []
    for case in cases:
        name = escape(case.name)
        if case.name in seen.pictures:
            name = f"<a href='#picture-{case.anchor}'>{name}</a>"
        cells = [Cell(name), _cell(case.dice, 4)]
        for metric in shown:
            digits = metric_texts(metric)[1]
            cells += [_cell(case.values(metric).get(label, nan), digits) for label in labels]
        for key in properties:
            value = seen.properties.get(case.name, {}).get(key, nan)
            cells.append(Cell("" if isnan(value) else plain_number(value)))
        rows.append(TableRow(cells, case.anchor, is_marked=case.name in left_out))
    return sortable_table(head, rows)


def _cell(value: float, digits: int) -> Cell:
    return Cell("" if isnan(value) else f"{value:.{digits}f}")
