"""Validation of a segmentation: whole volumes by sliding window, divided over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, isnan, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.scheme import IGNORE
from fusionseg.data.preprocessing.lost_foreground import missed_voxels
from fusionseg.data.preprocessing.resampling import find_reorientation
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.losses.segmentation import PartialLabel, Target, build_loss
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.outputs import OutputComparison, masks_of
from fusionseg.metrics.segmentation import nanmean_per_class
from fusionseg.observability.case_pictures import IGNORED, draw_case
from fusionseg.observability.pictures import topmost
from fusionseg.observability.progress import with_progress
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.sliding_window import count_windows, predict_logits
from fusionseg.utils.means import nanmean

_MOST_DICE = 6
"""Number of classes whose Dice is in the title of the picture."""


@dataclass(frozen=True)
class SegmentationScores:
    """The scores, the same on every rank, and the picture of the first validation case, which rank 0 has."""

    cases: dict[str, list[float]]
    """Dice of each output by case; nan where it is neither in the label nor predicted, or not annotated."""
    picture: NDArray[np.uint8] | None
    """RGB, (H, W, 3): three planes with label and prediction; see `draw_case`."""
    metrics: dict[str, list[float]]
    """Name of each configured metric but Dice -> the mean over the cases, for each output."""
    loss: float
    """The mean over the cases of the loss, see `Validator.loss_of_volume`; nan if no case has one."""

    @property
    def per_class(self) -> list[float]:
        """The mean over the cases, for each output."""
        return nanmean_per_class(self.cases)

    @property
    def dice(self) -> float:
        """The mean of `per_class`."""
        return nanmean(self.per_class)


class Validator:
    """Scores a network on validation cases of the cache."""

    def __init__(
        self,
        data: TrainingData,
        config: RunConfig,
        precision: Precision,
        world: World,
    ) -> None:
        self.data = data
        self.cache = data.cache
        self.case_indices = data.validation_cases
        self.patch = config.data.patch
        self.settings = config.validation
        self.fills_batches = config.train.compile is not False
        self.scheme = data.scheme
        self.precision = precision
        self.world = world
        windows = {
            index: count_windows(data.cache.records[index].shape, self.patch, self.settings.overlap)
            for index in data.validation_cases
        }
        self._own = assign_to_ranks(windows, world.size)[world.rank]
        self.loss = build_loss(config.loss, data.scheme)
        self.metrics = build_metrics([metric for metric in config.metrics if metric.name != "dice"])

    def __call__(self, model: nn.Module) -> SegmentationScores:
        """Score a network, which is in evaluation mode and not wrapped by DDP. All ranks call it."""
        own: dict[str, list[float]] = {}
        own_losses: dict[str, float] = {}
        own_metrics: dict[str, dict[str, list[float]]] = {}
        picture: NDArray[np.uint8] | None = None
        for index in with_progress("validating", self._own, shown=self.world.is_rank_zero):
            image, label = self.cache.volume(index)
            record = self.cache.records[index]
            logits = self._predict_logits(model, image, record.background)
            annotated = self.data.annotated_by(index)
            own_losses[self.cache.names[index]] = self.loss_of_volume(logits, label, annotated)
            prediction = logits > 0 if self.scheme.sigmoid else logits.argmax(dim=0)
            del logits
            compared = OutputComparison(prediction, label.to(prediction.device), self.scheme, annotated)
            name_of_case = self.cache.names[index]
            own[name_of_case] = compared.dice(missed_voxels(record, self.scheme.membership))
            own_metrics[name_of_case] = {
                name: compared.measure(metric, record.spacing) for name, metric in self.metrics.items()
            }
            if index == self.case_indices[0]:
                picture = self._draw(index, image, prediction, label, own[name_of_case])
        gathered = self.world.all_gather_object((own, own_metrics, own_losses))
        cases = {name: dice for part, _, _ in gathered for name, dice in part.items()}
        measured = {name: values for _, part, _ in gathered for name, values in part.items()}
        losses = {name: loss for _, _, part in gathered for name, loss in part.items()}
        metrics = {
            metric: nanmean_per_class({name: values[metric] for name, values in measured.items()})
            for metric in self.metrics
        }
        # In the order of the data set: the sum must not depend on the number of ranks.
        names = [self.cache.names[index] for index in self.case_indices]
        return SegmentationScores(cases, picture, metrics, nanmean(losses[name] for name in names))

    def loss_of_volume(self, logits: Tensor, label: Tensor, annotated: NDArray[np.bool_]) -> float:
        """Compute the training's loss over a volume: the mean over parts of at most the patch's size.

        Each part counts by its annotated voxels. A part at a time keeps the memory of the loss at that of a training
        sample. Parts without foreground are left out: the Dice loss of a class that is not in a part is about 1 for a
        perfect prediction too.

        Args:
            logits: (K, X, Y, Z).
            label: class indices (X, Y, Z).
            annotated: whether the case annotates each output.

        Returns:
            The loss; nan if no part has annotated foreground.
        """
        if not annotated.any():
            return nan
        device = self.world.device
        total = torch.zeros((), device=device)
        weight = 0
        for part in product(*(_parts(size, edge) for size, edge in zip(label.shape, self.patch, strict=True))):
            known = label[part] != IGNORE
            if not (known & (label[part] > 0)).any():
                continue
            voxels = int(known.sum())
            labels = label[part].to(device).long()[None, None]
            target: Target = labels
            if not annotated.all():
                target = PartialLabel(labels, torch.from_numpy(annotated[None]).to(device))
            total += self.loss(logits[:, *part][None].to(device), target) * voxels
            weight += voxels
        return float(total) / weight if weight else nan

    def _predict_logits(self, model: nn.Module, image: Tensor, background: tuple[float, ...]) -> Tensor:
        """Predict the logits (K, X, Y, Z)."""
        return predict_logits(
            model,
            image,
            background,
            self.patch,
            self.settings,
            self.precision,
            device=self.world.device,
            stitch_device=self._stitch_device(image),
            fills_batches=self.fills_batches,
        )

    def _stitch_device(self, image: Tensor) -> torch.device:
        """Choose the device for the logits of a volume: the GPU, if 3 copies take under half of its free memory."""
        device = self.world.device
        if device.type != "cuda":
            return device
        needed = 3 * 4 * self.scheme.num_outputs * image[0].numel()
        # Memory that torch's allocator holds and does not use is free too. After training steps most free memory is of
        # this kind.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return device if needed < (torch.cuda.mem_get_info(device)[0] + held) / 2 else torch.device("cpu")

    def _draw(
        self, index: int, image: Tensor, prediction: Tensor, label: Tensor, dice: Sequence[float]
    ) -> NDArray[np.uint8]:
        """Draw the first channel of a case with its label and prediction, see `draw_case`."""
        record = self.cache.records[index]
        shown, truth = prediction.to(torch.uint8).cpu().numpy(), label.cpu().numpy()
        if self.scheme.sigmoid:
            drawn = topmost(np.stack([masks.numpy() for masks in masks_of(label.cpu(), self.scheme)]))
            shown, truth = topmost(shown.astype(np.bool_)), np.where(truth == IGNORE, IGNORED, drawn)
        turn, affine = find_reorientation(np.array(record.affine), record.shape, "RAS")
        known = [
            f"{name} {value:.3f}"
            for name, value in zip(self.scheme.output_names, dice, strict=True)
            if not isnan(value)
        ]
        more = f" and {len(known) - _MOST_DICE} more" if len(known) > _MOST_DICE else ""
        return draw_case(
            turn(image[0].float().cpu().numpy()),
            turn(truth),
            turn(shown),
            voxel_sizes(affine),
            self.scheme.output_names,
            f"{self.cache.names[index]}, Dice on the prepared grid: {', '.join(known[:_MOST_DICE]) or 'none'}{more}",
        )


def _parts(size: int, edge: int) -> list[slice]:
    """Divide an axis into parts of nearly equal size, none larger than an edge of the patch."""
    count = ceil(size / edge)
    borders = [size * index // count for index in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(borders)]
