"""What became of a run's jobs: one line of JSON for each event, in `jobs.jsonl` in the run's folder.

Whoever needs to know where a run stands asks this file, the run's records, and SLURM; nothing is remembered elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionseg.runs import records
from fusionseg.runs.records import Record as Event
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writing

FILE = "jobs.jsonl"


def write_event(run: Path, event: str, **fields: Any) -> None:
    """Add an event: `submitted`, `started`, `refused`, `requeued`, `finished`, `stopped`, `failed`, `cancelled`."""
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    open_ledger(run)
    with writing(run / FILE), (run / FILE).open("a", encoding="utf-8") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # on NFS two hosts that append at the same time would overwrite each other
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def open_ledger(run: Path) -> None:
    """Make sure that events can be added.

    Raises:
        UserError: something else has the file's name.
        OSError: the file cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / FILE
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: is no file, and what becomes of the run's jobs is written there: move it away")
    path.open("a", encoding="utf-8").close()


def read_events(run: Path) -> list[Event]:
    """All events of a run, the oldest first; none if it was never submitted."""
    return records.read_events(run / FILE)


def last_job(events: list[Event]) -> str | None:
    """The SLURM job to which a run was last submitted."""
    jobs: list[str] = [event["job"] for event in events if event["event"] in ("submitted", "started")]
    return jobs[-1] if jobs and jobs[-1][0].isdigit() else None


def requeues_at(events: list[Event], job: str, reason: str, step: int | None) -> int:
    """How often in a row, at last, a job was queued again for this reason with the run at this step."""
    requeues = [event for event in events if event["event"] == "requeued" and event.get("job") == job]
    same = [event.get("reason") == reason and event.get("step") == step for event in reversed(requeues)]
    return [*same, False].index(False)


def last_records(run: Path) -> dict[str, Event]:
    """The last record of each kind near the end of a run's metrics.jsonl, in the order in which they were written."""
    return records.last_records(run / "metrics.jsonl")


def last_end(run: Path) -> Event | None:
    """The end record, if the run's last start came to an end that it could record."""
    return end_of(last_records(run))


def end_of(found: dict[str, Event]) -> Event | None:
    """The end record, if it is the last of what `last_records` gives."""
    return found["end"] if found and next(reversed(found)) == "end" else None


def has_finished(end: Event | None) -> bool:
    """Whether an end record, if there is one, says that there is nothing left to train."""
    return end is not None and end["status"] in ("completed", "plateau")
