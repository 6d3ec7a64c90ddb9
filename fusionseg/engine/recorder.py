"""What a run writes about itself while it trains: records, progress, pictures."""

from __future__ import annotations

import logging
import time
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.engine.describe import peak_memory_gb
from fusionseg.engine.distributed import World
from fusionseg.engine.run_folder import RunFolder
from fusionseg.engine.step import Window
from fusionseg.engine.task import Outcome
from fusionseg.telemetry.progress import TrainingProgress, duration
from fusionseg.telemetry.ranges import account
from fusionseg.telemetry.sinks import NoSinks, Sinks

log = logging.getLogger("fusionseg")

ASIDE = ("validate", "checkpoint", "log")  # phases between the steps: not part of `step_s`


class Recorder:
    """The records of one start of a run; those of rank 0 are written, the others' go nowhere."""

    def __init__(self, config: RunConfig, world: World, folder: RunFolder, *, step: int, elapsed_s: float) -> None:
        """Args:
        step: where this start begins.
        elapsed_s: how long earlier starts of the run took up to there.
        """
        self.config = config
        self.world = world
        self.progress = TrainingProgress(config.train.steps, step, shown=world.is_main)
        self._sinks: Sinks = NoSinks()
        if world.is_main:
            board = folder.path if config.log.tensorboard else None
            self._sinks = Sinks(folder.metrics, board, folder.pictures, purge_step=step + 1)
        self._begun = time.monotonic() - elapsed_s
        self._window_start, self._window_step = time.monotonic(), step
        account().take()

    @property
    def elapsed_s(self) -> float:
        """Seconds of the run, over all its starts."""
        return time.monotonic() - self._begun

    def train(self, step: int, lr: float, window: Window, samples: list[dict[str, Any]] | None) -> None:
        """The train record of `step`, over the steps since the last one."""
        steps, seconds = step - self._window_step, account().take()
        # The whole wall time of the steps, without what is done between them.
        step_s = (time.monotonic() - self._window_start - sum(seconds.get(name, 0.0) for name in ASIDE)) / steps
        data_s = (seconds.get("data", 0.0) + seconds.get("augment", 0.0)) / steps
        speed, memory = self.config.train.global_batch / step_s, peak_memory_gb(self.world.device)
        self._window_start, self._window_step = time.monotonic(), step
        known: dict[str, Any] = {
            "loss": window.loss,
            "lr": lr,
            "grad_norm": window.grad_norm,
            "skipped": window.skipped,
        }
        if samples is not None:
            known["samples"] = samples
        self._sinks.write("train", step, **known, step_s=step_s, data_s=data_s, samples_per_s=speed, memory_gb=memory)
        self.progress.record(step, window.loss, speed, data_s / step_s, memory, step_s)

    def validation(self, step: int, measure: str, outcome: Outcome, val_s: float) -> None:
        """The val record of `step`, and the picture."""
        self._sinks.write("val", step, **outcome.fields, val_s=val_s)
        log.info("step %d: validation %s", step, outcome.summary)
        self.progress.score(measure, outcome.score)
        if outcome.picture is not None:
            self._sinks.picture("validation", outcome.picture, step)

    def end(self, step: int, status: str, reason: str, measure: str, best: float | None) -> None:
        """The end record of this start; `best` is the best score, called `measure`."""
        self._sinks.write(
            "end", step, status=status, reason=reason, **{f"best_{measure}": best}, total_s=self.elapsed_s
        )
        shown = "-" if best is None else f"{best:.4f}"
        log.info("%s (%s) after %s; best %s %s", status, reason, duration(self.elapsed_s), measure, shown)

    def sync(self) -> None:
        """Force the records to disk: before a checkpoint that comes after them."""
        self._sinks.sync()

    def close(self) -> None:
        self._sinks.close()
