"""The end of a start of a run: the last checkpoint, the end record, and signals while the disk takes neither."""

from __future__ import annotations

import logging

from fusionseg.observability.ranges import annotate
from fusionseg.runs.accounts.history import write_end
from fusionseg.runs.disk.failures import AFTER_SIGNAL_S, DiskFailures
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.records import RunStatus
from fusionseg.training.ending.signals import StopSignals, signal_name
from fusionseg.training.observers.recorder import Recorder
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import TrainingStopped

log = logging.getLogger("fusionseg")


def train_and_save(trainer: Trainer, signals: StopSignals, recorder: Recorder) -> tuple[str, str]:
    """Train until the last checkpoint is on disk; return the status of the run and the reason.

    A run that a signal ends is interrupted also without its last checkpoint: a full disk must not make a failed run of
    it.

    Raises:
        TrainingStopped: the training cannot continue, or the disk refuses what another run needs.
    """
    status = ""
    try:
        status, reason = trainer.train(signals, recorder)
        with annotate("checkpoint", trainer.state.step):
            trainer.checkpoints.finish(patience_s(status))
    except TrainingStopped as error:
        if not is_interrupted(status, signals, trainer.checkpoints.failures):
            raise
        log.warning("%s", error)
        return RunStatus.INTERRUPTED, reason if status == RunStatus.INTERRUPTED else signal_name(signals.received)
    return status, reason


def is_interrupted(status: str, signals: StopSignals, failures: DiskFailures) -> bool:
    """Tell whether a run that the disk refuses its last files is interrupted all the same, and not failed.

    A signal has ended it, before the training had to give up. It goes on from its newest checkpoint.
    """
    if not failures.failing:
        return False
    return status == RunStatus.INTERRUPTED or (signals.received != 0 and not failures.has_given_up())


def write_end_record(
    trainer: Trainer, recorder: Recorder, folder: RunFolder, status: str, reason: str, patience_s: float | None
) -> None:
    """Write the end record, and the line of the history; nothing in a folder that another process has now."""
    if folder.is_taken_over:
        log.warning("%s: no end record: another process has the folder (%s: %s)", folder.path, status, reason)
        return
    state, device = trainer.state, trainer.world.device
    best = state.best[trainer.task.info.score] if state.best else None
    cache_on_host = device.type == "cuda" and trainer.data.cache.device.type == "cpu"
    validates = trainer.validation is not None
    recorder.end(state.step, status, reason, best, validates=validates, cache_on_host=cache_on_host)
    trainer.checkpoints.failures.keep_trying(recorder.sync, patience_s)
    # The records are an open file, which goes along with a folder that is moved. The history is found by its path.
    if trainer.world.is_rank_zero and folder.is_ours:
        write_end(folder.path, state.step, status, reason)
    trainer.world.stop_watching()  # the sinks may take long to finish


def patience_s(status: str) -> float | None:
    """Seconds to wait at the end for a disk that takes nothing; None for `checkpoint.retry_s`."""
    return AFTER_SIGNAL_S if status == RunStatus.INTERRUPTED else None
