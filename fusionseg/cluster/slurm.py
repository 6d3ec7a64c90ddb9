"""The few things that are asked of SLURM directly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fusionseg.utils.errors import UserError

_COMMAND_TIMEOUT_S = 60
TIME_LIMIT = "time limit"
"""The reason of a job that SLURM told to leave because its time is nearly over."""


def folder_problems(folder: Path) -> list[str]:
    """Describe the problem that keeps a folder from receiving the logs of jobs.

    SLURM and submitit put numbers in the place of %j and %a in the names of logs, the folder's included, and SLURM
    gives that up after a backslash; a batch script holds one option a line.
    """
    wrong = [shown for letter, shown in (("%", "%"), ("\\", "a backslash")) if letter in str(folder)]
    wrong += ["a control character"] if not str(folder).isprintable() else []
    if not wrong:
        return []
    return [
        f"output: {str(folder)!r} holds {' and '.join(wrong)}, and SLURM would write the jobs' logs elsewhere: choose"
        " another output"
    ]


def current_job() -> str:
    """The number of the job that this process is in, as squeue shows it: 12, or 12_3 in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "local")


def why_signalled(name: str) -> tuple[bool, str]:
    """Whether the job of this process is to be queued again after a signal, and why it was sent: what SLURM has on
    record.

    A job that is cancelled is not. SIGUSR2 is what the job asked SLURM for; SIGTERM comes with a preemption too, where
    SLURM sends nothing else, and then a job that ends within its grace time is gone for good unless it is queued again.

    Args:
        name: of the signal.
    """
    try:
        shown = call(["scontrol", "--oneliner", "show", "job", current_job()])
    except UserError:  # in a container, say
        return name == "SIGUSR2", name
    fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    if fields.get("JobState") == "CANCELLED":
        return False, "cancelled"
    if fields.get("PreemptTime", "None") not in ("None", "Unknown"):
        return True, "preempted"
    if name == "SIGUSR2" and fields.get("JobState") == "COMPLETING":
        return False, "cancelled"  # after the signal
    if name == "SIGUSR2":
        return True, TIME_LIMIT if _nearly_over(fields) else name
    return False, name


def job_states(jobs: Iterable[str]) -> dict[str, str]:
    """State of each job: PENDING, RUNNING, ...; of one that has ended as long as SLURM remembers it.

    Raises:
        UserError: SLURM cannot be asked.
    """
    wanted = {job for job in jobs if job[0].isdigit()}
    if not wanted:
        return {}
    states: dict[str, str] = {}
    # All of this user's: in a list of numbers, one that is long gone would be an error.
    for line in call(["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i %T %r"]).splitlines():
        job, state, reason = line.split(maxsplit=2)
        if job in wanted:
            states[job] = f"{state} ({reason})" if state == "PENDING" and reason not in ("None", "Priority") else state
    if gone := wanted - states.keys():
        try:
            accounted = call(["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State",
                              f"--jobs={','.join(sorted(gone))}"])  # fmt: skip
        except UserError:  # there is no accounting here
            return states
        for line in accounted.splitlines():
            listed, state = line.split("|")
            states |= {job: state.split()[0] for job in expand_job(listed) if job in gone}  # "CANCELLED by 1000"
    return states


def expand_job(text: str) -> list[str]:
    """The jobs of "12", "12_3" or, for tasks that never started, "12_[3-5,8%2]"."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", text)
    if match is None:
        return [text]
    jobs = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        jobs += [f"{match[1]}_{task}" for task in range(int(first), int(last or first) + 1)]
    return jobs


def is_active(state: str) -> bool:
    """Whether a job in this state runs or will run."""
    return state.split()[0] in (
        "PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
        "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
    )  # fmt: skip


def call(command: list[str], text: str | None = None) -> str:
    """Output of a SLURM command.

    Raises:
        UserError: it is not installed, does not answer, or refuses.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]}: not found, so there is no SLURM here: submit from a login node, or with a profile that has"
            " cluster: local"
        )
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)}: no answer within {_COMMAND_TIMEOUT_S} s: is slurmctld up?") from None
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _nearly_over(fields: dict[str, str]) -> bool:
    """Whether less than a tenth of the time limit, or less than five minutes, is left."""
    limit, used = seconds(fields.get("TimeLimit", "")), seconds(fields.get("RunTime", ""))
    return limit is not None and used is not None and limit - used < max(300.0, limit / 10)


def seconds(text: str) -> int | None:
    """SLURM's [days-]hours:minutes:seconds; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
