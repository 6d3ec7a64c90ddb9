"""The facts of a run for its model card. Each comes from a file of the run; what no file has is None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionseg.inference.statistics.intervals import Interval, mean_interval
from fusionseg.observability.gpu.samples import read_gpu_csv
from fusionseg.runs.accounts.history import Change, read_changes
from fusionseg.runs.cases.split import Split, read_split
from fusionseg.runs.environment import read_environment
from fusionseg.runs.evaluations import RecordedScore, evaluations_of, read_scores
from fusionseg.runs.json_files import JsonObject, is_number
from fusionseg.runs.paths import GPU_TABLE, RunPaths
from fusionseg.runs.records import Record, RecordKind, last_end, sift_records
from fusionseg.runs.run_config import plain_config
from fusionseg.utils.errors import UserError

VALIDATION = "the validation cases"
SHOWN = ("dice", "nsd", "hd95_mm")
"""Metrics of the card's tables, where an evaluation has them."""
_LONGEST_GAP_S = 60.0  # a longer gap between two samples is a pause of the run, if they are not further apart
_LONGEST_GAP_INTERVALS = 3
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Measured:
    """An evaluation of the run."""

    name: str
    """Name of its folder."""
    summary: JsonObject
    intervals: Mapping[tuple[str, str], Interval]
    """Mean over the cases and its interval, by class and metric."""
    rows: Mapping[str, int]
    """Number of scored cases, by class."""

    @property
    def dataset(self) -> str:
        """The data that was scored, by its name."""
        place = (self.summary.get("request") or {}).get("dataset")
        return VALIDATION if place is None else Path(str(place)).name


@dataclass(frozen=True)
class CardFacts:
    """The facts of a run."""

    config: JsonObject
    """The plain configuration."""
    environment: JsonObject = field(default_factory=dict)
    split: Split | None = None
    end: Record | None = None
    """The end record of the last start."""
    best: Record | None = None
    """The record of the best validation during the training."""
    evaluations: Sequence[Measured] = ()
    energy_kwh: float | None = None
    """Energy of the GPUs of rank 0's node."""
    has_gpu_table: bool = False
    """Whether the GPUs of a start were sampled."""
    steps_done: int | None = None
    """Optimizer steps at the last record."""
    changes: Sequence[Change] = ()
    """Changes of the configuration, with which the run went on from a checkpoint."""


def card_facts(run: Path) -> CardFacts:
    """Collect the facts of a run.

    Args:
        run: the run folder.

    Raises:
        UserError: it has no configuration, or a table in it is damaged.
    """
    records, _ = sift_records(run)
    config, table = plain_config(run), run / GPU_TABLE
    return CardFacts(
        config,
        read_environment(run),
        read_split(run) if RunPaths(run).split.is_file() else None,
        last_end(run),
        _best(records),
        tuple(_measured(run)),
        energy_kwh(table, entry(config, "log", "gpu_every_s")) if table.is_file() else None,
        has_gpu_table=table.is_file(),
        steps_done=records[-1]["step"] if records else None,
        changes=read_changes(run),
    )


def energy_kwh(table: Path, interval_s: float | None = None) -> float | None:
    """The energy of all GPUs in a gpu.csv: power by time, without pauses of the run.

    Args:
        table: the file.
        interval_s: between two samples (`log.gpu_every_s`).

    Returns:
        kWh; None if the driver gave no power.

    Raises:
        UserError: the file is damaged.
    """
    longest = max(_LONGEST_GAP_S, _LONGEST_GAP_INTERVALS * (interval_s or 0))
    joules, is_known = 0.0, False
    last: dict[str, dict[str, Any]] = {}
    for row in read_gpu_csv(table):
        before = last.get(row["uuid"])
        last[row["uuid"]] = row
        if before is None or row["power_w"] is None or before["power_w"] is None:
            continue
        seconds = (row["time"] - before["time"]).total_seconds()
        if 0 <= seconds <= longest:
            joules += seconds * (row["power_w"] + before["power_w"]) / 2
            is_known = True
    return joules / _JOULES_PER_KWH if is_known else None


def _best(records: Sequence[Record]) -> Record | None:
    scored = [one for one in records if one["kind"] == RecordKind.VAL and is_number(one.get("dice"))]
    return max(scored, key=lambda one: float(one["dice"]), default=None)


def _measured(run: Path) -> Iterator[Measured]:
    for folder, summary in evaluations_of(run):
        if "classes" not in summary or summary.get("averaged_with"):  # of another task, or of an ensemble
            continue
        left_out = summary.get("left_out") or ()
        scores = [score for score in read_scores(folder) if score.case not in left_out]
        yield Measured(folder.name, summary, _intervals(scores), Counter(score.label for score in scores))


def _intervals(scores: Sequence[RecordedScore]) -> dict[tuple[str, str], Interval]:
    found: dict[tuple[str, str], Interval] = {}
    for label in dict.fromkeys(score.label for score in scores):
        for metric in SHOWN:
            values = [score.metrics[metric] for score in scores if score.label == label and metric in score.metrics]
            if values:
                found[label, metric] = mean_interval(values)
    return found


def entry(plain: Mapping[str, Any] | None, *keys: str) -> Any:
    """A value of nested plain values; None if there is none."""
    value: Any = plain
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def fold_text(split: Split) -> str:
    """The fold of a split in words, without settings that had no effect and without the name of a group.

    Args:
        split: the cases of the run.
    """
    if split.validates_none:
        return "none: all cases are training cases"
    if not isinstance(split.fold, int):
        return "one group validates"
    if all(method.states_folds for method in split.method_of_each):
        return f"{split.fold}, counted from 0"
    return f"{split.fold} of {split.folds}, counted from 0, seed {split.fold_seed}"


def refuse_other_tasks(facts: CardFacts, run: Path) -> None:
    """Refuse a run that is no segmentation.

    Args:
        facts: of the run.
        run: the run folder.

    Raises:
        UserError: the run gives no masks.
    """
    if entry(facts.config, "pretrain") or entry(facts.config, "task") not in (None, "segmentation"):
        raise UserError(f"{run}: a model card is made of a segmentation; give the run folder of one")
