"""The starts of a run, their ends and the changes of its configuration, in `history.jsonl`.

It has one JSON object a line, and no resume removes a line.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fusionseg.runs.json_files import JsonObject, append_line, read_lines
from fusionseg.runs.paths import RunPaths
from fusionseg.runs.records import RecordKind, RecordWriter, RunStatus, last_records
from fusionseg.utils.files import writing
from fusionseg.utils.machine import process_age_s

log = logging.getLogger("fusionseg")

_START, _END = "start", "end"
CHANGE_EXTENDED, CHANGE_BRANCHED = "extend", "branch"
"""Events after which a run has another configuration; see `Change`."""
_CHANGES = (CHANGE_EXTENDED, CHANGE_BRANCHED)
FAULT = "disk"
"""The event of a line about the disk, see `fusionseg.runs.accounts.faults`."""


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    began: datetime
    """Time at which the process began."""
    step: int
    """Steps that were done before."""
    ranks: int
    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    """Name of the device of each rank."""
    ended: datetime | None
    """Time of the end, or of the last record if no end is recorded; None if there is neither."""
    reached: int
    """Steps done at the end, or at the last record."""
    status: str | None
    """The status of its end record; None if it was killed, or still runs."""
    reason: str
    ready_s: float
    """Seconds from the beginning until the cases and the checkpoint were loaded."""

    @property
    def wall_s(self) -> float:
        """Seconds from the beginning to the end."""
        return 0.0 if self.ended is None else max(0.0, (self.ended - self.began).total_seconds())


@dataclass(frozen=True)
class Change:
    """A change of the configuration with which a run went on from a checkpoint."""

    time: datetime
    step: int
    """Steps that were done before."""
    changes: tuple[str, ...]
    """`key: before -> after` for each value that the results depend on."""
    before: JsonObject
    """The plain configuration before the change."""
    origin: Path | None
    """The checkpoint of another run from which this folder began; None for a change within the folder."""


def write_change(
    run: Path, event: str, step: int, changes: Sequence[str], before: JsonObject, origin: Path | None = None
) -> None:
    """Append the line of a change of the configuration, and wait for the disk: a later start relies on it.

    Args:
        run: the run folder.
        event: `CHANGE_EXTENDED` or `CHANGE_BRANCHED`.
        step, changes, before, origin: see `Change`.

    Raises:
        WriteError: the line cannot be written. The configuration must not be changed then.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line: JsonObject = {"event": event, "time": now, "step": step, "changes": list(changes)}
    if origin is not None:
        line["origin"] = str(origin)
    path = RunPaths(run).history
    with writing(path):
        append_line(path, json.dumps({**line, "config": before}) + "\n", sync=True)


def read_changes(run: Path) -> list[Change]:
    """Read the changes of the configuration of a run, the oldest first.

    Args:
        run: the run folder.
    """
    return [
        Change(
            time=_time(line["time"]),
            step=line["step"],
            changes=tuple(line["changes"]),
            before=line["config"],
            origin=Path(line["origin"]) if "origin" in line else None,
        )
        for line in read_lines(RunPaths(run).history, _is_valid)
        if line["event"] in _CHANGES
    ]


def write_start(run: Path, step: int, ranks: Sequence[JsonObject]) -> None:
    """Append the line of a start. Call it before the records after `step` are removed: the line keeps where they ended.

    Args:
        run: the run folder.
        step: steps that the checkpoint has done.
        ranks: host and device of each rank, as `environment.json` has them.
    """
    now = datetime.now(UTC)
    reached, reached_at = _last_progress(run)
    fields: JsonObject = {
        "began": (now - timedelta(seconds=process_age_s())).isoformat(timespec="milliseconds"),
        "step": step,
        "ranks": len(ranks),
        "hosts": sorted({str(rank["host"]) for rank in ranks}),
        "devices": [str(rank["name"]) for rank in ranks],
    }
    if reached_at is not None:  # of the start before, which may have been killed
        fields |= {"before": reached, "before_at": reached_at.isoformat(timespec="milliseconds")}
    _append(run, {"event": _START, "time": now.isoformat(timespec="milliseconds"), **fields})


