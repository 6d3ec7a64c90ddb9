"""Steps that were skipped because the loss or the gradient was not finite, and the cases in them."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from fusionseg.distributed.world import World
from fusionseg.training.micro_batches import MicroBatches
from fusionseg.utils.errors import TrainingStopped


class SkippedSteps:
    """Ends a run in which too many steps in a row were skipped."""

    def __init__(self, micro_batches: MicroBatches, world: World, max_skipped: int) -> None:
        """Args:
        micro_batches: names the cases of a step.
        world: the ranks.
        max_skipped: number of skipped steps in a row that ends the run.
        """
        self.micro_batches = micro_batches
        self.world = world
        self.max_skipped = max_skipped
        # Twice `max_skipped` steps are kept, because the count of skipped steps is not read on every step.
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=2 * max_skipped)

    def add(self, step: int, micro_finite: Tensor) -> None:
        """Note whether the loss of each micro-batch of a step was finite. The flags stay on the device."""
        self._recent.append((step, micro_finite.clone()))

    def check(self, skipped_in_a_row: int) -> None:
        """End the run if too many steps in a row were skipped. All ranks call it.

        Raises:
            TrainingStopped: too many were skipped; the message names the cases in them.
        """
        if skipped_in_a_row < self.max_skipped:
            return
        not_finite: set[str] = set()
        all_cases: set[str] = set()
        for step, finite in list(self._recent)[-skipped_in_a_row:]:
            for micro, good in enumerate(finite.tolist()):
                samples = self.micro_batches.describe(step, self.micro_batches.indices(micro))
                names = {sample["case"] for sample in samples}
                all_cases |= names
                not_finite |= set() if good else names
        gathered = self.world.all_gather_object((sorted(not_finite), sorted(all_cases)))
        by_loss = sorted({name for part, _ in gathered for name in part})
        cases = by_loss or sorted({name for _, part in gathered for name in part})
        raise TrainingStopped(
            f"{skipped_in_a_row} steps in a row had a non-finite {'loss' if by_loss else 'gradient'}"
            f" (train.max_skipped); the cases in them: {', '.join(cases)}: look at these with `fusionseg check`, lower"
            " optim.lr, or set train.precision=fp32"
        )
