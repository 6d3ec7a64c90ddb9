"""State of the runs in a folder, from their files and from SLURM; and `fusionseg cancel`."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.cluster.slurm import call, is_active, job_states
from fusionseg.runs.cases.split_file import NO_VALIDATION, validates_none
from fusionseg.runs.job_events import Event, JobEvent, last_job, read_events, write_event
from fusionseg.runs.json_files import read_regular
from fusionseg.runs.paths import run_folders
from fusionseg.runs.records import Record, RecordKind, RunStatus, end_of, has_finished, last_records
from fusionseg.runs.run_config import configured_steps
from fusionseg.utils.errors import UserError
from fusionseg.utils.locks.folder_lock import is_held
from fusionseg.utils.tables import markdown_table

log = logging.getLogger("fusionseg")
_LOG_LINES = 5
# Lines that do not say why a run failed: progress, warnings, and the frames that torchrun draws.
_PROGRESS = re.compile(r"^(step \d+/|\[?W\d{4} |E\d{4} |submitit (INFO|WARNING)|-{5,}|={5,}|\s*$)")
_ERROR = re.compile(
    r"^(\[rank\d+\]: |rank \d+: )?"
    r"((error|stopped): |[\w.]*(Error|Exception|Interrupt)\b|(srun|slurmstepd)[\w-]*: error: )"
)
# A job that is requeued appends to its log. Each of its starts begins with a line that contains both texts.
_BEGIN = "submitit INFO"
_BEGIN_WORDS = "Starting with JobEnvironment"

SCORE = (
    "score: of the training's own validation, on the prepared (resampled, cropped) grid; the best if a run has ended"
)

# States of a job that has ended, in SLURM's words: the cause and the remedy.
_ENDS = {
    "OUT_OF_MEMORY": "it needed more host memory than it had: raise memory_gb_per_task, or lower data.workers",
    "TIMEOUT": "the time limit ended it before it had saved: raise signal_s, or time",
    "NODE_FAIL": "its node failed, and the job was not requeued (requeue)",
    "PREEMPTED": "it was preempted, and not requeued (requeue)",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
}

_CANCEL = "fusionseg cancel"
_SEE_LOG = "see its log"
_OF_LAUNCHERS = ("srun", "slurmstepd")


@dataclass(frozen=True)
class RunOverview:
    """State of one run."""

    path: Path
    job: str | None
    state: str
    """A state that docs/clusters.md lists; or the state of a job in SLURM's words (PENDING, RUNNING, ...), if the job
    waits or runs."""
    step: int | None
    steps: int | None
    validates: bool
    """False if the run trains on all cases and validates none (`data.fold: all`)."""
    score: float | None
    """The best score of a run that has ended; of other runs, the score of the last validation."""
    speed: float | None
    """Samples per second over all ranks."""
    starts: int
    nodes: str | None
    reason: str
    """The reason why the run ended or was requeued."""
    log: Path | None

    @property
    def has_failed(self) -> bool:
        return self.state in (JobEvent.FAILED, "lost")

    @property
    def is_active(self) -> bool:
        """True if the run waits or runs."""
        return self.state in ("running", "waiting") or (self.state.isupper() or is_active(self.state))


def read_status(folder: Path) -> tuple[list[RunOverview], str]:
    """Read the state of all runs in a folder.

    Args:
        folder: a folder of runs, or a run folder.

    Returns:
        The states, and a remark if SLURM did not answer (otherwise an empty text).

    Raises:
        UserError: the folder holds no run.
    """
    folders = run_folders([folder])
    events = {path: read_events(path) for path in folders}
    jobs = {path: job for path in folders if (job := last_job(events[path]))}
    # The events of a job that ended by itself say so. SLURM is asked about the other jobs.
    open_jobs = [
        job for path, job in jobs.items() if events[path][-1]["event"] not in (JobEvent.FINISHED, JobEvent.FAILED)
    ]
    states, remark = None, ""
    try:
        states = job_states(open_jobs)
    except UserError as error:
        remark = f"SLURM does not answer; the states are those on disk: {error}"
    return [_status(path, events[path], jobs.get(path), states) for path in folders], remark


def to_text(runs: list[RunOverview], remark: str = "") -> str:
    """Format the states as a table, followed by the reasons of the runs that failed.

    Args:
        runs: the states.
        remark: a line below the table.
    """
    rows = [["run", "job", "state", "step", "score", "samples/s", "starts", "node", "because"]]
    for run in runs:
        step = "-" if run.step is None else str(run.step)
        rows.append(
            [
                run.path.name,
                run.job or "-",
                run.state,
                f"{step}/{run.steps}" if run.steps is not None else step,
                ("-" if run.validates else "none") if run.score is None else f"{run.score:.4f}",
                "-" if run.speed is None else f"{run.speed:.2f}",
                str(run.starts),
                run.nodes or "-",
                run.reason,
            ]
        )
    parts = [markdown_table(rows), summary(runs), *([remark] if remark else [])]
    if any(run.score is not None for run in runs):
        parts.append(SCORE)
    if not all(run.validates for run in runs):
        parts.append(f"score none: {NO_VALIDATION}")
    for run in runs:
        for log in task_logs(run.log) if run.has_failed and run.log is not None else []:
            if lines := last_lines(log):
                parts.append(f"{run.path.name} ({log}):\n" + "\n".join(f"  {line}" for line in lines))
                break
    return "\n\n".join(parts)


def summary(runs: Iterable[RunOverview]) -> str:
    """Count the runs by their state: "3 finished, 1 failed"."""
    counts: dict[str, int] = {}
    for run in runs:
        word = run.state.split()[0]
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def cancel(folder: Path) -> list[str]:
    """Cancel all runs in a folder that wait or run.

    A waiting job is removed from the queue. A running one gets SIGTERM: it saves a checkpoint and ends, however long
    that takes. `scancel` alone would kill it after SLURM's KillWait, 30 s by default.

    Args:
        folder: a folder of runs, or a run folder.

    Returns:
        The IDs of the cancelled jobs; for a run on this machine, its name and process ID.

    Raises:
        UserError: the folder holds no run, or SLURM does not answer.
    """
    runs, remark = read_status(folder)
    if remark:
        raise UserError(remark)
    cancelled = []
    waiting = [run for run in runs if run.job is not None and run.state.startswith("PENDING")]
    if waiting:
        call(["scancel", *(run.job for run in waiting if run.job is not None)])
    running = [run for run in runs if run.job is not None and run.is_active and run not in waiting]
    if running:
        # The event comes before the signal: the job adds its own when it ends.
        for run in running:
            write_event(run.path, JobEvent.CANCELLED, job=run.job, reason=_CANCEL)
        call(["scancel", "--signal=TERM", *(run.job for run in running if run.job is not None)])
    for run in waiting:
        write_event(run.path, JobEvent.CANCELLED, job=run.job, reason=_CANCEL)
    cancelled += [run.job for run in waiting + running if run.job is not None]
    for run in runs:
        if run.job is None and run.state == "running" and (pid := _local_pid(run.path)):
            write_event(run.path, JobEvent.CANCELLED, job="local", reason=_CANCEL)
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
                cancelled.append(f"{run.path.name} (process {pid})")
    return cancelled


def task_logs(log: Path) -> list[Path]:
    """The logs of all tasks of a job, that of the first task first. Any of them may hold the error."""
    others = sorted(path for path in log.parent.glob(log.name.replace("_0_log.", "_*_log.")) if path != log)
    return [log, *others]


def last_lines(log: Path) -> list[str]:
    """The last error lines of a log, or its last lines that show no progress; none if it cannot be read."""
    try:
        text = read_regular(log, tail=True).decode("utf-8", errors="replace")
    except OSError:
        return []
    start = max((n for n, line in enumerate(text.splitlines()) if _BEGIN in line and _BEGIN_WORDS in line), default=0)
    lines = [line.rstrip() for line in text.splitlines()[start:] if not _PROGRESS.match(line)]
    errors = [line for line in lines if _ERROR.match(line)]
    return errors[-_LOG_LINES:] or lines[-_LOG_LINES:]


def _cause(log: Path) -> str:
    """The last error line in the logs of a job, if possible not one of srun; empty without any."""
    errors = [line for part in task_logs(log) for line in last_lines(part) if _ERROR.match(line)]
    own = [line for line in errors if not line.startswith(_OF_LAUNCHERS)]
    return (own or errors or [""])[-1]


def _status(path: Path, events: list[Event], job: str | None, states: dict[str, str] | None) -> RunOverview:
    submitted = [event for event in events if event["event"] == JobEvent.SUBMITTED]
    records = last_records(path)
    state, reason = _state(path, events, records, job, states)
    steps = submitted[-1].get("steps") if submitted else configured_steps(path)
    started = [event for event in events if event["event"] == JobEvent.STARTED]
    val, end, train = (records.get(kind, {}) for kind in (RecordKind.VAL, RecordKind.END, RecordKind.TRAIN))
    log = Path(submitted[-1]["log"]) if submitted and submitted[-1].get("log") else None
    if reason.endswith(_SEE_LOG) and log is not None and (cause := _cause(log)):
        reason = f"{reason.removesuffix(_SEE_LOG)}{cause}"
    score = next((end[key] for key in end if key.startswith("best_")), val.get("dice", val.get("ssim")))
    return RunOverview(
        path=path,
        job=job,
        state=state,
        step=max((record["step"] for record in records.values()), default=None),
        steps=steps,
        validates=not validates_none(path),
        score=score,
        speed=train.get("samples_per_s"),
        starts=len(started) or int(bool(records)),
        nodes=started[-1].get("nodes") if started else None,
        reason=reason,
        log=log,
    )


def _state(
    path: Path, events: list[Event], records: dict[str, Record], job: str | None, states: dict[str, str] | None
) -> tuple[str, str]:
    """State of a run, and the reason.

    The run's files say how the run ended. SLURM says whether its job waits or runs.

    Args:
        path: the run folder.
        events: the events of the run, the oldest first.
        records: the last record of each kind.
        job: the run's job in SLURM; None if it has none.
        states: the state of each job; None if SLURM does not answer.
    """
    end = end_of(records)
    if end is not None and has_finished(end["status"]):
        return JobEvent.FINISHED, end["reason"]
    explained: Any = next((event for event in reversed(events) if "reason" in event), {})
    known = (states or {}).get(job, "") if job is not None else ""
    if known and is_active(known):
        return known, explained.get("reason", "")
    if is_held(path):
        return "running", explained.get("reason", "")
    if not events:
        return (
            (end["status"], end["reason"]) if end else (RunStatus.UNFINISHED, "runs on another machine, or was killed")
        )
    last = events[-1]
    if last["event"] == JobEvent.STOPPED and _was_cancelled(events):
        by_command = any(event.get("reason") == _CANCEL for event in events)
        return JobEvent.CANCELLED, _CANCEL if by_command else last.get("reason", "")
    if last["event"] in (JobEvent.FAILED, JobEvent.STOPPED, JobEvent.CANCELLED):
        return last["event"], last.get("reason", "")
    if end is not None and end["status"] in (RunStatus.FAILED, RunStatus.HUNG):
        return JobEvent.FAILED, end["reason"]
    if last["event"] == JobEvent.SUBMITTED and job is None:
        return "waiting", ""
    if job is not None and states is None:
        return "unknown", f"job {job}: {last['event']}"
    if known.startswith("CANCELLED"):
        return JobEvent.CANCELLED, "scancel"
    if known in _ENDS:
        return JobEvent.FAILED, f"{known}: {_ENDS[known]}"
    what = f"job {job} ({known or 'not in the queue'})" if job else "it"
    return "lost", f"{what} ended without a record: see its log"


def _was_cancelled(events: list[Event]) -> bool:
    """Tell whether `fusionseg cancel`, or scancel, ended the last start."""
    if events[-1].get("reason") == "cancelled":
        return True
    since = max((n for n, event in enumerate(events) if event["event"] == JobEvent.SUBMITTED), default=0)
    return any(event["event"] == JobEvent.CANCELLED for event in events[since:])


def _local_pid(path: Path) -> int | None:
    """The process of a run that was started on this machine; None if there is none, or it has ended."""
    started = [event for event in read_events(path) if event["event"] == JobEvent.STARTED]
    if not started or started[-1].get("nodes") != os.uname().nodename:
        return None
    pid = started[-1].get("pid") or 0
    # The process ID may belong to another program by now. A signal to -1 would go to all processes of this user.
    return pid if pid > 1 and _trains(pid, path) else None


def _trains(pid: int, run: Path) -> bool:
    """Tell whether a process is one that a sweep on this machine started for the run."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(os.fsdecode(word)).name == run.absolute().name for word in words if word)
