"""Validation of a tile classification: every validation tile once, divided over the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.pathology.metrics import accuracy
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import ValidationResult

SHOWN = 8
"""Number of tiles in the picture: those whose class the network finds least probable."""


class TileValidator:
    """Classifies the validation tiles, `validate.window_batch` at a time.

    Args:
        config: of the run.
        data: of the run.
        classes: the class of each case of the cache.
        precision: of the forward pass.
        world: the ranks.
    """

    def __init__(
        self, config: RunConfig, data: TrainingData, classes: Sequence[int], precision: Precision, world: World
    ) -> None:
        self.patch = config.data.patch
        self.metrics = config.metrics
        self.batch = config.validation.window_batch
        self.data, self.classes, self.precision, self.world = data, classes, precision, world

    def __call__(self, model: nn.Module) -> ValidationResult:
        """Score a network, which is in evaluation mode and not wrapped by DDP. All ranks call it."""
        cases, names = self.data.validation_cases, self.data.scheme.names
        own = cases[self.world.rank :: self.world.size]
        parts = [
            self._probabilities(model, own[first : first + self.batch]) for first in range(0, len(own), self.batch)
        ]
        rows = np.concatenate(parts) if parts else np.zeros((0, len(names)), np.float32)
        probabilities = np.zeros((len(cases), len(names)), np.float32)
        for rank, gathered in enumerate(self.world.all_gather_object(rows)):
            probabilities[rank :: self.world.size] = gathered
        classes = np.array([self.classes[index] for index in cases])
        score = accuracy(probabilities, classes)
        further = {
            metric.shown_as: float(metric.part(probabilities, classes, **metric.args)) for metric in self.metrics
        }
        right = probabilities.argmax(axis=1) == classes
        count = Counter(classes.tolist())
        recall = {name: float(right[classes == index].mean()) for index, name in enumerate(names) if count[index]}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in {"accuracy": score, **further}.items())
        return ValidationResult(
            score=score,
            fields={"accuracy": score, **further, "recall_per_class": recall, "cases": len(cases)},
            summary=f"{shown} on {len(cases)} tiles",
            picture=self._picture(probabilities, classes) if self.world.is_rank_zero else None,
        )

    def _probabilities(self, model: nn.Module, cases: Sequence[int]) -> NDArray[np.float32]:
        """The probabilities (B, K) of some cases of the cache."""
        images = torch.stack([centre_crop(self.data.cache.volume(index)[0], self.patch) for index in cases])
        with self.precision.autocast():
            logits = model(images.to(self.world.device, torch.float32))
        found: NDArray[np.float32] = logits.float().softmax(dim=1).cpu().numpy()
        return found

    def _picture(self, probabilities: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """The tiles whose true class is least probable, side by side: (3, H, W) in [0, 1]."""
        worst = np.argsort(probabilities[np.arange(len(classes)), classes], kind="stable")[:SHOWN]
        cases = [self.data.validation_cases[row] for row in worst]
        crops = [centre_crop(self.data.cache.volume(index)[0], self.patch)[..., 0] for index in cases]
        strip = torch.cat([crop.float().cpu() for crop in crops], dim=1).clamp_(0, 1)
        drawn: NDArray[np.float32] = strip.transpose(1, 2).expand(3, -1, -1).numpy()
        return drawn


def centre_crop(image: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut the middle of an image (C, X, Y, Z) in the size of the patch, padded with zeros where the image is smaller.

    Args:
        image: of any size.
        patch: the size of the result.
    """
    for axis, size in enumerate(patch, start=1):
        surplus = image.shape[axis] - size
        if surplus > 0:
            image = image.narrow(axis, surplus // 2, size)
        elif surplus < 0:
            shape = list(image.shape)
            shape[axis] = size
            padded = image.new_zeros(shape)
            padded.narrow(axis, -surplus // 2, image.shape[axis]).copy_(image)
            image = padded
    return image
