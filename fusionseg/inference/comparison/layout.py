"""Layout of a table over runs for a paper: rows with the names of the runs, and chosen columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusionseg.inference.comparison.rows import Comparison, Row, TaskTable
from fusionseg.inference.comparison.run_summary import RunSummary, name_without_repetition
from fusionseg.utils.errors import UserError, some_of, suggest

NAME = "name"
"""The column of the rows' names."""
_MAX_NAMES = 3
_MAX_RUNS = 5


def with_names(comparison: Comparison) -> Comparison:
    """Replace the columns of settings by one column: the names of the row's runs, without seed and fold.

    A sweep names its runs by their settings, such as `swin_unetr-seed0`; this row is called `swin_unetr`.
    """
    tables = [
        replace(table, settings=[NAME], rows=[replace(row, settings={NAME: row_name(row)}) for row in table.rows])
        for table in comparison.tables
    ]
    return replace(comparison, tables=tables)


def row_name(row: Row) -> str:
    """The name that the runs of a row share; several names if they do not share one."""
    return some_of(list(dict.fromkeys(name_without_repetition(run.name) for run in row.runs)), _MAX_NAMES)


def unique_names(table: TaskTable) -> list[str]:
    """Names of the rows of a table: those of their runs, followed by their settings where rows share a name."""
    names = [row_name(row) for row in table.rows]
    found = []
    for row, name in zip(table.rows, names, strict=True):
        same = [
            other.data.key == row.data.key for other, its in zip(table.rows, names, strict=True) if its == name
        ].count(True)
        settings = ", ".join(f"{key}={row.settings.get(key)}" for key in table.settings)
        found.append(name if same == 1 else f"{name} ({settings})")
    return found


def with_metrics(comparison: Comparison, names: Sequence[str], *, must_exist: bool = True) -> Comparison:
    """Keep the chosen columns of metrics, in the order of the names.

    Args:
        comparison: the tables.
        names: a metric with its grid, such as "dice (files)", or without it, which stands for all grids of the metric.
            `dice_per_class` stands for all classes.
        must_exist: refuse names of metrics that no run has. Otherwise they are left out.

    Raises:
        UserError: no table has a metric of a name; all such names are listed.
    """
    if must_exist and (unknown := unknown_metrics(comparison, names)):
        raise UserError(f"--metrics: {problem}" for problem in unknown)
    tables = []
    for table in comparison.tables:
        chosen = (metric for name in names for metric in table.metrics if _matches(metric, name))
        tables.append(replace(table, metrics=list(dict.fromkeys(chosen))))
    return replace(comparison, tables=tables)


def unknown_metrics(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Tell which names are of metrics that no run has: a message for each.

    Args:
        comparison: the tables.
        names: names of columns, as in `with_metrics`.
    """
    known = list(dict.fromkeys(metric for table in comparison.tables for metric in table.metrics))
    return [
        f"these runs have no metric {name!r}; {suggest(name, known)}"
        for name in names
        if not any(_matches(metric, name) for metric in known)
    ]


def _matches(metric: str, name: str) -> bool:
    wanted, _, wanted_grid = name.partition(" (")
    base, _, grid = metric.partition(" (")
    return wanted_grid in ("", grid) and (base == wanted or base.startswith(f"{wanted}."))


def remark_notes(runs: Sequence[RunSummary], *, marks: bool = False) -> list[str]:
    """Notes for below a table: each remark about runs, with the names of the runs.

    Args:
        runs: of all rows.
        marks: also the marks of the runs, for a table without numbers for them.
    """
    remarks: dict[str, list[str]] = {}
    for run in runs:
        for remark in (*(run.marks if marks else ()), *run.remarks):
            remarks.setdefault(remark, []).append(run.name)
    return [f"{some_of(names, _MAX_RUNS)}: {remark}" for remark, names in remarks.items()]
