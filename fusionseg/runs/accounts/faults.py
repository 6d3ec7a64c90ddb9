"""Times in which the disk took no checkpoint or record, as lines of `history.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionseg.runs.accounts.history import FAULT, Start
from fusionseg.runs.disk.failures import Fault
from fusionseg.runs.json_files import JsonObject, append_line, is_number, read_lines
from fusionseg.runs.paths import RunPaths

_TEXTS = ("path", "what", "reason")


class FaultLog:
    """The writer of the faults of a run. A line that the disk refuses too is written with the next one.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = RunPaths(run).history
        self._unwritten: list[str] = []

    def __call__(self, fault: Fault) -> None:
        """Append a line at the beginning of a fault, and another one at its end."""
        fields = {name: getattr(fault, name) for name in (*_TEXTS, "began", "ended")}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._unwritten.append(json.dumps({"event": FAULT, "time": now, **fields}) + "\n")
        try:
            append_line(self._path, "".join(self._unwritten))
        except OSError:  # the caller has warned of the fault
            return
        self._unwritten.clear()


def read_faults(run: Path) -> list[Fault]:
    """Read the faults of a run, the oldest first.

    Args:
        run: the run folder.
    """
    found: dict[tuple[str, float], Fault] = {}
    for line in read_lines(RunPaths(run).history, lambda line: True):
        if line.get("event") == FAULT and _is_fault(line):
            fault = Fault(**{name: line[name] for name in (*_TEXTS, "began", "ended")})
            found[fault.path, fault.began] = fault  # the line of the end comes later
    return list(found.values())


def describe_fault(fault: Fault, starts: Sequence[Start]) -> str:
    """Describe a fault in one line.

    Args:
        fault: of the run.
        starts: of the run.
    """
    at = datetime.fromtimestamp(fault.began).strftime("%Y-%m-%d %H:%M:%S")
    if fault.ended is not None:
        times = f"{at}, {fault.ended - fault.began:.0f} s long: {fault.what} could not be written"
    elif any(start.began.timestamp() > fault.began for start in starts):
        times = f"{at}, to the end of that start: {fault.what} could not be written"
    else:
        times = f"since {at}: {fault.what} could not be written"
    return f"disk, {times} to {fault.path} ({fault.reason})"


def _is_fault(line: JsonObject) -> bool:
    def is_time(value: Any) -> bool:
        return value is None or is_number(value)

    texts = all(isinstance(line.get(name), str) for name in _TEXTS)
    return texts and is_number(line.get("began")) and is_time(line.get("ended"))
