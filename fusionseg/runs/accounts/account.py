"""The account of a run: its time over all starts, what of it trained the run, and what restarts cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from fusionseg.runs.accounts.history import Change, Start, read_changes, read_history
from fusionseg.runs.records import Record, RecordKind, read_records


@dataclass(frozen=True)
class Account:
    """The time of a run in seconds."""

    records: list[Record]
    """All records of the run, the oldest first."""
    starts: list[Start]
    """The oldest first; none for a run of an older version."""
    changes: list[Change]
    """Changes of the configuration, the oldest first."""
    step: int
    """Steps done."""
    trained_s: float
    """Time of the training steps that the run keeps."""
    validated_s: float
    """Time of the validations that the run keeps."""
    repeated_steps: int
    """Steps that were trained twice, because a start was killed after its last checkpoint."""
    repeated_s: float
    """Time of these steps, at the mean speed of the run."""

    @property
    def end(self) -> Record | None:
        """The end record, if it is the last one."""
        return self.records[-1] if self.records and self.records[-1]["kind"] == RecordKind.END else None

    @property
    def wall_s(self) -> float:
        """Sum over the starts, without the time between them."""
        return sum(start.wall_s for start in self.starts) or float((self.end or {}).get("total_s") or 0.0)

    @property
    def goodput(self) -> float | None:
        """The share of the wall time in which the steps were trained that the run keeps; None if it is not known."""
        return min(1.0, self.trained_s / self.wall_s) if self.wall_s > 0 and self.trained_s > 0 else None

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds of each phase over all starts, as the end record has them; empty without one."""
        phases = (self.end or {}).get("phases_s") or {}
        return {name: seconds for name, seconds in phases.items() if seconds is not None}

    @property
    def other_s(self) -> float:
        """Wall time that is in none of the other sums: starts, cache, checkpoints, logs."""
        return max(0.0, self.wall_s - self.trained_s - self.validated_s - self.repeated_s)


def read_account(run: Path) -> Account:
    """Read the account of a run, also while it trains.

    Args:
        run: the run folder.
    """
    records = read_records(run)
    starts, changes = read_history(run), read_changes(run)
    # A branch has the records of the run that it began from. Their time is not its own.
    first = max((change.step for change in changes if change.origin is not None), default=0)
    own = [record for record in records if record["step"] > first]
    train = [record for record in own if record["kind"] == RecordKind.TRAIN]
    trained_s, step_s = _trained(train, first)
    repeated = sum(max(0, one.reached - other.step) for one, other in pairwise(starts))
    return Account(
        records=records,
        starts=starts,
        changes=changes,
        step=max((record["step"] for record in records), default=0),
        trained_s=trained_s,
        validated_s=sum(record.get("val_s") or 0.0 for record in own if record["kind"] == RecordKind.VAL),
        repeated_steps=repeated,
        repeated_s=repeated * step_s,
    )


def _trained(train: list[Record], before: int) -> tuple[float, float]:
    """The time of the recorded steps after step `before`, and the mean time of a step.

    A record is about the steps since the one before it.
    """
    seconds = 0.0
    known: list[float] = []
    for record in train:
        step_s = record.get("step_s")
        if step_s is not None and record["step"] > before:
            seconds += step_s * (record["step"] - before)
            known.append(step_s)
        before = record["step"]
    return seconds, fmean(known) if known else 0.0
