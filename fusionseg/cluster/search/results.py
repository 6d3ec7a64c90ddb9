"""The table of a search, from its decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionseg.cluster.search.halving import decisions_file
from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.runs.records import RunStatus
from fusionseg.utils.tables import markdown_table


def search_table(folder: Path) -> str:
    """The table of a search, from its decisions: every run, its settings, the rung and the step that it reached.

    Args:
        folder: of the sweep.

    Returns:
        The table; an empty text if the folder holds no search with a decision.
    """
    rows = [["run", "sets", "rung", "step", "score", "search"]]
    found: list[tuple[Any, list[str]]] = []
    brackets = 0
    while stored := read_object(folder / decisions_file(brackets)):
        brackets += 1
        found += _bracket_rows(stored, len(found))
    return markdown_table([*rows, *(row for _, row in sorted(found))]) if found else ""


def _bracket_rows(stored: JsonObject, before: int) -> list[tuple[Any, list[str]]]:
    """The rows of a bracket with its decisions, each after its place among all rows; none before its first decision.

    Args:
        stored: the file of the bracket.
        before: number of the rows of earlier brackets.
    """
    rungs: Sequence[Any] = stored.get("rungs", ())
    found: list[tuple[Any, list[str]]] = []
    for order, (name, settings) in enumerate(stored["trials"].items() if rungs else (), before):
        number, rung = next((n, one) for n, one in reversed([*enumerate(rungs, 1)]) if name in one["scores"])
        score = rung["scores"][name]
        sign = -1 if stored["search"].get("mode", "max") == "max" else 1
        sets = ", ".join(f"{key}={value}" for key, value in settings.items())
        shown = "-" if score is None else f"{score:.4f}"
        what = _what(name, rung, is_last=rung["steps"] == stored["search"]["max_steps"])
        place = (-number, score is None, sign * (score or 0.0), order)
        found.append((place, [name, sets or "-", str(number), str(rung["steps"]), shown, what]))
    return found


def _what(name: str, rung: Mapping[str, Any], *, is_last: bool) -> str:
    if name in rung["failures"]:
        return f"failed: {rung['failures'][name]}"
    if is_last:
        return "trained to the end"
    return "goes on" if name in rung["promoted"] else str(RunStatus.STOPPED)
