"""The table of `fusionseg compare`, as Markdown with its notes and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from fusionseg.inference.comparison.rows import MEASUREMENTS, Comparison, Part, Row, Spread, is_score
from fusionseg.runs.summary import FILES, PATCHES, PREPARED
from fusionseg.utils.tables import markdown_table

_MAX_NAMED = 5


def comparison_markdown(comparison: Comparison) -> str:
    """Mean ± standard deviation; of each score the best of a data set in bold; below the table what its figures are."""
    marks = list(dict.fromkeys(mark for row in comparison.rows for mark in row.marks))
    blocks = []
    for part in comparison.parts:
        title = f"{part.task}:\n\n" if len(comparison.parts) > 1 else ""
        blocks.append(title + markdown_table(_cells(part, marks)))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in _notes(comparison, marks))])


def comparison_csv(comparison: Comparison) -> str:
    """The same in full precision: mean, standard deviation and the number of runs that know the figure, apart."""
    settings = list(dict.fromkeys(key for part in comparison.parts for key in part.settings))
    figures = list(dict.fromkeys(name for part in comparison.parts for name in part.figures))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ("task", *settings, "data_set", "folds", "weights", "runs", "not_finished", "marks")
    writer.writerow([*fixed, *(f"{name}{end}" for name in figures for end in ("", "_std", "_runs"))])
    for part in comparison.parts:
        for row, data in zip(part.rows, part.data_names(), strict=True):
            cells: list[Any] = [part.task, *(_setting(row.settings.get(key)) for key in settings)]
            cells += [data, " ".join(row.folds), comparison.weights, len(row.runs), sum(row.ended_early().values())]
            cells.append("; ".join(row.marks))
            for figure in figures:
                spread = row.spread(figure)
                cells += ["", "", 0] if spread is None else [spread.mean, _known(spread.deviation), spread.count]
            writer.writerow(cells)
    return out.getvalue()


def _cells(part: Part, marks: list[str]) -> list[list[str]]:
    """The table, its header first."""
    header = list(part.settings)
    body = [[_setting(row.settings.get(key)) for key in part.settings] for row in part.rows]
    names = part.data_names()
    if part.data_differ:
        header.append("data set")
        body = [[*cells, name] for cells, name in zip(body, names, strict=True)]
    if part.folds_differ:
        header.append("folds")
        body = [[*cells, ", ".join(row.folds)] for cells, row in zip(body, part.rows, strict=True)]
    for cells, row in zip(body, part.rows, strict=True):
        cells.append(_runs(row, marks))
    for figure in part.figures:
        header.append(figure)
        best = _best(part, figure, names)
        for cells, row, name in zip(body, part.rows, names, strict=True):
            spread = row.spread(figure)
            text = _spread(figure, spread, len(row.runs))
            is_best = spread is not None and spread.mean == best.get(name) and not row.has_seen_its_validation
            cells.append(f"**{text}**" if is_best else text)
    return [[*header[: len(header) - len(part.figures)], "runs", *part.figures], *body]


def _best(part: Part, figure: str, names: list[str]) -> dict[str, float]:
    """The best mean of a score by data set, where there is something to compare it with."""
    if not is_score(figure):
        return {}
    means: dict[str, list[float]] = {}
    for row, name in zip(part.rows, names, strict=True):
        spread = row.spread(figure)
        if spread is not None and not row.has_seen_its_validation:
            means.setdefault(name, []).append(spread.mean)
    return {name: max(values) for name, values in means.items() if len(values) > 1}


def _notes(comparison: Comparison, marks: list[str]) -> list[str]:
    runs = [run for row in comparison.rows for run in row.runs]
    figures = {name for part in comparison.parts for name in part.figures}
    notes = [
        "Weights: each run's at its last validation; `--checkpoint best` takes those of the best validation."
        if comparison.weights == "last"
        else "Weights: each run's at its best validation, so they were chosen on the cases that these figures are of."
    ]
    if any(name.endswith(FILES) for name in figures):
        notes.append(f"`{FILES.strip()}`: `fusionseg evaluate`, in the geometry of the label files.")
    if any(name.endswith(PREPARED) for name in figures):
        advice = (
            "" if any(name.endswith(FILES) for name in figures) else "; `fusionseg evaluate` measures in the files'"
        )
        notes.append(f"`{PREPARED.strip()}`: the training's own validation, on resampled and cropped volumes{advice}.")
    if any(name.endswith(PATCHES) for name in figures):
        notes.append(f"`{PATCHES.strip()}`: means over patches, padding included, by an older version.")
    if any(row.ended_early() for row in comparison.rows):
        notes.append("Runs that have not come to their end count with the last validation they have, or with none.")
    if any(part.folds_differ for part in comparison.parts):
        notes.append("The rows are not over the same folds: their means are not of the same cases.")
    if any(part.data_differ for part in comparison.parts):
        notes.append("The rows are of different data sets: bold is the best of each.")
    notes += [f"[{number}] {mark}" for number, mark in enumerate(marks, start=1)]
    remarks: dict[str, list[str]] = {}
    for run in runs:
        for remark in run.remarks:
            remarks.setdefault(remark, []).append(run.path.name)
    notes += [f"{_some(names)}: {remark}" for remark, names in remarks.items()]
    return [*notes, *(f"left out: {problem}" for problem in comparison.damaged)]


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _runs(row: Row, marks: list[str]) -> str:
    early = ", ".join(f"{count} {state}" for state, count in row.ended_early().items())
    numbers = "".join(f" [{marks.index(mark) + 1}]" for mark in row.marks)
    return f"{len(row.runs)}" + (f" ({early})" if early else "") + numbers


def _setting(value: Any) -> str:
    return "-" if value is None else str(value)


def _known(value: float | None) -> float | str:
    return "" if value is None else value


def _spread(figure: str, spread: Spread | None, runs: int) -> str:
    if spread is None:
        return "-"
    some = f" ({spread.count} of {runs})" if spread.count < runs else ""
    if figure == "parameters":
        return f"{spread.mean / 1e6:.2f} M"
    if figure == "steps":
        return f"{spread.low:.0f}" if spread.low == spread.high else f"{spread.low:.0f} to {spread.high:.0f}"
    short = figure in MEASUREMENTS or figure.startswith(("psnr", "hd95"))
    digits = 2 if short else 4
    text = f"{spread.mean:.{digits}f}"
    return (text if spread.deviation is None else f"{text} ± {spread.deviation:.{digits}f}") + some
