"""A real training on the pretended GPU, and the operators of its steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusionseg.config import RunConfig
from fusionseg.observability.ranges import PHASES, annotate
from fusionseg.performance.pretended_gpu.device import pretended_gpu
from fusionseg.performance.pretended_gpu.operator_count import OperatorCount, Operators
from fusionseg.performance.pretended_gpu.ranks import pretended_ranks
from fusionseg.runs.cases.opening import open_cases
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.training.start import build_trainer
from fusionseg.training.trainer import Trainer

_OF_DATA = ("data", "augment")
# One mode for all runs of a process: torch refuses fake tensors of two modes in one operator, and modules may cache
# tensors for the life of the process, as the layout of attention windows does.
_FAKE_TENSORS = FakeTensorMode(allow_non_fake_inputs=True)


@dataclass
class PretendedRun:
    """A training on the pretended GPU."""

    trainer: Trainer
    waits: list[str] = field(default_factory=list)
    """The places of calls that waited for the device (`torch.cuda.synchronize`). A read value raises instead."""

    def step(self) -> Operators:
        """Train one step; return its operators.

        Raises:
            DataDependentOutputException: the step reads a value from the device, and would wait for it.
        """
        with counting() as count:
            self.trainer.train_one_step()
        return count.operators

    def data(self, step: int) -> Operators:
        """Make the micro-batches of a step; return the operators.

        Args:
            step: the number of the step, from 0.
        """
        with counting() as count:
            for _ in self.trainer.micro_batches.of_step(step):
                pass
        return count.operators


@contextmanager
def pretended_run(config: RunConfig, capability: tuple[int, int] = (9, 0), ranks: int = 1) -> Iterator[PretendedRun]:
    """Build a training on the pretended GPU.

    Args:
        config: the configuration, with `device: cuda`. Its data set must be prepared: the preparation starts processes.
        capability: compute capability of the GPU.
        ranks: number of ranks, each with a GPU of its own. One of them runs here.
    """
    waits: list[str] = []
    level = logging.getLogger("fusionseg").level
    logging.getLogger("fusionseg").setLevel(logging.WARNING)
    try:
        with pretended_gpu(capability, waits), pretended_ranks(ranks, torch.device("cuda", 0)) as world:
            folder = RunFolder(run_folder_of(config))
            cases = open_cases(config, folder)
            with _FAKE_TENSORS:
                yield PretendedRun(build_trainer(config, world, folder, cases), waits)
    finally:
        logging.getLogger("fusionseg").setLevel(level)


@contextmanager
def counting() -> Iterator[OperatorCount]:
    """Count operators by the phases that the training opens (`annotate`)."""
    count = OperatorCount()
    opened: list[str] = []
    enter, leave = annotate.__enter__, annotate.__exit__

    def entered(self: annotate) -> None:
        enter(self)
        opened.append(count.phase)
        if self.name in PHASES:
            count.phase = "data" if self.name in _OF_DATA else self.name

    def left(self: annotate, *error: object) -> None:
        count.phase = opened.pop()
        leave(self, *error)  # type: ignore[arg-type]

    with patch.object(annotate, "__enter__", entered), patch.object(annotate, "__exit__", left), count:
        yield count
