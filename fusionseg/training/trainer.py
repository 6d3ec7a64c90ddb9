"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.models.sharding.network import whole_weights
from fusionseg.observability.ranges import annotate, phase_timer
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.records import RunStatus
from fusionseg.training.data import TrainingData
from fusionseg.training.ending.reasons import plateau_reason
from fusionseg.training.ending.signals import CANNOT_SAVE, Lead, StopSignals, signal_name
from fusionseg.training.micro_batches import MicroBatches
from fusionseg.training.numerics.loss_spikes import LossSpikes, Spike
from fusionseg.training.numerics.rewinding import rewind
from fusionseg.training.observers.profile_range import ProfileRange
from fusionseg.training.observers.recorder import Recorder
from fusionseg.training.observers.skipped_steps import SkippedSteps
from fusionseg.training.optimizer import rate_of
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.task import Task, ValidationFunction, ValidationResult
from fusionseg.training.training_state import TrainingCheckpoints, TrainingState
from fusionseg.utils.errors import TrainingStopped, some_of

log = logging.getLogger("fusionseg")


@dataclass(eq=False)
class Trainer:
    """The training loop of a rank. `fusionseg.training.start.build_trainer` builds its parts."""

    config: RunConfig
    world: World
    precision: Precision
    task: Task
    data: TrainingData
    micro_batches: MicroBatches
    model: nn.Module
    """The network, not wrapped by DDP. With `distributed.parallel: fsdp` its weights are divided among the ranks."""
    train_step: TrainStep
    validation: ValidationFunction | None
    """None if the run has no validation cases (`data.fold: all`)."""
    spikes: LossSpikes
    skipped_steps: SkippedSteps
    profile: ProfileRange
    checkpoints: TrainingCheckpoints
    lead: Lead
    state: TrainingState = field(default_factory=TrainingState)

    def train(self, signals: StopSignals, recorder: Recorder) -> tuple[str, str]:
        """Train until there is a reason to end; return the status of the run and the reason."""
        while True:
            if self._validation_is_due():
                self._validate_and_record(recorder)
            status, reason = self.end()
            if status:
                self._save(recorder)
                return status, reason

            self.profile.before(self.state.step)
            lr = self.train_one_step()
            self.profile.after(self.state.step)
            recorder.progress.step(self.state.step)
            spike = self._log(lr, recorder)
            has_gone_back = spike is not None and self._rewind(spike, recorder)
            if not has_gone_back:
                self._log_drawn()
                self.checkpoints.writer.check()

            gave_up = CANNOT_SAVE if self.checkpoints.failures.has_given_up() else 0
            stop = self.world.any_rank_signalled(max(signals.received, gave_up))
            if stop == CANNOT_SAVE:  # all ranks end after the same step
                raise TrainingStopped(self.checkpoints.failures.verdict or "rank 0 could not write the run folder")
            # Save before the validation, which may take longer than the time that is left after a signal. The first
            # step is saved too: a folder that cannot hold a checkpoint is known at once, and not after hours.
            is_due = self.state.step == 1 or self.state.step % self.config.checkpoint.every == 0
            if (stop or is_due) and not has_gone_back:  # a rewind has saved its checkpoint
                self._save(recorder)
            if stop and self.state.step < self.config.train.steps:
                return RunStatus.INTERRUPTED, signal_name(stop)

    def train_one_step(self) -> float:
        """Train on the next global batch; return the learning rate."""
        step = self.state.step
        self.world.progress.begin_step(step)
        with annotate("step", step):
            lr = rate_of(self.config, step)
            self.train_step(step, self.micro_batches.of_step(step), lr)
            self.skipped_steps.add(step, self.train_step.micro_finite)
            self.spikes.add(self.train_step.loss_of_step)
            self.state.step += 1
        return lr

    def end(self) -> tuple[str, str]:
        """Return status and reason if the run is at its end, otherwise two empty texts."""
        if self._validation_is_due():
            return "", ""
        if self.state.step >= self.config.train.steps:
            suffix = f"; {NO_VALIDATION}" if self.validation is None else ""
            return RunStatus.COMPLETED, f"step {self.state.step}{suffix}"
        reason = plateau_reason(self.state.history, self.config.stop.plateau)
        if reason:
            return RunStatus.PLATEAU, reason
        at = self.config.stop.at
        if at is not None and self.state.step >= at:
            return RunStatus.STOPPED, f"step {self.state.step} (stop.at)"
        return "", ""

    def validate(self) -> ValidationResult:
        """Validate the network. All ranks call it."""
        assert self.validation is not None, "data.fold=all: there are no validation cases"
        with whole_weights(self.model), evaluation_mode(self.model, self.world):
            return self.validation(self.model)

    def _validation_is_due(self) -> bool:
        step = self.state.step
        if self.validation is None:
            return False
        due = step > 0 and (step % self.config.validation.every == 0 or step == self.config.train.steps)
        return due and self.state.validated != step

    def _validate_and_record(self, recorder: Recorder) -> None:
        with annotate("validate", self.state.step), self.checkpoints.in_use():
            start = time.monotonic()
            result = self.validate()
            is_best = self.state.add_score(self.task.info.score, result.score)
            self.lead.took("validation", time.monotonic() - start)
            drawn = self.data.drawn_fields(self._counted_steps()) if self.world.is_rank_zero else {}
            recorder.validation(self.state.step, result, time.monotonic() - start, self.data.split.marks, drawn)
            if is_best and self.checkpoints.takes_part:
                self.checkpoints.save_best(self.state)

    def _log(self, lr: float, recorder: Recorder) -> Spike | None:
        """Write the train record on a logging step. On a GPU only such a step and the first wait for the device.

        Returns:
            The spike, if the logged loss is one.
        """
        step = self.state.step
        is_logged = step % self.config.log.every == 0 or step == self.config.train.steps
        if is_logged or (self.world.device.type == "cpu" and step % self.config.train.max_skipped == 0):
            # Here the host waits for the device: this is time of the steps, not of the log.
            with phase_timer().measure("step"):
                self.skipped_steps.check(self.train_step.skipped_in_a_row())
        if is_logged:
            with phase_timer().measure("step"):
                statistics = self.train_step.read()
            now = time.monotonic()
            with annotate("log", step):
                samples = self.micro_batches.last_samples(step - 1) if self.config.log.samples else None
                own = self.train_step.own_time.take()
                recorder.train(step, lr, statistics, samples, now, self.micro_batches.timer.take(), own)
                return self.spikes.look(step, statistics.loss)
        elif recorder.progress.awaits_first_step:  # so that loss and time left are known from the beginning
            with phase_timer().measure("step"):
                recorder.first_step(step, self.train_step.peek())
        return None

    def _rewind(self, spike: Spike, recorder: Recorder) -> bool:
        """Record a spike, and go back before it if the configuration says so; return whether the run has gone back."""
        every_sample = range(self.config.train.global_batch)
        samples = [] if spike.worst_step is None else self.micro_batches.describe(spike.worst_step - 1, every_sample)
        fields = {**spike.fields(), **({"samples": samples} if samples else {})}
        cases = f"; its cases: {some_of(sorted({each['case'] for each in samples}))}" if samples else ""
        log.warning("step %d: %s%s (train.spikes)", spike.step, spike, cases)
        if self.spikes.config.action == "rewind":
            with annotate("checkpoint", spike.step):
                try:
                    before = rewind(spike, self.state, self.spikes, self.checkpoints, recorder)
                except TrainingStopped:  # too many rewinds
                    recorder.event(spike.step, "loss_spike", **fields)
                    raise
            if before is not None:
                self.state = before
                recorder.event(before.step, "rewind", **fields, left_out=[*self.spikes.left_out[-1]])
                return True
        recorder.event(spike.step, "loss_spike", **fields)
        return False

    def _log_drawn(self) -> None:
        """Log what the plan has drawn, as often as validations are due. The plan is computed again on the host."""
        step, every = self.state.step, self.config.validation.every
        if self.world.is_rank_zero and (step % every == 0 or step == self.config.train.steps):
            with phase_timer().measure("log"):
                log.info("step %d: %s", step, self.data.describe_drawn(self._counted_steps()))

    def _counted_steps(self) -> range:
        """The steps of the sample stream since the last step at which a validation was due."""
        step, every = self.state.step, self.config.validation.every
        return self.spikes.stream_steps(range((step - 1) // every * every, step))

    def _save(self, recorder: Recorder) -> None:
        if not self.checkpoints.takes_part:
            return
        spent = recorder.spent()
        with annotate("checkpoint", self.state.step):
            self.checkpoints.save(self.state, spent)


@contextmanager
def evaluation_mode(model: nn.Module, world: World) -> Iterator[None]:
    """Put the network into evaluation mode, without gradients, with the same buffers on every rank.

    Each rank has its own running statistics of batch norm. All ranks take those of rank 0, because rank 0 saves the
    network.
    """
    training = model.training
    model.eval()
    world.broadcast_(buffer for buffer in model.buffers() if buffer.is_floating_point())
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
