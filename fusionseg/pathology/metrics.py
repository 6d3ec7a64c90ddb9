"""Metrics of a classification: functions of probabilities (N, K) and class indices (N,), for the key `metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Probabilities = NDArray[np.floating[Any]]
Classes = NDArray[np.integer[Any]]


def accuracy(probabilities: Probabilities, classes: Classes) -> float:
    """Share of the images whose most probable class is the true one.

    Args:
        probabilities: (N, K).
        classes: (N,), the true class of each image.
    """
    return float((probabilities.argmax(axis=1) == classes).mean())


def balanced_accuracy(probabilities: Probabilities, classes: Classes) -> float:
    """Mean over the classes of the share of their images that are recognised. The arguments are those of `accuracy`."""
    right = probabilities.argmax(axis=1) == classes
    return float(np.mean([right[classes == value].mean() for value in np.unique(classes)]))


def auc(probabilities: Probabilities, classes: Classes) -> float:
    """Area under the receiver operating characteristic, from ranks (Hanley and McNeil, 1982); ties count one half.

    With two classes it is that of the second one. With more, it is the mean over the classes, each against the others.
    The arguments are those of `accuracy`.

    Returns:
        nan if the images are of one class.
    """
    values = [1] if probabilities.shape[1] == 2 else [int(value) for value in np.unique(classes)]
    areas = [_area(probabilities[:, value], classes == value) for value in values]
    return float(np.mean(areas))


def _area(scores: Probabilities, positive: NDArray[np.bool_]) -> float:
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    ranks: NDArray[np.float64] = rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
