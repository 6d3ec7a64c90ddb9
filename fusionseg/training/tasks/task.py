"""What a run trains for: a segmentation, or the pre-training of an encoder. The engine is the same for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Outcome:
    """What a validation came to, the same on every rank (but the picture, which rank 0 has)."""

    score: float
    """What best.pt is chosen by; higher is better, nan is unknown."""
    fields: dict[str, Any]
    """Of the val record."""
    summary: str
    """For the log."""
    picture: NDArray[np.float32] | None
    """(3, H, W) in [0, 1]."""


class Task(Protocol):
    """What the trainer asks of a task. The network and the loss are in `fusionseg.training.network`."""

    measure: str
    """Name of the score."""

    def batch(self, step: int, indices: range) -> tuple[tuple[Tensor, ...], Any]:
        """Samples `indices` of the global batch of `step`, on the device: what the network is called with, and the
        target that the loss compares its output with."""

    def validate(self, model: nn.Module) -> Outcome:
        """Validate; all ranks must call it. `model` is the bare network, not its DDP wrapper."""
