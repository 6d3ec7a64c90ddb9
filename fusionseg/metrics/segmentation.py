"""What a segmentation is worth: overlap and surface distance, per class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import isnan, nan
from statistics import fmean

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor


def confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(K, K) voxel counts on the tensors' device, row the predicted class, column the true one.

    Raises:
        ValueError: a value names no class: it would be counted into another cell.
    """
    for what, values in (("prediction", prediction), ("label", label)):
        low, high = values.aminmax()  # bincount waits for the device as well
        if values.is_floating_point() or low < 0 or high >= num_classes:
            raise ValueError(
                f"the {what} holds {values.dtype} values from {low:g} to {high:g}"
                f" (expected whole numbers from 0 to {num_classes - 1})"
            )
    pairs = prediction.flatten().long() * num_classes + label.flatten().long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def dice_per_class(counts: Tensor, missed: Sequence[int] | None = None) -> list[float]:
    """Dice (1945) of the foreground classes from a confusion matrix.

    A class that is neither predicted nor there has no Dice (nan); one that is predicted but not there has 0.

    Args:
        missed: of each foreground class, voxels that are there outside of what was counted.
    """
    counts = counts.cpu()
    both = counts.diagonal()
    total = counts.sum(dim=0) + counts.sum(dim=1)
    if missed is not None:
        total[1:] += torch.tensor(missed, dtype=total.dtype)
    return [nan if total[k] == 0 else 2 * int(both[k]) / int(total[k]) for k in range(1, len(counts))]


def hd95_per_class(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
    """95th percentile of the symmetric surface distance in mm, of the foreground classes of (X, Y, Z) masks.

    nan where the class is missing in either mask: there is no surface to measure from.
    """
    distances = []
    for value in range(1, num_classes):
        ours, theirs = prediction == value, label == value
        if not ours.any() or not theirs.any():
            distances.append(nan)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of an argument that MONAI itself passes
            _, directed, _ = get_edge_surface_distance(
                ours, theirs, spacing=[float(size) for size in spacing_mm], symmetric=True
            )
        # In float64: torch's quantile weighs neighbours in float32, and takes 16 million values at most.
        distances.append(max(float(np.percentile(one.cpu().numpy().astype(np.float64), 95)) for one in directed))
    return distances


def mean_by_class(cases: Mapping[str, Sequence[float]]) -> list[float]:
    """Per class the mean over the cases that have a value, taken in the order of their names."""
    columns = zip(*(cases[name] for name in sorted(cases)), strict=True)
    return [mean_of_known(column) for column in columns]


def mean_of_known(values: Sequence[float]) -> float:
    """The mean without the nan's; nan if nothing is left."""
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else nan
