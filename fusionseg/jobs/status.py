"""Where the runs of a folder stand, from what is on disk and what SLURM says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.errors import UserError
from fusionseg.inference.table import markdown_table
from fusionseg.jobs.ledger import Event, last_job, last_records, read_events, write_event
from fusionseg.jobs.slurm import call, is_active, job_states

_LOG_LINES = 5
_LOG_TAIL_BYTES = 1 << 15
# A line of progress bars and records is not why a run failed.
_PROGRESS = re.compile(r"^(step \d+/|\[rank\d+\]:\[W|W\d{4} |E\d{4} |submitit (INFO|WARNING)|-{5,}|={5,}|\s*$)")


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    path: Path
    job: str | None
    state: str
    """finished, failed, stopped, cancelled, running, waiting, or what SLURM says of its job."""
    step: int | None
    steps: int | None
    best: float | None
    speed: float | None
    """Samples a second."""
    starts: int
    nodes: str | None
    reason: str
    """Why it ended, or was queued again."""
    log: Path | None

    @property
    def has_failed(self) -> bool:
        return self.state.startswith(("failed", "lost"))


def read_status(folder: Path) -> list[RunStatus]:
    """All runs in a folder, or the one that the folder is.

    Raises:
        UserError: there is none, or SLURM does not answer.
    """
    folders = run_folders(folder)
    events = {path: read_events(path) for path in folders}
    jobs = {path: job for path in folders if (job := last_job(events[path]))}
    # SLURM is asked about jobs that have not said that they have ended.
    open_jobs = [job for path, job in jobs.items() if events[path][-1]["event"] not in ("finished", "failed")]
    states = job_states(open_jobs)
    return [_status(path, events[path], jobs.get(path), states) for path in folders]


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it.

    Raises:
        UserError: there is none.
    """
    if (folder / "config.yaml").is_file():
        return [folder]
    found = sorted(file.parent for file in folder.glob("*/config.yaml"))
    if not found:
        raise UserError(f"{folder}: is neither a run folder (it has no config.yaml) nor a folder of such")
    return found


def to_text(runs: list[RunStatus]) -> str:
    """The table, and below it why runs have failed."""
    rows = [["run", "job", "state", "step", "best", "samples/s", "starts", "node", "because"]]
    for run in runs:
        step = "-" if run.step is None else str(run.step)
        rows.append(
            [
                run.path.name,
                run.job or "-",
                run.state,
                f"{step}/{run.steps}" if run.steps is not None else step,
                "-" if run.best is None else f"{run.best:.4f}",
                "-" if run.speed is None else f"{run.speed:.2f}",
                str(run.starts),
                run.nodes or "-",
                run.reason,
            ]
        )
    parts = [markdown_table(rows), summary(runs)]
    for run in runs:
        if run.has_failed and run.log is not None and (lines := last_lines(run.log)):
            parts.append(f"{run.path.name} ({run.log}):\n" + "\n".join(f"  {line}" for line in lines))
    return "\n\n".join(parts)


def summary(runs: Iterable[RunStatus]) -> str:
    """How many runs are in which state."""
    counts: dict[str, int] = {}
    for run in runs:
        word = run.state.split()[0]
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def cancel(folder: Path) -> list[str]:
    """End the jobs of all runs in a folder that wait or run; their numbers. The runs save what they have.

    Raises:
        UserError: there is no run, or SLURM does not answer.
    """
    active = [run for run in read_status(folder) if run.job is not None and is_active(run.state)]
    jobs = [run.job for run in active if run.job is not None]
    if jobs:
        for run in active:
            write_event(run.path, "cancelled", job=run.job)
        call(["scancel", *jobs])
    return jobs


def last_lines(log: Path) -> list[str]:
    """The end of a log that says why: its last lines that are no progress."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in text.splitlines() if not _PROGRESS.match(line)]
    errors = [line for line in lines if re.match(r"^(rank \d+: )?(error|stopped): |^\w*(Error|Exception)\b", line)]
    return errors[-_LOG_LINES:] or lines[-_LOG_LINES:]


def _status(path: Path, events: list[Event], job: str | None, states: dict[str, str]) -> RunStatus:
    submitted = [event for event in events if event["event"] == "submitted"]
    records = last_records(path)
    state, reason = _state(events, records, job, states)
    steps = submitted[-1]["steps"] if submitted else _configured_steps(path)
    started = [event for event in events if event["event"] == "started"]
    val, end, train = (records.get(kind, {}) for kind in ("val", "end", "train"))
    best = next((end[key] for key in end if key.startswith("best_")), val.get("dice", val.get("ssim")))
    return RunStatus(
        path=path,
        job=job,
        state=state,
        step=max((record["step"] for record in records.values()), default=None),
        steps=steps,
        best=best,
        speed=train.get("samples_per_s"),
        starts=len(started) or int(bool(records)),
        nodes=started[-1].get("nodes") if started else None,
        reason=reason,
        log=Path(submitted[-1]["log"]) if submitted else None,
    )


def _state(events: list[Event], records: dict[str, Event], job: str | None, states: dict[str, str]) -> tuple[str, str]:
    """State and reason. The disk knows better than SLURM how a run ended, SLURM better whether its job is alive."""
    end = records["end"] if records and next(reversed(records)) == "end" else None
    if end is not None and end["status"] in ("completed", "plateau"):
        return "finished", end["reason"]
    told: Any = next((event for event in reversed(events) if "reason" in event), {})
    known = states.get(job, "") if job is not None else ""
    if known and is_active(known):
        return known, told.get("reason", "")
    if not events:
        return (end["status"], end["reason"]) if end else ("unfinished", "running, or killed without a word")
    last = events[-1]["event"]
    if last == "failed":
        return "failed", events[-1]["reason"]
    if last in ("stopped", "cancelled"):
        return last, events[-1].get("reason", "")
    if job is None:
        return "running", ""
    if end is not None and end["status"] == "failed":
        return "failed", end["reason"]
    return f"lost ({known or 'not in the queue'})", "the job ended without a word: see its log"


def _configured_steps(path: Path) -> int | None:
    from fusionseg.engine.run_folder import load_run_config

    return load_run_config(path).train.steps
