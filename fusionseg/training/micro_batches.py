"""The micro-batches of a rank: which samples of the global batch they hold, and which they held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fusionseg.distributed.world import World
from fusionseg.observability.ranges import annotate
from fusionseg.observability.stream_timer import StreamTimer
from fusionseg.training.data import TrainingData
from fusionseg.training.tasks.task import BatchFunction


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward and backward pass, on the device."""

    inputs: tuple[Tensor, ...]
    """Arguments of the network's forward pass."""
    target: Any
    """The loss compares the network's output with it."""
    seed: int
    """Seed of the random numbers that the network itself draws, such as dropout."""


class MicroBatches:
    """Makes the micro-batches of this rank, step by step."""

    def __init__(
        self,
        batch: BatchFunction,
        data: TrainingData,
        world: World,
        *,
        micro_batch: int,
        accumulation_steps: int,
        channels_last: bool = False,
        stream_step: Callable[[int], int] = lambda step: step,
    ) -> None:
        """Args:
        batch: the function of the task that makes samples.
        data: the data of the run.
        world: the ranks.
        micro_batch: samples of a micro-batch.
        accumulation_steps: micro-batches of a step on each rank.
        channels_last: convert the image, the first input, to the channels-last layout.
        stream_step: the step of the sample stream whose samples a step has, see `LossSpikes`.
        """
        self.batch = batch
        self.data = data
        self.world = world
        self.micro_batch = micro_batch
        self.accumulation_steps = accumulation_steps
        self.channels_last = channels_last
        self.stream_step = stream_step
        self._taken: list[range] = []
        self.timer = StreamTimer(enabled=world.device.type == "cuda")

    def of_step(self, step: int) -> Iterator[MicroBatch]:
        """Make the micro-batches of a step; each is made when it is asked for."""
        self._taken = []
        step = self.stream_step(step)
        for micro in range(self.accumulation_steps):
            with annotate("data", micro), self.timer:
                indices = self.indices(micro)
                self.data.expect(self._from(step, micro))
                self._taken.append(indices)
                (image, *others), target = self.batch(step, indices)
                if self.channels_last:
                    image = image.contiguous(memory_format=torch.channels_last_3d)
                made = MicroBatch((image, *others), target, self.data.plan.network_seed(step, indices.start))
            yield made

    def _from(self, step: int, micro: int) -> Iterator[tuple[int, range]]:
        """Yield step and indices of this micro-batch and of all after it."""
        for later in count(step):
            for index in range(micro if later == step else 0, self.accumulation_steps):
                yield later, self.indices(index)

    def indices(self, micro: int) -> range:
        """Return the indices k, in the global batch, of this rank's samples in a micro-step.

        In each micro-step the ranks take consecutive samples. So the global batch is the same for any number of ranks.
        """
        first = (micro * self.world.size + self.world.rank) * self.micro_batch
        return range(first, first + self.micro_batch)

    def describe(self, step: int, indices: range) -> list[dict[str, Any]]:
        """Return index, case and patch origin (voxels) of some samples of a step."""
        plan = self.data.plan.samples(self.stream_step(step), indices)
        names = self.data.cache.names
        return [
            {"sample": k, "case": names[int(case)], "origin": origin.tolist()}
            for k, case, origin in zip(indices, plan.case_index, plan.origin, strict=True)
        ]

    def last_samples(self, step: int) -> list[dict[str, Any]]:
        """Return `describe` of all samples that all ranks took in the last step. All ranks call it."""
        own = [sample for indices in self._taken for sample in self.describe(step, indices)]
        everywhere = [sample for part in self.world.all_gather_object(own) for sample in part]
        return sorted(everywhere, key=lambda sample: sample["sample"])
