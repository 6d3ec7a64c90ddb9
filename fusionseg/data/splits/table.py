"""A table of the cases of a data set, `data.table`: a column with their names, and columns about them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass

from fusionseg.data.splits.named_file import NamedFile
from fusionseg.utils.errors import UserError, some_of

CASE = "case"
"""The column with the names of the cases."""


@dataclass(frozen=True)
class CaseTable:
    """The content of a table.

    Args:
        file: that was read.
        columns: names of the columns other than `CASE`.
        rows: the values of a case by column, by the name of the case; "" for an empty cell.
    """

    file: NamedFile
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def read_table(file: NamedFile) -> CaseTable:
    """Read a table with a header: comma-separated (CSV), tab-separated (TSV), or with semicolons.

    Args:
        file: the file.

    Raises:
        UserError: with all problems of the file.
    """
    header = file.text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    reader = csv.reader(io.StringIO(file.text), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:  # a quotation mark that is not closed
        raise UserError(f"{file.key}: line {reader.line_num}: {error}; correct it") from None
    names = lines.pop(0)[1] if lines else []
    if CASE not in names:
        raise UserError(
            f"{file.key}: has no column {CASE!r} with the names of the cases (its columns are"
            f" {', '.join(names) or 'none'}); rename the column that has them"
        )
    problems = [
        f"{file.key}: {count} columns are named {name!r}; keep one of them"
        for name, count in Counter(names).items()
        if count > 1
    ]
    problems += [
        f"{file.key}: line {number} has {len(cells)} cells (expected {len(names)}); correct it"
        for number, cells in lines
        if len(cells) != len(names)
    ]
    if problems:
        raise UserError(problems)
    rows = [dict(zip(names, cells, strict=True)) for _, cells in lines]
    if twice := [name for name, count in Counter(row[CASE] for row in rows).items() if count > 1]:
        raise UserError(f"{file.key}: has several rows for {some_of(twice)}; keep one row for each case")
    return CaseTable(file, tuple(name for name in names if name != CASE), {row[CASE]: row for row in rows})
