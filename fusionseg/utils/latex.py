"""Tables in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2212": "$-$",
}
_BOLD, _ITALIC = re.compile(r"\*\*(.+)\*\*", re.DOTALL), re.compile(r"\*(.+)\*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d|-$")


def latex_text(text: str) -> str:
    """Escape the characters that have a meaning in LaTeX.

    Args:
        text: plain text.
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_table(rows: Sequence[Sequence[str]]) -> str:
    r"""Format rows of cells as a LaTeX tabular with the rules of the package booktabs.

    Columns of numbers are right-aligned.

    Args:
        rows: equally long; the first row is the header. `**text**` is bold and `*text*` italic, as in Markdown.
    """
    columns = list(zip(*rows[1:], strict=True)) if len(rows) > 1 else [()] * len(rows[0])
    alignment = "".join("r" if column and all(map(_is_number, column)) else "l" for column in columns)
    header, *body = (" & ".join(map(_cell, row)) + r" \\" for row in rows)
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", header, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def _is_number(cell: str) -> bool:
    return _NUMBER.match(cell.strip("*")) is not None


def _cell(text: str) -> str:
    if match := _BOLD.fullmatch(text):
        return rf"\textbf{{{latex_text(match[1])}}}"
    if match := _ITALIC.fullmatch(text):
        return rf"\textit{{{latex_text(match[1])}}}"
    return latex_text(text)
