"""The state of a training beside network and optimizer, and its saving and restoring with the checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import source_changes
from fusionseg.data.loading import noise_lines
from fusionseg.distributed.world import World
from fusionseg.models.sharding.network import is_sharded_network
from fusionseg.models.sharding.tensors import gather_all, load_state
from fusionseg.observability.ranges import annotate, progressed
from fusionseg.runs.accounts.faults import FaultLog
from fusionseg.runs.accounts.history import read_changes
from fusionseg.runs.cases.checks import check_checkpoint
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.checkpoints import AVERAGED, newest_intact, read_training_state
from fusionseg.runs.continuation.extension import with_earlier_rate
from fusionseg.runs.disk.failures import DiskFailures
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.paths import BEST
from fusionseg.runs.run_config import config_hash, refuse_other_config
from fusionseg.training.data import TrainingData
from fusionseg.training.ending.signals import Lead
from fusionseg.training.numerics.loss_spikes import LossSpikes
from fusionseg.training.observers.recorder import Spent
from fusionseg.training.optimizer import changed_settings
from fusionseg.training.saving.divided_saving import open_divided_saving
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.task import Task
from fusionseg.utils.errors import TrainingStopped, UserError

log = logging.getLogger("fusionseg")


@dataclass
class TrainingState:
    """Steps done, and the scores of the validations."""

    step: int = 0
    """Steps done since the start of the run."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """Step and score of every validation; an unknown score is -1."""
    best: dict[str, float] | None = None
    """The best score under its name, and its step; None if no score is known."""

    @property
    def validated(self) -> int:
        """The step of the last validation; 0 if there was none."""
        return self.history[-1][0] if self.history else 0

    def add_score(self, name: str, score: float) -> bool:
        """Add the score of a validation at the current step; return whether it is the best so far."""
        self.history.append((self.step, -1.0 if isnan(score) else score))
        if isnan(score) or (self.best is not None and score <= self.best[name]):
            return False
        self.best = {name: score, "step": self.step}
        return True


class TrainingCheckpoints:
    """Saves the state of a training, and restores it when the run is started again.

    Rank 0 writes. A checkpoint is read as whole tensors: it does not depend on the number of ranks, nor on
    `distributed.parallel`. If the network is divided among the ranks, all of them take part in saving: they gather the
    tensors, or each writes its own parts (`checkpoint.sharded`).
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        world: World,
        data: TrainingData,
        task: Task,
        model: nn.Module,
        train_step: TrainStep,
        spikes: LossSpikes,
        lead: Lead,
    ) -> None:
        self.config = config
        self.folder = folder
        self.world = world
        self.data = data
        self.task = task
        self.model = model
        self.train_step = train_step
        self.spikes = spikes
        self._averages = train_step.averages
        self._is_sharded = is_sharded_network(model)
        # Until there is a checkpoint there is little to lose, and a folder that cannot hold one is known at once.
        self.failures = DiskFailures(0.0, note=FaultLog(folder.path), wait=progressed)
        self._divided = open_divided_saving(config, folder.paths.checkpoints, world, model)
        self.writer = CheckpointWriter(
            folder.paths.checkpoints,
            config.checkpoint.keep,
            partial(lead.took, "save"),
            check=folder.check_ours,
            on_numbered=self._note_saved,
            failures=self.failures,
            divided=None if self._divided is None else self._divided.writer,
        )

    def _note_saved(self, path: Path) -> None:
        self.folder.last_saved = path
        self.failures.retry_s = self.config.checkpoint.retry_s

    @property
    def takes_part(self) -> bool:
        """Whether this rank calls `save` and `save_best`."""
        return self._is_sharded or self.world.is_rank_zero

    def save(self, state: TrainingState, spent: Spent) -> None:
        """Save a numbered checkpoint.

        Random numbers are functions of seed, step and sample, and so is the learning rate: seed and step are their
        whole state.

        Args:
            state: the state of the training.
            spent: the time of the run up to now.
        """
        content = {
            **self._identity(state),
            "model": self.model.state_dict(),
            **({} if self._averages is None else {AVERAGED: self._averages.state_dict()}),
            "train_step": self.train_step.state_dict(),
            "best": state.best,
            "history": state.history,
            "seed": self.config.seed,
            "elapsed_s": spent.total_s,
            "phases_s": spent.phases_s,
            "noise": noise_lines.VERSION,
            "ranks": self.world.size,
            "spikes": self.spikes.state_dict(),
        }
        if self._divided is not None and self._divided.is_for(content, self.writer):
            self._divided.save(state.step, content, self.writer)
        elif self.world.is_rank_zero:
            self.writer.save(state.step, content)
        else:
            gather_all(content)

    def save_rewound(self, state: TrainingState, spent: Spent) -> None:
        """Save a checkpoint to which the training has gone back, and delete those after it; wait for the disk.

        Args:
            state, spent: see `save`.
        """
        if self.world.is_rank_zero:
            self.writer.delete_after(state.step)
        self.save(state, spent)
        self.finish()

    def finish(self, patience_s: float | None = None) -> None:
        """Wait until everything that was saved is on disk. All ranks call it.

        Args:
            patience_s: see `CheckpointWriter.finish`.

        Raises:
            TrainingStopped: on rank 0, if a checkpoint could not be written.
        """
        try:
            self.writer.finish(patience_s)
        except TrainingStopped:
            self.close()  # the other ranks need not wait any longer
            raise
        if self._divided is not None:
            self._divided.finish()

    def close(self) -> None:
        """End the threads that write with other ranks, also after an error."""
        if self._divided is not None:
            self._divided.close(self.writer)

    def save_best(self, state: TrainingState) -> None:
        """Save best.pt: the network as it was validated, with averaged weights if there are any (`in_use`), and what is
        needed to use it."""
        assert state.best is not None
        name = self.task.info.score
        with annotate("checkpoint", state.step):
            content = {**self._identity(state), "model": self.model.state_dict(), name: state.best[name]}
            if self.world.is_rank_zero:
                self.writer.save_best(content)
            else:
                gather_all(content)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Give the network the weights that are used after the training within the context: the averaged ones, where
        `train.ema` has them. All ranks enter it."""
        with nullcontext() if self._averages is None else self._averages.in_network():
            yield

    @cached_property
    def _split(self) -> dict[str, Any]:
        return self.data.split.to_json()  # a second for 20 000 cases, and it does not change

    def _identity(self, state: TrainingState) -> dict[str, Any]:
        """Return the fields that describe a checkpoint; the network can be rebuilt from them and the weights alone."""
        return {
            "step": state.step,
            "config": self.config.to_dict(),
            "config_hash": config_hash(self.config),
            "split": self._split,
            "grid": "prepared",
            "channels": list(self.data.channels),
            "labels": {str(value): name for value, name in self.data.labels.items()},
        }

    def restore(self, at_most: int | None = None, avoid: int | None = None) -> tuple[TrainingState, Spent] | None:
        """Load the newest intact checkpoint into network and optimizer; None if the run has no checkpoint.

        All ranks call it.

        Args:
            at_most: the highest step of the checkpoint; None takes the newest.
            avoid: the step of a checkpoint in whose place the one before it is taken, where there is one.

        Returns:
            The state of the training, and the time that the run has taken up to the checkpoint.

        Raises:
            UserError: the checkpoint belongs to another configuration or to other data, or it does not fit.
        """
        found: list[tuple[Path, dict[str, Any]] | None] = []
        # The ranks wait for a name, which may be used once.
        where = "" if at_most is None else f" up to step {at_most}, rewind {self.spikes.rewinds + 1}"
        self.world.rank_zero_first(
            f"find a checkpoint{where}",
            lambda: found.append(self._newest(at_most, avoid)),
        )
        intact = found[0] if found else None
        path = self.world.broadcast_object(intact[0] if intact else None)
        if path is None:
            return None
        content = intact[1] if intact else read_training_state(path)
        earlier = self.world.broadcast_object([change.before for change in read_changes(self.folder.path)])
        refuse_other_config(path, content["config"], self.config, earlier=earlier)
        for warning in source_changes(content["config"], self.config):
            log.warning("%s", warning)
        if changed := noise_change(content, self.config):
            log.warning("%s", changed)
        if self.world.is_rank_zero and (other := shares_change(content, self.config, self.world.size)):
            log.warning("%s", other)
        check_checkpoint(self.folder.path, content, self.data.split, self.data.content)
        state = self._load(path, content)
        self._note_saved(path)
        log.info("resuming from %s (step %d of %d)", path, state.step, self.config.train.steps)
        # Checkpoints of older versions have no `phases_s`.
        return state, Spent(content["elapsed_s"], content.get("phases_s", {}))

    def _newest(self, at_most: int | None, avoid: int | None) -> tuple[Path, dict[str, Any]] | None:
        newest = newest_intact(self.writer.folder, read_training_state, at_most)
        if avoid is None or newest is None or newest[1]["step"] != avoid:
            return newest
        return newest_intact(self.writer.folder, read_training_state, avoid - 1) or newest

    def _load(self, path: Path, content: dict[str, Any]) -> TrainingState:
        try:
            if self._is_sharded:
                load_state(self.model.state_dict(), content["model"])
            else:
                self.model.load_state_dict(content["model"])
            if self._averages is not None:
                if AVERAGED in content:
                    self._averages.load_state_dict(content[AVERAGED])
                else:  # the run was extended with averages
                    self._averages.restart()
            before = with_earlier_rate(content["config"], self.config)
            self.train_step.load_state_dict(content["train_step"], changed_settings(before.optim, self.config.optim))
            self.spikes.load_state_dict(content.get("spikes", {}), self.world.device)
            history = [(int(step), float(score)) for step, score in content["history"]]
            state = TrainingState(content["step"], history, content["best"])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # torch raises these for names and shapes
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{path}: does not fit this network and optimizer ({type(error).__name__}: {reason}): move it away, to"
                " go on from the one before it"
            ) from None
        # A branch from a checkpoint before the best one of its run has no best.pt.
        if state.best is not None and not self.world.broadcast_object((self.writer.folder / BEST).is_file()):
            log.warning("%s has no %s: the best score starts anew", self.writer.folder, BEST)
            state.best = None
        if outdated := self.task.outdated_scores(content):
            log.warning("%s: %s: %s and the count of stop.plateau start again", path, outdated, BEST)
            return TrainingState(state.step)
        return state


def noise_change(content: dict[str, Any], config: RunConfig) -> str | None:
    """A warning that a run goes on with noise other than that it would have had; None if it does not.

    Args:
        content: of the checkpoint.
        config: the configuration.
    """
    # Checkpoints of older versions have no `noise`.
    if config.augment.noise is None or content.get("noise", 1) == noise_lines.VERSION:
        return None
    return (
        f"augment.noise: up to step {content['step']} this run was trained by another version of fusionseg, which makes"
        " other random numbers for the noise; the run goes on with those of this version, of the same distribution"
    )


def shares_change(content: dict[str, Any], config: RunConfig, ranks: int) -> str:
    """A warning that the cases are divided over another number of ranks than before; empty if nothing changes.

    Args:
        content: of the checkpoint.
        config: the configuration of the run.
        ranks: their number now.
    """
    if config.cache.placement != "sharded" or content["ranks"] == ranks:
        return ""
    return (
        f"cache.placement: sharded divides the cases over {ranks} ranks now, and over {content['ranks']} before: from"
        f" here on the samples are others than on {content['ranks']} ranks"
    )
