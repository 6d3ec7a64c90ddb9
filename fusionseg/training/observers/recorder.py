"""The records of a run while it trains: metrics.jsonl, sinks such as TensorBoard, progress, pictures, log."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusionseg.config import RunConfig, dump_config
from fusionseg.config.data.splits import ALL
from fusionseg.distributed.rank_info import peak_memory_gb
from fusionseg.distributed.world import World
from fusionseg.observability.pictures import PictureFolder
from fusionseg.observability.progress import TrainingProgress, duration
from fusionseg.observability.ranges import BETWEEN_STEPS, IN_STEP, phase_timer
from fusionseg.observability.sinks.sink import RunEnd, RunStart, Sinks
from fusionseg.runs.disk.failures import DiskFailures
from fusionseg.runs.environment import read_environment
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.records import (
    Record,
    RecordKind,
    RecordWriter,
    RunStatus,
    has_finished,
    read_records,
)
from fusionseg.training.observers.gpu_watch import GpuWatch
from fusionseg.training.observers.sinks import sink_makers
from fusionseg.training.observers.stragglers import OWN_PARTS, Stragglers
from fusionseg.training.observers.utilisation import Utilisation
from fusionseg.training.step import StepStatistics
from fusionseg.training.tasks.task import ValidationResult
from fusionseg.utils.logs import RESULT
from fusionseg.utils.machine import process_age_s

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Spent:
    """The wall time of a run, over all its starts, in seconds."""

    total_s: float = 0.0
    phases_s: dict[str, float] = field(default_factory=dict)
    """By phase, see `PHASES`."""


GRID = (
    "The scores under val/ and end/ are measured on the prepared grid: on volumes that are resampled and cropped as the"
    " network reads them. `fusionseg evaluate RUN` measures in the geometry of the label files."
)


class Recorder:
    """Writes the records of one start of a run. Only rank 0 writes; on the other ranks the methods write nothing."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        folder: RunFolder,
        watch: GpuWatch,
        score: str,
        *,
        step: int,
        spent: Spent,
        utilisation: Utilisation | None = None,
        stragglers: Stragglers | None = None,
        failures: DiskFailures | None = None,
    ) -> None:
        """Args:
        config: the configuration of the run.
        world: the ranks.
        folder: the run folder.
        watch: the monitor of the GPUs, whose measurements are recorded.
        score: the name of the task's score.
        step: the step at which this start begins.
        spent: the time of the earlier starts, up to this step.
        utilisation: the work of a step; None if it is not known.
        stragglers: the search for slow ranks; None does not look for them.
        failures: the failed writes of the run; None ends the training at the first one.
        """
        self.config = config
        self.world = world
        self.watch = watch
        self.score = score
        self.utilisation = utilisation
        self.stragglers = stragglers
        self.progress = TrainingProgress(config.train.steps, step, shown=world.is_rank_zero)
        self._folder = folder
        self._records = RecordWriter(folder.path, failures, folder.check_ours) if world.is_rank_zero else None
        self._end: Record = {}
        self._pictures = PictureFolder(folder.paths.pictures if world.is_rank_zero else None)
        self._sinks = Sinks(sink_makers(config, folder, step) if world.is_rank_zero else [])
        if world.is_rank_zero:
            self._start_sinks(folder, step)
        age = process_age_s()
        self._begun = time.monotonic() - age - spent.total_s
        self._phases = defaultdict(float, spent.phases_s)
        self._interval: defaultdict[str, float] = defaultdict(float)
        self._add_phases()
        # The time before the first step: start of Python, imports, process group, network.
        self._phases["start"] += age - sum(self._interval.values())
        self._interval.clear()
        self._interval_start, self._interval_step = time.monotonic(), step

    def _start_sinks(self, folder: RunFolder, step: int) -> None:
        start = RunStart(
            folder.path,
            self.config.name,
            step,
            self.config.to_dict(),
            dump_config(self.config),
            read_environment(folder.path),
            self.score,
            note="" if self.config.data.fold == ALL else GRID,
        )
        self._sinks.start(start, read_records(folder.path), lambda step: self._pictures.read("validation", step))

    def spent(self) -> Spent:
        """Return the time of the run up to now, over all its starts."""
        self._add_phases()
        return Spent(time.monotonic() - self._begun, dict(self._phases))

    def _add_phases(self) -> None:
        """Add the seconds of the phase timer to the sums of the logging interval and of the run."""
        for name, seconds in phase_timer().take().items():
            self._interval[name] += seconds
            self._phases[name] += seconds

    def train(
        self,
        step: int,
        lr: float,
        statistics: StepStatistics,
        samples: list[dict[str, Any]] | None,
        now: float,
        stream_data_s: float | None = None,
        own: Mapping[str, float] | None = None,
    ) -> None:
        """Write the train record of a step, about the steps since the last train record.

        Args:
            step: the number of steps done.
            lr: the learning rate of the last step.
            statistics: the totals of these steps.
            samples: the samples of the last step; None if they are not recorded.
            now: `time.monotonic()` before the range `log` began. That range then belongs to the next interval.
            stream_data_s: seconds of the GPU's stream for the data of these steps; None on a CPU.
            own: seconds of a GPU for the passes of these steps on this rank, see `OwnTime`; None if not measured.
        """
        self._add_phases()
        steps, seconds = step - self._interval_step, self._interval.copy()
        self._interval.clear()
        # The wall time of the steps, without the phases between them.
        step_s = (now - self._interval_start - sum(seconds[name] for name in BETWEEN_STEPS)) / steps
        # On a GPU the host only queues the work on the data.
        data_s = (seconds["data"] + seconds["augment"] if stream_data_s is None else stream_data_s) / steps
        speed, memory = self.config.train.global_batch / step_s, peak_memory_gb(self.world.device)
        self._interval_start, self._interval_step = now, step
        fields: dict[str, Any] = {
            "loss": statistics.loss,
            "lr": lr,
            "grad_norm": statistics.grad_norm,
            "skipped": statistics.skipped,
        }
        if self.stragglers is not None:
            # The host of a GPU only queues the work of its phases.
            passes = own or ({} if self.world.device.type == "cuda" else seconds)
            parts = {name: passes.get(name, 0.0) / steps for name in OWN_PARTS} | {"data": data_s}
            fields |= self.stragglers.look(step, parts, steps, step_s)
        if samples is not None:
            fields["samples"] = samples
        used = {} if self.utilisation is None else self.utilisation.fields(step_s)
        self._write(
            RecordKind.TRAIN,
            step,
            **fields,
            step_s=step_s,
            data_s=data_s,
            samples_per_s=speed,
            memory_gb=memory,
            **used,
        )
        if counters := self.watch.curves():
            self._sinks.record({"kind": "gpu", "step": step, **counters})
        self.progress.record(step, statistics.loss, speed, data_s / step_s, memory, step_s, used.get("mfu"))

    def first_step(self, step: int, statistics: StepStatistics) -> None:
        """Show the measurements of the first step of this start. They are not recorded.

        Args:
            step: the number of steps done.
            statistics: the totals of the steps.
        """
        step_s = time.monotonic() - self._interval_start
        speed, memory = self.config.train.global_batch / step_s, peak_memory_gb(self.world.device)
        self.progress.record(step, statistics.loss, speed, None, memory, step_s)

    def validation(
        self, step: int, result: ValidationResult, val_s: float, marks: Mapping[str, int], drawn: Mapping[str, Any]
    ) -> None:
        """Write the val record of a step, and the picture.

        Args:
            step: the number of steps done.
            result: the result of the validation.
            val_s: its duration in seconds.
            marks: fields about the split of the run, see `Split.marks`.
            drawn: fields about the patches since the last validation, see `TrainingData.drawn_fields`.

        Raises:
            TrainingStopped: the run folder is no longer the one of this run.
        """
        self._write(RecordKind.VAL, step, **result.fields, **marks, **drawn, val_s=val_s)
        trained_on = marks.get("trained_on", 0)
        warning = f" (not of new cases: {trained_on} of {result.fields['cases']} were trained on)" if trained_on else ""
        log.info("step %d: validation %s%s", step, result.summary, warning)
        self.progress.score(self.score, result.score)
        if result.picture is not None:
            self._folder.check_ours()
            self._pictures.write("validation", result.picture, step)
            self._sinks.image("validation", result.picture, step)

    def event(self, step: int, name: str, **fields: Any) -> None:
        """Write an event of the training.

        Args:
            step: the number of steps done.
            name: of the event.
            fields: of the record.
        """
        self._write(RecordKind.EVENT, step, event=name, **fields)

    def rewind(self, step: int, validated: int) -> None:
        """Go back with the training: drop the records after a checkpoint, and start the sinks again from there.

        Args:
            step: the number of steps done at the checkpoint.
            validated: see `fusionseg.runs.records.rewind_records`.

        Raises:
            TrainingStopped: the disk takes no records, and the run has given up.
        """
        self._interval_step = step  # the interval began with the record of the spike
        if self._records is None:
            return
        self._records.rewind(step, validated=validated)
        self._sinks.finish(RunEnd(has_failed=False))
        self._sinks = Sinks(sink_makers(self.config, self._folder, step))
        self._start_sinks(self._folder, step)

    def end(
        self, step: int, status: str, reason: str, best: float | None, *, validates: bool, cache_on_host: bool
    ) -> None:
        """Write the end record of this start, and log where the time went.

        Args:
            step: the number of steps done.
            status: the status of the run.
            reason: the reason why it ended.
            best: the best score; None if no score is known.
            validates: whether the run has validation cases.
            cache_on_host: whether a GPU reads its patches from host memory.
        """
        spent = self.spent()
        # Every second belongs to one phase; `other` has the seconds outside of all phases.
        phases = {**spent.phases_s, "other": spent.total_s - sum(spent.phases_s.values())}
        phases = {name: round(seconds, 3) for name, seconds in sorted(phases.items(), key=lambda item: -item[1])}
        steps_s = sum(seconds for name, seconds in spent.phases_s.items() if name in IN_STEP)
        data_s = spent.phases_s.get("data", 0.0) + spent.phases_s.get("augment", 0.0)
        gpu = self.watch.end(data_s / steps_s if steps_s else None, cache_on_host)
        self._write(
            RecordKind.END,
            step,
            status=status,
            reason=reason,
            **({f"best_{self.score}": best, "grid": "prepared"} if validates else {}),
            total_s=spent.total_s,
            phases_s=phases,
            **({} if gpu is None else {"gpu": gpu}),
        )
        known = "no score yet" if best is None else f"best {self.score} {best:.4f} on the prepared grid"
        scored = f"; {known}" if validates else ""
        log.log(RESULT, "%s (%s) after %s%s", status, reason, duration(spent.total_s), scored)
        shares = (f"{name} {seconds / spent.total_s:.1%}" for name, seconds in phases.items())
        log.info("where the time went: %s", ", ".join(shares))

    def sync(self) -> bool:
        """Write the records to disk, before a checkpoint that comes after them; return whether they are there."""
        return self._records is None or self._records.sync()

    def close(self) -> None:
        """Close the files and the sinks."""
        if self._records is not None:
            self._records.close()
        status = self._end.get("status", RunStatus.FAILED)
        self._sinks.finish(RunEnd(self._end, has_finished(status), status == RunStatus.FAILED))

    def _write(self, kind: RecordKind, step: int, **fields: Any) -> None:
        """Write a record, and hand it to the sinks. Ranks other than rank 0 write nothing."""
        if self._records is None:
            return
        record = self._records.write(kind, step, **fields)
        if kind == RecordKind.END:
            self._end = record
        else:
            self._sinks.record(record)
