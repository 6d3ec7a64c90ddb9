"""Metrics of overlap, surface distance and volume."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from torch import Tensor

from fusionseg.config.registry import metrics
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, hd95_per_class


@metrics.register("dice")
def dice(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the Dice coefficient; see `dice_per_class`."""
    return dice_per_class(confusion_matrix(prediction, label, num_classes))


@metrics.register("hd95_mm")
def hd95_mm(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the 95 % Hausdorff distance in mm; see `hd95_per_class`."""
    return hd95_per_class(prediction, label, num_classes, spacing_mm)


@metrics.register("iou")
def iou(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the intersection over union (Jaccard, 1912); nan for a class that is in neither mask."""
    counts = confusion_matrix(prediction, label, num_classes).cpu()
    both = counts.diagonal()
    union = counts.sum(dim=0) + counts.sum(dim=1) - both
    return [int(both[k]) / int(union[k]) if union[k] else nan for k in range(1, num_classes)]


@metrics.register("volume_ml_error")
def volume_ml_error(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the predicted volume minus the true volume, in ml."""
    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    return [
        (int((prediction == value).sum()) - int((label == value).sum())) * voxel_ml for value in range(1, num_classes)
    ]
