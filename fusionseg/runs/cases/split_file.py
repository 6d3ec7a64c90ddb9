"""Plain facts of split.json, without the libraries that its full reader needs: `status` and early checks start fast."""

from __future__ import annotations

from pathlib import Path

from fusionseg.config.data.splits import ALL
from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.runs.paths import RunPaths

NO_VALIDATION = "trained on all cases; no validation"
"""The words of tables and messages for a run with `data.fold: all`."""


def plain_split(run: Path) -> JsonObject:
    """Read split.json of a run folder as plain values, unchecked; empty if it is missing or damaged."""
    return read_object(RunPaths(run).split)


def validates_none(run: Path) -> bool:
    """Tell whether a run trains on all cases and validates none (`data.fold: all`), by its split.json.

    Args:
        run: the run folder.
    """
    return plain_split(run).get("fold") == ALL