def write_end(run: Path, step: int, status: str, reason: str) -> None:
    """Append the line of an end.

    Args:
        run: the run folder.
        step: steps done.
        status: see `RunStatus`.
        reason: of the status.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _append(run, {"event": _END, "time": now, "step": step, "status": status, "reason": reason})


def record_hang(run: Path, least_step: int, step: int, reason: str) -> None:
    """Record the end of a start in which the ranks hang. Any rank may call this, as rank 0 may be the one missed.

    Args:
        run: the run folder. Nothing is written if it does not exist yet.
        least_step: the step at which this start began.
        step: the steps done, as far as the ranks know them.
        reason: the message of the watchdog.

    Raises:
        TrainingStopped: the record cannot be written.
    """
    if run.is_dir():
        step = max(step, least_step)
        writer = RecordWriter(run)
        # The time tells two hangs at the same place apart.
        writer.write(RecordKind.END, step, status=RunStatus.HUNG, reason=reason, time=time.time())
        writer.sync()
        write_end(run, step, RunStatus.HUNG, reason)


def read_history(run: Path) -> list[Start]:
    """Read the starts of a run, the oldest first; none for a run of a version that did not record them.

    Args:
        run: the run folder.
    """
    starts: list[Start] = []
    begun: JsonObject | None = None
    end: JsonObject | None = None
    for line in read_lines(RunPaths(run).history, _is_valid):
        if line["event"] in (*_CHANGES, FAULT):
            continue
        if line["event"] == _END:
            end = end or line  # a second one is of a start that hung before it was written here
            continue
        if begun is not None:
            starts.append(
                _start(begun, end, line["before"] if "before" in line else line["step"], line.get("before_at"))
            )
        begun, end = line, None
    if begun is not None:
        reached, reached_at = _last_progress(run)
        starts.append(_start(begun, end, reached, None if reached_at is None else reached_at.isoformat()))
    return starts


def _start(begun: JsonObject, end: JsonObject | None, reached: int, reached_at: str | None) -> Start:
    ended = end["time"] if end is not None else reached_at
    began = _time(begun["began"])
    found = None if ended is None else _time(ended)
    return Start(
        began=began,
        step=begun["step"],
        ranks=begun["ranks"],
        hosts=tuple(begun["hosts"]),
        devices=tuple(begun["devices"]),
        # The last record may be older than the start: it was killed before it wrote one.
        ended=None if found is None or found < began else found,
        reached=max(begun["step"], end["step"] if end is not None else reached),
        status=None if end is None else end["status"],
        reason="" if end is None else end["reason"],
        ready_s=max(0.0, (_time(begun["time"]) - began).total_seconds()),
    )


def _last_progress(run: Path) -> tuple[int, datetime | None]:
    """The step of the last train record, and the time at which the records were written last."""
    path = RunPaths(run).metrics
    try:
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return 0, None
    return int(last_records(run).get(RecordKind.TRAIN, {}).get("step", 0)), written


def _append(run: Path, line: JsonObject) -> None:
    """Append a line. A full disk is no reason to end a training: the account is then incomplete."""
    try:
        append_line(RunPaths(run).history, json.dumps(line) + "\n")
    except OSError as error:
        log.warning("%s: cannot be written (%s): the account of the run lacks a line", error.filename, error.strerror)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _is_valid(line: JsonObject) -> bool:
    if line.get("event") == FAULT:
        return True
    texts, numbers = ["time", "status", "reason"], ["step"]
    if line.get("event") == _START:
        texts, numbers = ["time", "began"], ["step", "ranks"]
        if not all(isinstance(line.get(name), list) for name in ("hosts", "devices")):
            return False
        if not isinstance(line.get("before", 0), int):
            return False
    elif line.get("event") in _CHANGES:
        texts = ["time", *(["origin"] if line["event"] == CHANGE_BRANCHED else [])]
        changes = line.get("changes")
        if not isinstance(line.get("config"), dict) or not isinstance(changes, list):
            return False
        if not all(isinstance(each, str) for each in changes):
            return False
    elif line.get("event") != _END:
        return False
    return (
        all(isinstance(line.get(name), str) for name in texts)
        and all(isinstance(line.get(name), int) for name in numbers)
        and all(_is_time(line[name]) for name in ("time", "began", "before_at") if name in line)
    )


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False
