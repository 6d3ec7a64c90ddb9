"""Figures of `fusionseg compare`: learning curves, and the score against the cost of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fusionseg.inference.comparison.layout import unique_names
from fusionseg.inference.comparison.rows import COST, Comparison, Row, TaskTable, higher_is_better
from fusionseg.runs.json_files import is_number
from fusionseg.runs.records import RecordKind, sift_records
from fusionseg.utils.files import file_name, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"
_KINDS = ("png", "svg")
COST_TITLES = {
    "parameters": "parameters, millions",
    "total_s": "time of a run, hours",
    "gpu_hours": "GPU hours of a run",
    "memory_gb": "memory, GB",
}
COST_SCALES = {"parameters": 1e-6, "total_s": 1 / 3600}
_MARKERS = "osD^vP*Xph"
# matplotlib writes the date and random names into an SVG. Equal tables must give equal files.
_SETTINGS = {"svg.hashsalt": "fusionseg", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9.0}


def draw_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw the figures of each task, as PNG (200 dots per inch) and SVG.

    Args:
        comparison: the tables.
        folder: of the table; the files are in its folder `figures`.

    Returns:
        The files. A figure for which no run has values is not drawn.
    """
    import matplotlib as mpl  # slow to import

    files = []
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_SETTINGS):
        for table in comparison.tables:
            before = f"{table.task}_" if len(comparison.tables) > 1 else ""
            for name, figure in (("learning_curves", _learning_curves(table)), ("tradeoff", _tradeoff(table))):
                if figure is not None:
                    files += list(_save(figure, folder / FIGURES, before + name))
    return files


def learning_curve(row: Row, kind: RecordKind = RecordKind.VAL, field: str | None = None) -> dict[int, float]:
    """The mean of a field of the records of a row by step, over its runs.

    A step at which one of the runs has no value is left out: the mean of the others is no mean of the row.

    Args:
        row: the row.
        kind: of the records.
        field: of the records; None for the score of the task.
    """
    return _mean_curve(_curves(row, kind, field))


def tradeoff_score(table: TaskTable) -> str | None:
    """The column that is drawn against the cost: the first score with a better direction; None without one."""
    return next((name for name in table.metrics if name not in COST and higher_is_better(name) is not None), None)


def _curves(row: Row, kind: RecordKind = RecordKind.VAL, field: str | None = None) -> list[dict[int, float]]:
    """The value of each record by step, for each run that has one; see `learning_curve`."""
    curves = []
    for run in row.runs:
        name = field or run.task.score
        curves.append(
            {
                int(record["step"]): float(record[name])
                for record in sift_records(run.path)[0]
                if record["kind"] == kind and is_number(record.get(name))
            }
        )
    return [curve for curve in curves if curve]


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    shared = set.intersection(*map(set, curves)) if curves else set()
    return {step: fmean(curve[step] for curve in curves) for step in sorted(shared)}


def _learning_curves(table: TaskTable) -> Figure | None:
    figure, axes = _figure(1)
    drawn = False
    for index, (row, name) in enumerate(zip(table.rows, unique_names(table), strict=True)):
        curves = _curves(row)
        mean = _mean_curve(curves)
        drawn = drawn or bool(curves)
        color, marker = f"C{index % 10}", _MARKERS[index // 10 % len(_MARKERS)]
        for curve in curves if len(curves) > 1 else ():
            axes[0].plot(list(curve), list(curve.values()), color=color, linewidth=0.6, alpha=0.35)
        label = name if len(curves) == 1 else f"{name}, mean of {len(curves)} runs"
        if curves:
            axes[0].plot(list(mean), list(mean.values()), color=color, marker=marker, markersize=3, label=label)
    if not drawn:
        return None
    axes[0].set_xlabel("optimizer step")
    axes[0].set_ylabel(f"{table.rows[0].runs[0].task.score} of the validation (prepared grid)")
    axes[0].grid(alpha=0.3)
    _legend(figure, axes[0])
    return figure


def _tradeoff(table: TaskTable) -> Figure | None:
    """One panel for each kind of cost: a point for each row, with the standard deviation over its runs."""
    score = tradeoff_score(table)
    costs = [cost for cost in COST_TITLES if any(row.spread(cost) for row in table.rows)]
    if score is None or not costs:
        return None
    figure, axes = _figure(len(costs))
    for index, (row, name) in enumerate(zip(table.rows, unique_names(table), strict=True)):
        values = row.spread(score)
        for panel, cost in zip(axes, costs, strict=True):
            spread, scale = row.spread(cost), COST_SCALES.get(cost, 1.0)
            if values is not None and spread is not None:
                panel.errorbar(
                    spread.mean * scale,
                    values.mean,
                    xerr=(spread.deviation or 0) * scale,
                    yerr=values.deviation or 0,
                    color=f"C{index % 10}",
                    marker=_MARKERS[index // 10 % len(_MARKERS)],
                    linestyle="none",
                    capsize=2,
                    label=name,
                )
    for panel, cost in zip(axes, costs, strict=True):
        panel.set_xlabel(COST_TITLES[cost])
        panel.locator_params(axis="x", nbins=4)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(score + (" (lower is better)" if higher_is_better(score) is False else ""))
    _legend(figure, max(axes, key=lambda panel: len(panel.get_legend_handles_labels()[1])))
    return figure


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3.6 * max(panels, 1.6), 3.8), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])


def _legend(figure: Figure, axes: Any) -> None:
    """Put the legend below the panels, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)


def _save(figure: Figure, folder: Path, name: str) -> Iterator[Path]:
    for kind in _KINDS:
        path = folder / file_name(name, f".{kind}")
        with whole_file(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        yield path
