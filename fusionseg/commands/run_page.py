"""The page of one run on the screen: where it stands, where its time went, its starts, and what to do next."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from fusionseg.observability.progress import duration
from fusionseg.runs.accounts.account import Account, read_account
from fusionseg.runs.accounts.faults import describe_fault, read_faults
from fusionseg.runs.accounts.findings import Trouble, find_troubles
from fusionseg.runs.accounts.history import Change, Start
from fusionseg.runs.environment import read_environment
from fusionseg.runs.paths import EVALUATION
from fusionseg.runs.records import RunStatus, has_finished
from fusionseg.utils.tables import counted, markdown_table

_SHOWN_STARTS = 8
_SHOWN_FAULTS = 4


def account_text(run: Path, *, is_running: bool) -> str:
    """Format the account of a run.

    Args:
        run: the run folder.
        is_running: a process trains in the folder now.
    """
    account = read_account(run)
    parts = [_times(account)]
    if account.starts:
        parts.append(_starts(account.starts, is_running=is_running))
    parts += [_change(change) for change in account.changes]
    parts.append("\n".join(describe_fault(fault, account.starts) for fault in read_faults(run)[-_SHOWN_FAULTS:]))
    if troubles := find_troubles(run, account):
        count = counted(len(troubles), "known trouble")
        parts.append(f"{count}: fusionseg doctor {shlex.quote(str(run))}")
    parts.append("next: " + _next(run, account, is_running=is_running))
    return "\n\n".join(part for part in parts if part)


def troubles_text(troubles: list[Trouble]) -> str:
    """Format troubles, each with its remedy in a line below it."""
    return "\n".join(f"{trouble.what}\n  -> {trouble.remedy}" for trouble in troubles)


def _times(account: Account) -> str:
    if account.wall_s <= 0:
        return ""
    lines = [f"time: {duration(account.wall_s)} in {counted(max(1, len(account.starts)), 'start')}"]
    shares = [
        ("training steps", account.trained_s),
        ("validations", account.validated_s),
        (f"{counted(account.repeated_steps, 'step')} trained twice", account.repeated_s),
        ("starts, cache, checkpoints, log and the rest", account.other_s),
    ]
    lines += [f"  {seconds / account.wall_s:6.1%}  {name}" for name, seconds in shares if seconds > 0]
    if account.goodput is not None:
        lines.append(f"goodput: {account.goodput:.1%} of the time trained the steps that the run has")
    if account.phases_s:
        total = sum(account.phases_s.values())
        named = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in account.phases_s.items() if total > 0)
        lines.append(f"by phase: {named}")
    return "\n".join(lines)


def _starts(starts: list[Start], *, is_running: bool) -> str:
    rows = [["began", "steps", "time", "ranks", "host", "outcome", "because"]]
    shown = list(enumerate(starts, start=1))[-_SHOWN_STARTS:]
    for number, start in shown:
        runs_now = is_running and number == len(starts)
        end = start.status or ("running" if runs_now else "killed")
        rows.append(
            [
                _local(start.began),
                f"{start.step} to {start.reached}",
                duration(start.wall_s),
                str(start.ranks),
                ", ".join(start.hosts[:3]) + (" ..." if len(start.hosts) > 3 else ""),
                end,
                start.reason,
            ]
        )
    left = f"(the last {_SHOWN_STARTS} of {len(starts)} starts)\n" if len(starts) > _SHOWN_STARTS else ""
    return left + markdown_table(rows)


def _change(change: Change) -> str:
    """The lines about a change of the configuration."""
    what = "extended" if change.origin is None else f"branch of {change.origin}"
    lines = [f"{what}, {_local(change.time)}, from step {change.step}", *(f"  {line}" for line in change.changes)]
    return "\n".join(lines)


def _next(run: Path, account: Account, *, is_running: bool) -> str:
    """The command that a user of the run needs next."""
    folder = shlex.quote(str(run))
    if is_running:
        return f"fusionseg status {folder} --watch"
    end = account.end
    if end is not None and has_finished(end["status"]):
        if not any(run.glob(f"{EVALUATION}*")):
            return f"fusionseg evaluate {folder}"
        return f"fusionseg report {folder}"
    if end is not None and end["status"] == RunStatus.FAILED:
        return f"fusionseg doctor {folder}"
    command = read_environment(run).get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    if program := _program(words[0]) if words else None:
        again = shlex.join([*program, *words[1:]])
        return f"{again}, or your torchrun, srun or submit command: the run continues at its newest checkpoint"
    return "start the run again with the same command: it continues at its newest checkpoint"


def _program(script: str) -> list[str] | None:
    """The words that start the program of a recorded command; None for a program of somebody else."""
    path = Path(script)
    if path.parent.name == "fusionseg" and path.name in ("train.py", "pretrain.py"):
        return ["python", "-m", f"fusionseg.{path.stem}"]
    return ["fusionseg"] if path.name == "fusionseg" or path.parts[-2:] == ("fusionseg", "__main__.py") else None


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
