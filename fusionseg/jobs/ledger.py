"""What became of a run's jobs: one line of JSON for each event, in `jobs.jsonl` in the run's folder.

Whoever needs to know where a run stands asks this file, the run's records, and SLURM; nothing is remembered elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "jobs.jsonl"
_TAIL_BYTES = 1 << 16

Event = dict[str, Any]


def write_event(run: Path, event: str, **fields: Any) -> None:
    """Add an event: `submitted`, `started`, `refused`, `requeued`, `finished`, `stopped`, `failed`, `cancelled`."""
    run.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    with (run / FILE).open("a", encoding="utf-8") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # on NFS two hosts that append at the same time would overwrite each other
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_events(run: Path) -> list[Event]:
    """All events of a run, the oldest first; none if it was never submitted."""
    try:
        return list(_records((run / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def last_job(events: list[Event]) -> str | None:
    """The SLURM job to which a run was last submitted."""
    jobs = [event["job"] for event in events if event["event"] in ("submitted", "started")]
    return jobs[-1] if jobs and jobs[-1][0].isdigit() else None


def requeues_at(events: list[Event], job: str, reason: str, step: int | None) -> int:
    """How often in a row, at last, a job was queued again for this reason with the run at this step."""
    requeues = [event for event in events if event["event"] == "requeued" and event.get("job") == job]
    same = [event["reason"] == reason and event.get("step") == step for event in reversed(requeues)]
    return [*same, False].index(False)


def last_records(run: Path) -> dict[str, Event]:
    """The last record of each kind near the end of a run's metrics.jsonl, in the order in which they were written."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    found: dict[str, Event] = {}
    for record in _records(text):
        found.pop(record["kind"], None)
        found[record["kind"]] = record
    return found


def last_end(run: Path) -> Event | None:
    """The end record, if the run's last start came to an end that it could record."""
    return end_of(last_records(run))


def end_of(records: dict[str, Event]) -> Event | None:
    """The end record, if it is the last of what `last_records` gives."""
    return records["end"] if records and next(reversed(records)) == "end" else None


def has_finished(end: Event | None) -> bool:
    """Whether an end record, if there is one, says that there is nothing left to train."""
    return end is not None and end["status"] in ("completed", "plateau")


def is_being_trained(run: Path) -> bool:
    """Whether a process holds the run's folder, on a file system with locks."""
    try:
        with (run / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or no locks
        return False
    return False


def _records(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off: where the tail begins, or by a kill
        if isinstance(record, dict):
            yield record
