"""Warnings before a submission: a time limit hardly longer than a start, a signal too late for a save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.sweep import MAX_NAMED, SweepRun
from fusionseg.runs.accounts.account import read_account
from fusionseg.runs.records import RecordKind
from fusionseg.utils.errors import some_of

LEAST_START_S = 60.0
"""Time of a start without a measurement: imports from a network disk, cases into the cache."""
EARLY_S = 60
"""Seconds by which SLURM may send the signal before the time that was asked for."""
SHARE = 0.5
"""A start and the steps to the first checkpoint should take at most this share of the time before the signal."""
_STARTS = 5


@dataclass(frozen=True)
class _Measured:
    """Times of earlier starts in seconds; 0 for what is not known."""

    start_s: float
    step_s: float
    leave_s: float
    """A validation and a save."""
    where: str


def time_limit_warnings(runs: Sequence[SweepRun], cluster: ClusterConfig) -> list[str]:
    """List the warnings about the time limits of runs. Their own earlier starts are measured, else those of other runs.

    Args:
        runs: the runs of a sweep that are due; those with measurements are looked for among them.
        cluster: the profile of the runs without one of their own.
    """
    known = {run.config.name: found for run in runs if (found := _measure(run)) is not None}
    longest = max(known.values(), key=lambda found: found.start_s, default=None)
    warnings: dict[str, list[str]] = {}
    for run in runs:
        for text in _warnings(run, run.cluster or cluster, known.get(run.config.name, longest)):
            warnings.setdefault(text, []).append(run.config.name)
    return [f"{text} [{some_of(names, MAX_NAMED)}]" for text, names in warnings.items()]


def _measure(run: SweepRun) -> _Measured | None:
    account = read_account(run.folder)
    if not account.starts:
        return None
    steps = [r["step_s"] for r in account.records if r["kind"] == RecordKind.TRAIN and r.get("step_s") is not None]
    validations = [r.get("val_s") or 0.0 for r in account.records if r["kind"] == RecordKind.VAL]
    saves = max(1, account.step // run.config.checkpoint.every)
    return _Measured(
        max(start.ready_s for start in account.starts[-_STARTS:]),
        steps[-1] if steps else 0.0,
        max(validations, default=0.0) + account.phases_s.get("checkpoint", 0.0) / saves,
        run.config.name,
    )


def _warnings(run: SweepRun, cluster: ClusterConfig, measured: _Measured | None) -> Iterator[str]:
    usable_s = max(0, cluster.time_s - cluster.signal_s - EARLY_S)
    every = run.config.checkpoint.every
    start_s, steps_s = (LEAST_START_S, 0.0) if measured is None else (measured.start_s, every * measured.step_s)
    if start_s + steps_s > SHARE * usable_s:
        source = "not measured yet" if measured is None else f"measured in {measured.where}"
        steps = f", and the {every} steps to the first checkpoint {steps_s:.0f} s" if steps_s else ""
        yield (
            f"time: a job of {cluster.time} has {usable_s} s before its signal (signal_s is {cluster.signal_s}, and"
            f" SLURM may send it {EARLY_S} s early), while a start takes {start_s:.0f} s ({source}){steps}: raise time,"
            " or the jobs do little but start"
        )
    if measured is not None and measured.leave_s > cluster.signal_s:
        yield (
            f"signal_s: {cluster.signal_s} s are less than a validation and a save together, {measured.leave_s:.0f} s"
            f" (measured in {measured.where}): raise signal_s, or the steps since the last checkpoint may be lost"
        )
