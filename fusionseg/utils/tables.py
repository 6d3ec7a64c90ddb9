"""Tables in Markdown, and numbers and names in texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isnan

_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
"""Characters that a terminal obeys, and those that turn the direction of a text; without tab and the end of a line."""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as a Markdown table with aligned columns.

    Args:
        rows: equally long; the first row is the header. Control characters, of the name of a case for example, are
            replaced by their numbers.
    """
    rows = [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Replace control characters, but for tab and the end of a line, by their numbers: names in files of others may
    hold commands to the terminal.

    Args:
        text: a message.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def gigabytes(size: float) -> str:
    """Format a number of bytes in gigabytes with three digits: 2.56 GB."""
    return f"{size / 1e9:.3g} GB"


def plain_number(value: float) -> str:
    """Format a measurement with three or more digits, without an exponent where people expect none: 0.00123, 84200.

    Args:
        value: the measurement.
    """
    # 999.5 has four digits with three digits of precision, for which the format g takes an exponent.
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e7 else f"{value:.3g}"


def fixed_number(value: float, digits: int, *, signed: bool = False) -> str:
    """Format a value of a table with a fixed number of decimal places; "-" for nan.

    Args:
        value: the value.
        digits: decimal places.
        signed: with a plus sign.
    """
    return "-" if isnan(value) else f"{value:{'+' if signed else ''}.{digits}f}"


def counted(count: int, name: str) -> str:
    """A number with its noun: 1 case, 2 cases.

    Args:
        count: the number.
        name: the noun in the singular. Its plural has an s.
    """
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
