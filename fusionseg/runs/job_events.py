"""The events of a run's jobs, in `jobs.jsonl`: one JSON object a line.

This file, the run's records and SLURM together say where a run stands. Nothing is stored elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusionseg.runs.json_files import JsonObject, read_lines
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import open_no_link, writing

Event = JsonObject
_TEXTS = ("job", "log", "reason", "nodes")
_INTEGERS = ("steps", "step", "pid", "restarts", "exit_status")


class JobEvent(StrEnum):
    """The kind of an event."""

    SUBMITTED = "submitted"
    STARTED = "started"
    REFUSED = "refused"
    """The configuration or the data were wrong."""
    REQUEUED = "requeued"
    FINISHED = "finished"
    STOPPED = "stopped"
    """The job was told to end, and is not queued again."""
    FAILED = "failed"
    CANCELLED = "cancelled"


def write_event(run: Path, event: JobEvent, **fields: Any) -> None:
    """Append an event.

    Args:
        run: the run folder; it is made if it does not exist.
        event: the kind of the event.
        fields: further fields of the event, such as `job`, `step` or `reason`.

    Raises:
        UserError: an entry of the run folder that is no file has the file's name.
        WriteError: the file cannot be written.
    """
    path = RunPaths(run).jobs
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    make_events_file(run)
    with writing(path), open_no_link(path, "a") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # on NFS, two hosts that append at the same time overwrite each other
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def make_events_file(run: Path) -> None:
    """Make sure that events can be appended.

    Args:
        run: the run folder; it is made if it does not exist.

    Raises:
        UserError: an entry of the run folder that is no file has the file's name.
        OSError: the file cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = RunPaths(run).jobs
    if path.exists() and not path.is_file():  # opening a pipe would wait
        raise UserError(f"{path}: is no file, and the events of the run's jobs are written there: move it away")
    with writing(path):
        open_no_link(path, "a").close()


def read_events(run: Path) -> list[Event]:
    """Read all events of a run, the oldest first; none if the run was never submitted.

    Args:
        run: the run folder.
    """
    return read_lines(RunPaths(run).jobs, _is_event)


def last_job(events: Sequence[Event]) -> str | None:
    """The id of the SLURM job to which a run was last submitted; None if it is no SLURM job."""
    jobs: list[str] = [event["job"] for event in events if event["event"] in (JobEvent.SUBMITTED, JobEvent.STARTED)]
    return jobs[-1] if jobs and jobs[-1][0].isdigit() else None


def is_cancelled_after(events: Sequence[Event], job: str, kind: JobEvent) -> bool:
    """True if a job was cancelled after its last start or requeue, and that was an event of this kind.

    Args:
        events: the events of the run.
        job: the id of the SLURM job.
        kind: `STARTED` or `REQUEUED`.
    """
    kinds = (JobEvent.STARTED, JobEvent.REQUEUED, JobEvent.CANCELLED)
    own = [event["event"] for event in events if event.get("job") == job and event["event"] in kinds]
    before = [event for event in own if event != JobEvent.CANCELLED]
    return own[-1:] == [JobEvent.CANCELLED] and before[-1:] == [kind]


def count_last_requeues(events: Sequence[Event], job: str, reason: str, step: int | None) -> int:
    """Count the last requeues of a job that follow each other with the same reason at the same step.

    Args:
        job: the id of the SLURM job.
        reason: the reason of the requeue.
        step: the step that the run had reached.
    """
    requeues = [event for event in events if event["event"] == JobEvent.REQUEUED and event.get("job") == job]
    same = [event.get("reason") == reason and event.get("step") == step for event in reversed(requeues)]
    return [*same, False].index(False)


def _is_event(event: Event) -> bool:
    return (
        isinstance(event.get("event"), str)
        and event.get("job", "-") != ""
        and all(event.get(name) is None or isinstance(event[name], str) for name in _TEXTS)
        and all(event.get(name) is None or isinstance(event[name], int) for name in _INTEGERS)
        and (event["event"] not in (JobEvent.SUBMITTED, JobEvent.STARTED) or isinstance(event.get("job"), str))
    )
