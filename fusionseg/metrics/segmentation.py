"""Metrics of a segmentation for each foreground class: Dice and HD95, computed from class masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from fusionseg.metrics.surface import SurfaceComparison
from fusionseg.utils.means import nanmean


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count voxels by predicted and true class.

    Args:
        prediction: class indices, any integer type and shape.
        label: class indices of the same shape, on the same device.
        num_classes: K, the background included.

    Returns:
        voxel counts (K, K), int64, on the same device; rows are predicted classes, columns are true classes.

    Raises:
        ValueError: a value is no integer from 0 to K - 1. `bincount` would count it in another cell.
    """
    for name, values in (("prediction", prediction), ("label", label)):
        low, high = values.aminmax()  # the host waits for the device here; bincount waits for it anyway
        if values.is_floating_point() or low < 0 or high >= num_classes:
            raise ValueError(
                f"{name}: wrong class indices (expected integers from 0 to {num_classes - 1}, got {values.dtype} values"
                f" from {low:g} to {high:g})"
            )
    pairs = prediction.flatten().long() * num_classes + label.flatten().long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def dice_per_class(counts: Tensor, missed: Sequence[int] | None = None) -> list[float]:
    """Compute the Dice coefficient of each foreground class (Dice, Ecology 26(3), 1945, doi:10.2307/1932409).

    A class that is neither predicted nor present has no Dice (nan). A class that is predicted but not present has 0.

    Args:
        counts: confusion matrix (K, K), see `confusion_matrix`.
        missed: for each foreground class the number of true voxels that are not in `counts`, such as voxels outside
            of the cropped volume. They count as not predicted.

    Returns:
        K - 1 values from 0 to 1, or nan.
    """
    counts = counts.cpu()
    both, predicted, true = (each[1:].tolist() for each in (counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)))
    return dice_of_counts(both, predicted, true, missed)


def dice_of_counts(
    both: Sequence[int], predicted: Sequence[int], true: Sequence[int], missed: Sequence[int] | None = None
) -> list[float]:
    """Compute the Dice coefficient of each class or region from its voxel counts; see `dice_per_class`.

    Args:
        both: voxels that are predicted and true.
        predicted: predicted voxels.
        true: true voxels.
        missed: further true voxels, which count as not predicted; None for none.
    """
    missed = [0] * len(true) if missed is None else missed
    totals = [sum(sizes) for sizes in zip(predicted, true, missed, strict=True)]
    return [2 * overlap / total if total else nan for overlap, total in zip(both, totals, strict=True)]


def hd95_per_class(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """Compute the 95 % Hausdorff distance of each foreground class, in mm.

    For each direction this is the 95th percentile of the distances from the surface voxels of one mask to the surface
    of the other; the result is the larger one of the two directions (MONAI's `compute_hausdorff_distance`).

    Args:
        prediction: class indices (X, Y, Z).
        label: class indices (X, Y, Z), on the same device.
        num_classes: K, the background included.
        spacing_mm: size of a voxel along each axis, in mm.

    Returns:
        K - 1 values in mm; nan for a class that is missing in a mask, because there is no surface to measure from.
    """
    return [hd95(prediction == value, label == value, spacing_mm) for value in range(1, num_classes)]


def hd95(predicted: Tensor, true: Tensor, spacing_mm: Sequence[float]) -> float:
    """Compute the 95 % Hausdorff distance of two masks, in mm; see `hd95_per_class`.

    Args:
        predicted: bool (X, Y, Z).
        true: bool (X, Y, Z), on the same device.
        spacing_mm: size of a voxel along each axis, in mm.

    Returns:
        The distance; nan if a mask is empty.
    """
    return SurfaceComparison(predicted.cpu().numpy(), true.cpu().numpy(), spacing_mm).hd95_mm


def nanmean_per_class(cases: Mapping[str, Sequence[float]]) -> list[float]:
    """Return for each class the mean over the cases, without nan; nan if all cases are nan.

    Args:
        cases: name of a case -> one value for each class. The mean does not depend on the order of the cases: values
            are added in the order of the names.
    """
    columns = zip(*(cases[name] for name in sorted(cases)), strict=True)
    return [nanmean(column) for column in columns]
