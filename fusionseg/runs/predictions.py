"""The record of the predictions in a folder: `prediction.json`, beside the masks."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fusionseg.runs.environment import versions
from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

WRITTEN, KEPT, NO_MASK = "written", "kept", "failed"
"""The status of a case."""
RUNNING, COMPLETE, INCOMPLETE, STOPPED = "running", "completed", "cases failed", "stopped"
"""The status of a call. One that was killed stays `running`."""
_STEM, _FORMAT = "prediction", "fusionseg predictions"
_SHORTEST_PAUSE_S, _PAUSE = 1.0, 10


def record_path(folder: Path, index: int = 0, count: int = 1) -> Path:
    """The file of a record.

    Args:
        folder: of the masks.
        index: of the share of the cases that a process predicts, from 0.
        count: number of shares. Processes that predict at the same time have a file each.
    """
    return folder / (f"{_STEM}.json" if count == 1 else f"{_STEM}_{index + 1}_of_{count}.json")


def refuse_other_file(path: Path) -> None:
    """Refuse to replace a file that is no record of predictions.

    Args:
        path: of the record.

    Raises:
        UserError: there is such a file.
    """
    if os.path.lexists(path) and read_object(path).get("format") != _FORMAT:
        raise UserError(f"--output: {path}: is another file, and is not replaced; choose another folder, or move it")


@dataclass(frozen=True)
class Predictions:
    """The predictions in a folder, as their records say."""

    calls: tuple[JsonObject, ...] = ()
    """In the order of their start: versions, device, weights, options, status."""
    cases: Mapping[str, JsonObject] = field(default_factory=dict)
    """By name: images, mask, status, seconds. Of several entries, the last one in time."""


def read_predictions(folder: Path) -> Predictions:
    """Read the records of a folder: that of a single process, and those of the shares.

    Args:
        folder: of the masks.
    """
    calls: list[JsonObject] = []
    cases: dict[str, JsonObject] = {}
    for path in sorted(folder.glob(f"{_STEM}*.json")):
        content = read_object(path)
        if content.get("format") == _FORMAT:
            calls += content.get("calls", [])
            for name, entry in content.get("cases", {}).items():
                if name not in cases or str(entry.get("time")) >= str(cases[name].get("time")):
                    cases[name] = entry
    return Predictions(tuple(sorted(calls, key=lambda call: str(call.get("started")))), cases)


class PredictionRecord:
    """The record of one call, added to the earlier ones of its file. The file is always whole."""

    def __init__(self, path: Path, call: JsonObject) -> None:
        """Read the earlier calls. Nothing is written yet.

        Args:
            path: the file, see `record_path`.
            call: device, weights, options and inputs of the call.
        """
        earlier = read_object(path)
        self._path = path
        self._call: JsonObject = {
            "started": _now(),
            "ended": None,
            "status": RUNNING,
            **versions(),
            "host": socket.gethostname(),
            "command": sys.argv,
            **call,
        }
        self._calls = [*earlier.get("calls", []), self._call]
        self._cases: dict[str, JsonObject] = dict(earlier.get("cases", {}))
        self._earlier = read_predictions(path.parent).cases
        self._next_write = 0.0

    def add(self, case: str, status: str, entry: JsonObject) -> None:
        """Record a case. The file is written at once, except that many quick cases are written together.

        Args:
            case: its name.
            status: `WRITTEN`, `KEPT` or `NO_MASK`. The earlier entry of a mask that was kept stays. The entry of a
                case that failed has the earlier one as `earlier`: its mask is still there.
            entry: images, mask, shape, seconds.

        Raises:
            WriteError: the file cannot be written.
        """
        made = {"status": status, "call": self._call["started"], "time": _now(), **entry}
        known = self._earlier.get(case, {})
        known = known.get("earlier", known)
        if known.get("status") == WRITTEN:
            if status == NO_MASK:
                made["earlier"] = known
            elif status == KEPT and known.get("mask") == entry.get("mask"):
                made = dict(known)
        self._cases[case] = made
        if time.monotonic() >= self._next_write:
            self.write()

    def end(self, status: str) -> None:
        """Record the end of the call.

        Args:
            status: `COMPLETE`, `INCOMPLETE` or `STOPPED`.

        Raises:
            WriteError: the file cannot be written.
        """
        self._call |= {"ended": _now(), "status": status}
        self.write()

    def write(self) -> None:
        """Write the file.

        Raises:
            WriteError: the file cannot be written.
        """
        start = time.monotonic()
        write_json(self._path, {"format": _FORMAT, "calls": self._calls, "cases": self._cases})
        end = time.monotonic()
        self._next_write = end + max(_SHORTEST_PAUSE_S, _PAUSE * (end - start))


def _now() -> str:
    return datetime.now(UTC).isoformat()
