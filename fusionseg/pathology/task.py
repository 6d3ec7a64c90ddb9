"""The task of pathology tiles: one class for each tile."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionseg.config.parts.task import TaskInfo
from fusionseg.training.tasks.task import Task
from fusionseg.utils.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionseg.config import RunConfig
    from fusionseg.distributed.world import World
    from fusionseg.training.data import TrainingData
    from fusionseg.training.precision import Precision
    from fusionseg.training.tasks.task import BatchFunction, Inputs, Loss, ValidationFunction


class TileClassification(Task):
    """Classification of tiles. The class of a tile is the value of its column `data.target`.

    The section `model` names a 2D network: images (B, C, X, Y) to logits (B, K). Tiles that are larger than
    `data.patch` are cropped: at random places in the training, in the middle otherwise.

    Args:
        config: of the run.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al., 2016).
    """

    info = TaskInfo("tile classification", score="accuracy", needs_target=True, gives_values=True)

    def __init__(self, config: RunConfig, label_smoothing: float = 0.0) -> None:
        super().__init__(config)
        self.label_smoothing = label_smoothing
        problems = []
        if config.data.patch[2] != 1:
            patch = list(config.data.patch)
            problems.append(f"data.patch: expected one slice, such as [96, 96, 1], got {patch}; change it")
        problems += [
            f"metrics.{index}: {metric.name} compares masks; name a function of probabilities and classes, such as"
            " fusionseg.pathology.metrics:auc, or remove it"
            for index, metric in enumerate(config.metrics)
            if ":" not in metric.name or inspect.isclass(metric.part)
        ]
        if problems:
            raise UserError(problems)

    def build_network(self, in_channels: int, out_channels: int, *, checkpoint_activations: bool = False) -> nn.Module:
        """Build the 2D network of the section `model`, for volumes of one slice.

        Raises:
            UserError: the data set names no classes.
        """
        from fusionseg.models import build_model
        from fusionseg.pathology.networks import OfSlices

        if out_channels < 2:
            raise UserError(
                "data.labels: the data set names no classes (expected at least two); name them, such as"
                " data.labels=[normal,tumour]"
            )
        network = build_model(
            self.config.model,
            in_channels=in_channels,
            out_channels=out_channels,
            patch=self.config.data.patch,
            checkpoint_activations=checkpoint_activations,
        )
        return OfSlices(network)

    def build_loss(self) -> Loss:
        """Build the cross-entropy of logits (B, K) and classes (B,)."""
        from torch.nn import functional as F

        return lambda logits, classes: F.cross_entropy(logits.float(), classes, label_smoothing=self.label_smoothing)

    def example(self, in_channels: int) -> tuple[Inputs, Tensor]:
        """An image (B, C, X, Y, 1) and classes (B,)."""
        import torch

        batch = self.config.train.micro_batch_samples
        return (torch.empty(batch, in_channels, *self.config.data.patch),), torch.zeros(batch, dtype=torch.int64)

    def build_batches(self, data: TrainingData, world: World) -> BatchFunction:
        """Tiles of a step and their classes."""
        import numpy as np

        from fusionseg.data.loading.transfer import send

        classes = np.array(class_indices(data))

        def batch(step: int, indices: range) -> tuple[Inputs, Tensor]:
            image, _ = data.batch(step, indices)
            return (image,), send(classes[data.case_indices(step, indices)], world.device)

        return batch

    def build_validation(self, data: TrainingData, precision: Precision, world: World) -> ValidationFunction:
        """Classify the validation tiles; the score is the accuracy."""
        from fusionseg.pathology.validation import TileValidator

        return TileValidator(self.config, data, class_indices(data), precision, world)

    def predicted_values(self, model: nn.Module, image: Tensor) -> Mapping[str, str | int | float]:
        """The most probable class of a tile, and the probability of each class."""
        from fusionseg.pathology.validation import centre_crop

        assert self.scheme is not None
        classes = self.scheme.names
        logits = model(centre_crop(image[0], self.config.data.patch)[None])
        probabilities = [round(value, 6) for value in logits.float().softmax(dim=1)[0].tolist()]
        named = {f"probability {name}": value for name, value in zip(classes, probabilities, strict=True)}
        return {"class": classes[probabilities.index(max(probabilities))], **named}


def class_indices(data: TrainingData) -> list[int]:
    """The index of the class of each case in the cache.

    Raises:
        UserError: a class is not among the names of the data set.
    """
    names = data.scheme.names
    found = [data.target(index) for index in range(len(data.cache))]
    if unknown := sorted(set(found) - set(names)):
        raise UserError(
            f"data.target: {unknown[0]!r} is no class of the data set; {suggest(unknown[0], names)}; correct the"
            " column, or data.labels"
        )
    return [names.index(name) for name in found]
