"""Queries to SLURM: states of jobs, reasons of signals, and calls of its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fusionseg.utils.errors import UserError
from fusionseg.utils.logs import log

_COMMAND_TIMEOUT_S = 60
TIME_LIMIT = "time limit"
"""The reason of a signal that SLURM sent because the time limit of the job is near."""


def folder_problems(folder: Path) -> list[str]:
    """List the problems with the name of a folder that is to hold the logs of jobs.

    SLURM and submitit replace %j and %a in the path of a log by IDs. After a backslash SLURM does not replace them.
    A batch script has one option per line, so that a path cannot hold a line break.

    Args:
        folder: the folder of the logs.
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
    """The ID of this process's job, as squeue shows it: 12, or 12_3 in an array; "local" without SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "local")


def why_signalled(name: str) -> tuple[bool, str]:
    """Decide from SLURM's record whether the job of this process is to be requeued after a signal.

    A cancelled job is not requeued. SIGUSR2 is the signal that the job asked SLURM for. A preemption sends SIGTERM, on
    some clusters nothing else; SLURM does not requeue a job that ends within its grace time, so the job must do it.

    Args:
        name: name of the signal, such as "SIGUSR2".

    Returns:
        Whether to requeue, and the reason of the signal.
    """
    try:
        shown = call(["scontrol", "--oneliner", "show", "job", current_job()])
    except UserError:  # for example in a container, which has no scontrol
        return name == "SIGUSR2", name
    fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    if fields.get("JobState") == "CANCELLED":
        return False, "cancelled"
    if fields.get("PreemptTime", "None") not in ("None", "Unknown"):
        return True, "preempted"
    if name == "SIGUSR2" and fields.get("JobState") == "COMPLETING":
        return False, "cancelled"  # the job was cancelled after it got the signal
    if name == "SIGUSR2":
        return True, TIME_LIMIT if _nearly_over(fields) else name
    return False, name


def job_states(jobs: Iterable[str]) -> dict[str, str]:
    """The state of each job in SLURM's words: PENDING, RUNNING, ...

    Args:
        jobs: job IDs, such as "12" or "12_3".

    Returns:
        The states by job ID. Jobs that SLURM does not remember are missing.

    Raises:
        UserError: SLURM does not answer.
    """
    wanted = {job for job in jobs if job[0].isdigit()}
    if not wanted:
        return {}
    states: dict[str, str] = {}
    # List all jobs of this user. With a list of IDs, squeue would fail if SLURM has forgotten one of them.
    for line in call(["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i %T %r"]).splitlines():
        job, state, reason = line.split(maxsplit=2)
        if job in wanted:
            states[job] = f"{state} ({reason})" if state == "PENDING" and reason not in ("None", "Priority") else state
    if gone := wanted - states.keys():
        try:
            accounted = call(["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State",
                              f"--jobs={','.join(sorted(gone))}"])  # fmt: skip
        except UserError:  # this cluster has no accounting
            return states
        for line in accounted.splitlines():
            listed, state = line.split("|")
            states |= {job: state.split()[0] for job in expand_job(listed) if job in gone}  # "CANCELLED by 1000"
    return states


def expand_job(text: str) -> list[str]:
    """List the jobs of an entry of sacct: "12", "12_3" or, for tasks that never started, "12_[3-5,8%2]"."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", text)
    if match is None:
        return [text]
    jobs = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        jobs += [f"{match[1]}_{task}" for task in range(int(first), int(last or first) + 1)]
    return jobs


def is_active(state: str) -> bool:
    """Tell whether a job in this state (SLURM's word) runs or will run."""
    return state.split()[0] in (
        "PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
        "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
    )  # fmt: skip


def call(command: list[str], text: str | None = None) -> str:
    """Run a SLURM command and return its output.

    Args:
        command: the words of the command.
        text: its standard input.

    Raises:
        UserError: the command is not installed, does not answer within a minute, or fails.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]}: not found: SLURM is not installed here; submit from a login node, or with a profile that"
            " has cluster: local"
        )
    log.debug("running %s", " ".join(command))
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{' '.join(command)}: no answer within {_COMMAND_TIMEOUT_S} s: check that slurmctld is running"
        ) from None
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _nearly_over(fields: dict[str, str]) -> bool:
    """Tell whether less than a tenth of the time limit, or less than five minutes, is left."""
    limit, used = seconds(fields.get("TimeLimit", "")), seconds(fields.get("RunTime", ""))
    return limit is not None and used is not None and limit - used < max(300.0, limit / 10)


def seconds(text: str) -> int | None:
    """Convert SLURM's [days-]hours:minutes:seconds to seconds; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
