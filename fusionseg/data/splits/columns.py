"""Values about the cases of a data set: from `data.table`, and from further keys of the entries of its JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from fusionseg.config import DataConfig
from fusionseg.config.data.splits import CLASSES, is_pattern
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.splits.named_file import read_named_file
from fusionseg.data.splits.table import CaseTable, read_table
from fusionseg.utils.errors import Problems, UserError, some_of, suggest


@dataclass(frozen=True)
class Columns:
    """The columns of a data set.

    Args:
        dataset: whose entries have further keys.
        table: that `data.table` names; None without it.
    """

    dataset: Dataset
    table: CaseTable | None

    def values(self, key: str, column: str, cases: Sequence[Case]) -> dict[str, str]:
        """Find the value of a column for each case, by its name.

        Args:
            key: of the configuration that names the column, for messages.
            column: its name.
            cases: of the data set; each needs a value.

        Raises:
            UserError: there is no such column, there are two, or cases have no value.
        """
        source = self.dataset.source.name
        in_table = self.table is not None and column in self.table.columns
        in_entries = any(column in case.columns for case in cases)
        if in_table and in_entries:
            raise UserError(
                f"{key}={column}: data.table and the entries of {source} both have it; remove it from one of them"
            )
        if not in_table and not in_entries:
            raise UserError(f"{key}={column}: {self._no_such_column(column, cases)}")
        if in_table and self.table is not None:
            rows = self.table.rows
            if unknown := [case.name for case in cases if case.name not in rows]:
                raise UserError(
                    f"{self.table.file.key}: has no row for {len(unknown)} of {len(cases)} cases ({some_of(unknown)});"
                    " add them, with the names that `fusionseg check` lists"
                )
            found = {case.name: rows[case.name][column] for case in cases}
        else:
            found = {case.name: _text(case.columns.get(column)) for case in cases}
        if lacking := [name for name, value in found.items() if not value]:
            raise UserError(
                f"{key}={column}: {len(lacking)} of {len(cases)} cases have no value ({some_of(lacking)}); add them"
            )
        return found

    def _no_such_column(self, column: str, cases: Sequence[Case]) -> str:
        entries = list(dict.fromkeys(name for case in cases for name in case.columns))
        tables = list(self.table.columns) if self.table is not None else []
        if not entries and not tables:
            return (
                f"there are no columns (expected a key of the entries of {self.dataset.source.name}, or a column of"
                " data.table); set data.table to a CSV file with the columns `case` and"
                f" `{column}`, or give a regular expression with one group in parentheses"
            )
        where = "data.table" if not entries else f"the entries of {self.dataset.source.name}"
        where = f"data.table and {where}" if entries and tables else where
        return f"there is no such column in {where}; {suggest(column, [*tables, *entries])}"


def describe_cases(dataset: Dataset, settings: DataConfig, cases: Sequence[Case]) -> tuple[list[Case], Columns]:
    """Fill in group, weight, target and stratum of cases, as the configuration names them.

    The stratum is left empty for `data.stratify: classes`, which needs the label files.

    Args:
        dataset: of the cases.
        settings: the section `data`.
        cases: that may be trained or validated on.

    Returns:
        The cases in the same order, and the columns.

    Raises:
        UserError: with the problems of all columns.
    """
    table = None
    if settings.table is not None:
        table = read_table(read_named_file("data.table", settings.table, dataset.root))
    columns = Columns(dataset, table)
    groups: dict[str, str] = {}
    weights: dict[str, float] = {}
    targets: dict[str, str] = {}
    strata: dict[str, str] = {}
    problems = Problems()
    if settings.group is not None:
        with problems.collect():
            groups = _groups(settings.group, columns, cases)
    if settings.weight is not None:
        with problems.collect():
            weights = _weights(settings.weight, columns, cases)
    if settings.target is not None:
        with problems.collect():
            targets = columns.values("data.target", settings.target, cases)
    if settings.stratify is not None and settings.stratify != CLASSES:
        with problems.collect():
            strata = _strata(settings.stratify, columns, cases)
    problems.raise_if_any()
    described = [
        replace(
            case,
            group=groups.get(case.name),
            weight=weights.get(case.name),
            target=targets.get(case.name),
            stratum=(strata[case.name],) if strata else (),
        )
        for case in cases
    ]
    return described, columns


def _groups(group: str, columns: Columns, cases: Sequence[Case]) -> dict[str, str]:
    if not is_pattern(group):
        return columns.values("data.group", group, cases)
    found = {case.name: re.search(group, case.name) for case in cases}
    groups = {name: match[1] or "" for name, match in found.items() if match is not None}
    if without := [case.name for case in cases if not groups.get(case.name)]:
        raise UserError(
            f"data.group={group}: does not match {len(without)} of {len(cases)} names ({some_of(without)}); correct the"
            " regular expression, or name a column"
        )
    return groups


def _weights(column: str, columns: Columns, cases: Sequence[Case]) -> dict[str, float]:
    weights = {}
    wrong = []
    for name, text in columns.values("data.weight", column, cases).items():
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = 0.0
        if not (isfinite(weights[name]) and weights[name] > 0):
            wrong.append(f"{name}: {text}")
    if wrong:
        raise UserError(f"data.weight={column}: expected numbers above 0, got {some_of(wrong)}; correct them")
    return weights


def _strata(column: str, columns: Columns, cases: Sequence[Case]) -> dict[str, str]:
    strata = columns.values("data.stratify", column, cases)
    if len(cases) > 1 and len(set(strata.values())) == len(cases):
        raise UserError(
            f"data.stratify={column}: has another value for each of {len(cases)} cases, so there is nothing to balance;"
            " name a column with few values"
        )
    return strata


def _text(value: object) -> str:
    """The text of a value of an entry; empty for a missing one, and for a list or an object."""
    return str(value).strip() if isinstance(value, str | int | float) else ""
