"""The training loop."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import source_changes
from fusionseg.distributed.batch_arithmetic import accumulation_steps, batch_arithmetic
from fusionseg.distributed.rank_info import rank_info, threads_per_rank
from fusionseg.distributed.world import World
from fusionseg.observability.ranges import annotate, phase_timer
from fusionseg.runs.cases.checks import check_checkpoint
from fusionseg.runs.cases.opening import RunCases
from fusionseg.runs.cases.split import write_split
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.checkpoints import newest_intact, read_training_state
from fusionseg.runs.environment import write_environment
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.paths import BEST
from fusionseg.runs.records import RunStatus, has_finished, last_end, rewind_records
from fusionseg.runs.run_config import config_hash, refuse_other_config
from fusionseg.training.data import open_training_data
from fusionseg.training.early_stopping import reached_plateau
from fusionseg.training.fine_tuning import parameter_groups
from fusionseg.training.network import build_loss, build_network, distribute, start_from
from fusionseg.training.observers.gpu_watch import GpuWatch
from fusionseg.training.observers.profile_range import ProfileWindow
from fusionseg.training.observers.recorder import Recorder, Spent
from fusionseg.training.optimizer import build_optimizer, learning_rate
from fusionseg.training.precision import choose_precision
from fusionseg.training.rank_samples import RankSamples
from fusionseg.training.signals import Lead, StopSignals, signal_name
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.opening import open_task
from fusionseg.utils.errors import TrainingStopped, UserError

log = logging.getLogger("fusionseg")


class Trainer:
    """One start of a run, on one rank."""

    def __init__(self, config: RunConfig, world: World, folder: RunFolder, cases: RunCases) -> None:
        self.config = config
        self.world = world
        self.folder = folder
        self.accumulation_steps = accumulation_steps(config, world.size)
        # On a GPU run too: the host crops where the cache is the host's, and torchrun leaves one thread.
        torch.set_num_threads(config.train.threads or threads_per_rank(world))
        self.precision = choose_precision(config.train.precision, world.device)
        log.info("device: %s, precision %s (%s)", world.device, self.precision.name, self.precision.reason)
        log.info("batch: %s", batch_arithmetic(config, world.size))
        self.data = open_training_data(config, world, cases)
        self.samples = RankSamples(config, self.data, world)
        self.task = open_task(config, self.data, self.precision, world)
        self.model = build_network(
            config, world.device, in_channels=len(self.data.channels), out_channels=len(self.data.labels)
        )
        self.step_fn = TrainStep(
            distribute(self.model, config, world, self.accumulation_steps),
            build_loss(config),
            build_optimizer(config.optim, parameter_groups(self.model, config)),
            self.precision,
            world,
            accumulation_steps=self.accumulation_steps,
            clip_grad=config.train.clip_grad,
        )
        self.window = ProfileWindow(config.profile, world, folder.paths.profile)
        self._lead = Lead()
        self.checkpoints = CheckpointWriter(
            folder.paths.checkpoints, config.checkpoint.keep, partial(self._lead.took, "save")
        )
        self.step = 0
        self.best: dict[str, float] | None = None
        # step and score of every validation
        self.history: list[tuple[int, float]] = []

    def run(self) -> str:
        """Train to the end; the status that the end record has."""
        spent = self._resume()
        if self.world.is_rank_zero:
            write_split(self.folder.path, self.data.split)
        status, reason = self._why_end()
        if status and self.world.broadcast_object(self._is_recorded_as_finished()):
            log.info("%s: this run has already ended (%s at step %d)", self.folder.path, status, self.step)
            return status
        if self.world.is_rank_zero:
            rewind_records(self.folder.path, self.step, validated=self._validated)
        ranks = self.world.all_gather_object(rank_info(self.world))
        if self.world.is_rank_zero:
            parameters = sum(parameter.numel() for parameter in self.model.parameters())
            write_environment(self.folder.path, ranks, parameters)
        watch = GpuWatch(self.config, self.world, self.folder.path, self.folder.paths.pictures)
        recorder = Recorder(self.config, self.world, self.folder, watch, step=self.step, spent=spent)
        # To the end record: a job's signal comes again until the process has gone, and this must not be cut short.
        with StopSignals() as signals, closing(recorder):
            try:
                if not status:
                    with watch, recorder.progress, self.window:
                        status, reason = self._loop(signals, recorder)
                        with annotate("checkpoint", self.step):
                            self.checkpoints.finish()
                self._end(recorder, status, reason)
                return status
            except BaseException as error:
                # Told before the process goes down, for whoever looks at the run folder afterwards.
                first_line = str(error).partition("\n")[0]
                reason = first_line if isinstance(error, TrainingStopped) else f"{type(error).__name__}: {first_line}"
                try:
                    self._end(recorder, RunStatus.FAILED, reason)
                except TrainingStopped as second:  # on a full disk, which may have ended the training itself
                    log.warning("no end record: %s", second)
                raise

    def _is_recorded_as_finished(self) -> bool:
        end = last_end(self.folder.path)
        return end is not None and has_finished(end["status"])

    def _end(self, recorder: Recorder, status: str, reason: str) -> None:
        on_host = self.world.device.type == "cuda" and self.data.cache.device.type == "cpu"
        recorder.end(self.step, status, reason, self.task.measure, self._best_score, cache_on_host=on_host)

    def _loop(self, signals: StopSignals, recorder: Recorder) -> tuple[str, str]:
        """Train until there is a reason to end; its status and what it is."""
        while True:
            if self._validation_is_due():
                self._validate(recorder)
            status, reason = self._why_end()
            if status:
                self._save(recorder)
                return status, reason
            self.window.before(self.step)
            lr = self.advance()
            self.window.after(self.step)
            recorder.progress.step(self.step)
            self._record(lr, recorder)
            self.checkpoints.check()
            stop = self.world.any_rank_signalled(signals.received)
            # Before the validation, which may last longer than the time that a signal leaves. The first step is saved
            # too: a folder that takes no checkpoint is known now, and not after hours.
            if stop or self.step == 1 or self.step % self.config.checkpoint.every == 0:
                self._save(recorder)
            if stop and self.step < self.config.train.steps:
                return RunStatus.INTERRUPTED, signal_name(stop)

    def _validation_is_due(self) -> bool:
        due = self.step > 0 and (self.step % self.config.validation.every == 0 or self.step == self.config.train.steps)
        return due and self._validated != self.step

    @property
    def _validated(self) -> int:
        """The last step that was validated."""
        return self.history[-1][0] if self.history else 0

    def advance(self) -> float:
        """One optimizer step, data included; the learning rate it had."""
        with annotate("step", self.step):
            lr = learning_rate(self.step, self.config.train.steps, self.config.optim.lr, self.config.schedule)
            self.step_fn(self.step, self.batch, lr, self._network_seed)
            self.samples.remember(self.step, self.step_fn.micro_finite)
            self.step += 1
        return lr

    def batch(self, step: int, micro: int) -> tuple[tuple[Tensor, ...], Any]:
        """This rank's samples of a micro-step, on the device: the network's inputs, the image first, and the target."""
        (image, *others), target = self.task.batch(step, self.samples.take(micro))
        if self.config.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        return (image, *others), target

    def _network_seed(self, micro: int) -> int:
        return self.data.plan.network_seed(self.step, self.samples.of(micro).start)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _why_end(self) -> tuple[str, str]:
        """Status and reason if the run is at its end, else two empty texts."""
        plateau = self.config.stop.plateau
        if self._validation_is_due():
            return "", ""
        if self.step >= self.config.train.steps:
            return RunStatus.COMPLETED, f"step {self.step}"
        if plateau is not None and reached_plateau(self.history, plateau):
            gain = f"less than {plateau.min_gain} gained in {plateau.windows} windows of {plateau.window}"
            return RunStatus.PLATEAU, gain
        return "", ""

    # -- records and checkpoints ------------------------------------------------------------------------------------

    def _record(self, lr: float, recorder: Recorder) -> None:
        """The train record, on a logging step. Reading the counters waits for the device: only here, on a GPU."""
        logging_step = self.step % self.config.log.every == 0 or self.step == self.config.train.steps
        if logging_step or (self.world.device.type == "cpu" and self.step % self.config.train.max_skipped == 0):
            # Where the host waits for the device: that is the steps' time, not the log's.
            with phase_timer().measure("step"):
                self.samples.refuse_endless_skipping(self.step_fn.skipped_in_a_row())
        if logging_step:
            with phase_timer().measure("step"):
                window = self.step_fn.read()
            now = time.monotonic()
            with annotate("log", self.step):
                samples = self.samples.taken(self.step - 1) if self.config.log.samples else None
                recorder.train(self.step, lr, window, samples, now)

    def _validate(self, recorder: Recorder) -> None:
        with annotate("validate", self.step):
            self._validate_now(recorder)

    def _validate_now(self, recorder: Recorder) -> None:
        start = time.monotonic()
        outcome = self.task.validate(self.model)
        score, measure = outcome.score, self.task.measure
        self.history.append((self.step, -1.0 if isnan(score) else score))
        self._lead.took("validation", time.monotonic() - start)
        recorder.validation(self.step, measure, outcome, time.monotonic() - start, self.data.split.marks)
        if not isnan(score) and (self.best is None or score > self.best[measure]):
            self.best = {measure: score, "step": self.step}
            if self.world.is_rank_zero:
                with annotate("checkpoint", self.step):
                    self.checkpoints.save_best({**self._identity(), "model": self.model.state_dict(), measure: score})

    @property
    def _best_score(self) -> float | None:
        return self.best[self.task.measure] if self.best else None

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint says of itself, enough to rebuild the network from it alone."""
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "config_hash": config_hash(self.config),
            "split": self.data.split.to_json(),
            "grid": "prepared",
            "channels": list(self.data.channels),
            "labels": {str(value): name for value, name in self.data.labels.items()},
        }

    def _save(self, recorder: Recorder) -> None:
        if not self.world.is_rank_zero:
            return
        spent = recorder.spent()
        with annotate("checkpoint", self.step):
            recorder.sync()
            state = {
                **self._identity(),
                "model": self.model.state_dict(),
                "train_step": self.step_fn.state_dict(),
                "best": self.best,
                "history": self.history,
                # Random numbers are functions of (seed, step, sample): seed and step are their whole state. So is
                # the learning rate one of the step.
                "seed": self.config.seed,
                "elapsed_s": spent.total_s,
                "phases_s": spent.phases_s,
            }
            self.checkpoints.save(self.step, state)

    def _resume(self) -> Spent:
        """Go on from the newest intact checkpoint, if there is one; the time that the run has taken so far."""
        found: list[tuple[Path, dict[str, Any]] | None] = []
        self.world.rank_zero_first(
            "find a checkpoint", lambda: found.append(newest_intact(self.checkpoints.folder, read_training_state))
        )
        intact = found[0] if found else None
        path = self.world.broadcast_object(intact[0] if intact else None)
        if path is None:
            start_from(self.model, self.config, self.data.channels)
            return Spent()
        state = intact[1] if intact else read_training_state(path)
        refuse_other_config(path, state["config"], self.config)
        for warning in source_changes(state["config"], self.config):
            log.warning("%s", warning)
        check_checkpoint(self.folder.path, state, self.data.split, self.data.content)
        self._restore(path, state)
        log.info("resuming from %s (step %d of %d)", path, self.step, self.config.train.steps)
        return Spent(state["elapsed_s"], state.get("phases_s", {}))  # the second is younger than some checkpoints

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint.

        Raises:
            UserError: it does not fit.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.step_fn.load_state_dict(state["train_step"])
            self.step, self.best = state["step"], state["best"]
            self.history = [(int(step), float(score)) for step, score in state["history"]]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # torch says so of names, shapes and groups
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{path}: does not fit this network and optimizer ({type(error).__name__}: {reason}): move it away, to"
                " go on from the one before it"
            ) from None
        if self.config.pretrain is not None and "grid" not in state:
            log.warning(
                "%s: its validations were scored patch by patch by an older version, and cannot be compared with those"
                " of whole volumes: %s and stop.plateau begin anew",
                path,
                BEST,
            )
            self.best, self.history = None, []
