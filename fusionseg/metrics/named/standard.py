"""Metrics of overlap, surface distance and volume."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusionseg.config.registry import metrics
from fusionseg.metrics.overlap import VoxelCounts
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, hd95_per_class
from fusionseg.metrics.surface import SurfaceComparison


@metrics.register("dice")
def dice(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the Dice coefficient; see `dice_per_class`."""
    return dice_per_class(confusion_matrix(prediction, label, num_classes))


@metrics.register("hd95_mm")
def hd95_mm(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the 95 % Hausdorff distance in mm; see `hd95_per_class`."""
    return hd95_per_class(prediction, label, num_classes, spacing_mm)


@metrics.register("assd_mm")
def assd_mm(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the average symmetric surface distance in mm; nan for a class that is missing in a mask."""
    return [surfaces.assd_mm for surfaces in _surfaces(prediction, label, num_classes, spacing_mm)]


@metrics.register("nsd")
def nsd(
    prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> list[float]:
    """Compute the normalised surface Dice at a tolerance in mm; nan for a class that is in neither mask."""
    return [surfaces.nsd(tolerance_mm) for surfaces in _surfaces(prediction, label, num_classes, spacing_mm)]


@metrics.register("iou")
def iou(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the intersection over union; nan for a class that is in neither mask."""
    return [counts.iou for counts in _counts(prediction, label, num_classes)]


@metrics.register("sensitivity")
def sensitivity(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the share of the true voxels that is predicted; nan for a class that is not in the label."""
    return [counts.sensitivity for counts in _counts(prediction, label, num_classes)]


@metrics.register("precision")
def precision(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute the share of the predicted voxels that is true; nan for a class that is not predicted."""
    return [counts.precision for counts in _counts(prediction, label, num_classes)]


@metrics.register("volume_similarity")
def volume_similarity(prediction: Tensor, label: Tensor, num_classes: int) -> list[float]:
    """Compute 1 - |P - T| / (P + T) of the two volumes; nan for a class that is in neither mask."""
    return [counts.volume_similarity for counts in _counts(prediction, label, num_classes)]


@metrics.register("volume_ml_error")
def volume_ml_error(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the predicted volume minus the true volume, in ml."""
    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    return [counts.volume_ml_error(voxel_ml) for counts in _counts(prediction, label, num_classes)]


def _counts(prediction: Tensor, label: Tensor, num_classes: int) -> list[VoxelCounts]:
    """The voxel counts of each foreground class."""
    table = confusion_matrix(prediction, label, num_classes).cpu()
    sums = table.diagonal().tolist(), table.sum(dim=1).tolist(), table.sum(dim=0).tolist()
    return [VoxelCounts(*each) for each in zip(*sums, strict=True)][1:]


def _surfaces(
    prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]
) -> list[SurfaceComparison]:
    """The surfaces of each foreground class."""
    arrays = prediction.cpu().numpy(), label.cpu().numpy()
    masks = ((arrays[0] == value, arrays[1] == value) for value in range(1, num_classes))
    return [SurfaceComparison(predicted, true, spacing_mm) for predicted, true in masks]
