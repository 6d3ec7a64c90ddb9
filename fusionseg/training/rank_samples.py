"""The samples of this rank: which ones it takes, which it took, and which cases were in the steps that failed."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.training.data import TrainingData
from fusionseg.utils.errors import TrainingStopped


class RankSamples:
    """Deals the samples of the global batch, and remembers those of the last steps."""

    def __init__(self, config: RunConfig, data: TrainingData, world: World) -> None:
        self.data = data
        self.world = world
        self.size = config.train.micro_batch
        self.max_skipped = config.train.max_skipped
        self._taken: list[range] = []
        # whether each micro-batch of the last steps was finite: for naming the cases when there are too many not
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=2 * config.train.max_skipped)

    def of(self, micro: int) -> range:
        """The samples k of the global batch that are this rank's in a micro-step.

        Rank after rank within a micro-step: the mean over a global batch is the same whoever computes its parts.
        """
        first = (micro * self.world.size + self.world.rank) * self.size
        return range(first, first + self.size)

    def take(self, micro: int) -> range:
        """The same, and they count as taken; the first micro-step begins a new step."""
        if micro == 0:
            self._taken = []
        self._taken.append(self.of(micro))
        return self._taken[-1]

    def remember(self, step: int, micro_finite: Tensor) -> None:
        """How a step went: whether the loss of each of its micro-batches was finite, on the device."""
        self._recent.append((step, micro_finite.clone()))

    def taken(self, step: int) -> list[dict[str, Any]]:
        """Case and patch origin of every sample of the last step, as each rank took them; all ranks must call it."""
        own = [entry for indices in self._taken for entry in self._describe(step, indices)]
        everywhere = [entry for part in self.world.all_gather_object(own) for entry in part]
        return sorted(everywhere, key=lambda entry: entry["sample"])

    def refuse_endless_skipping(self, in_a_row: int) -> None:
        """End the run if too many steps in a row were skipped; all ranks must call it.

        Raises:
            TrainingStopped: it names the cases.
        """
        if in_a_row < self.max_skipped:
            return
        bad_loss: set[str] = set()
        everything: set[str] = set()
        for step, finite in list(self._recent)[-in_a_row:]:
            for micro, good in enumerate(finite.tolist()):
                names = {entry["case"] for entry in self._describe(step, self.of(micro))}
                everything |= names
                bad_loss |= set() if good else names
        gathered = self.world.all_gather_object((sorted(bad_loss), sorted(everything)))
        guilty = sorted({name for part, _ in gathered for name in part})
        cases = guilty or sorted({name for _, part in gathered for name in part})
        raise TrainingStopped(
            f"{in_a_row} steps in a row had a non-finite {'loss' if guilty else 'gradient'} (train.max_skipped); the"
            f" cases in them: {', '.join(cases)}: look at these with `fusionseg check`, lower optim.lr, or set"
            " train.precision=fp32"
        )

    def _describe(self, step: int, indices: range) -> list[dict[str, Any]]:
        plan = self.data.plan.samples(step, indices)
        names = self.data.cache.names
        return [
            {"sample": k, "case": names[int(case)], "origin": origin.tolist()}
            for k, case, origin in zip(indices, plan.case_index, plan.origin, strict=True)
        ]
