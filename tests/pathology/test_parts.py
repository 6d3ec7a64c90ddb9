"""Metrics and network of the classification, and the middle of a tile."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from fusionseg.pathology.metrics import accuracy, auc, balanced_accuracy
from fusionseg.pathology.networks import OfSlices, TileNet
from fusionseg.pathology.validation import centre_crop


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.integers(0, 6, 40) / 6, rng.integers(0, 2, 40)  # with ties
    pairs = list(product(scores[classes == 1], scores[classes == 0]))
    expected = np.mean([1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs])
    assert auc(np.stack([1 - scores, scores], axis=1), classes) == pytest.approx(expected)


def test_auc_of_three_classes_is_the_mean_over_them() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    areas = [auc(np.stack([1 - column, column], axis=1), np.arange(4) % 3 == value)
             for value, column in enumerate(probabilities.T)]  # fmt: skip
    assert auc(probabilities, np.arange(4) % 3) == pytest.approx(np.mean(areas))


def test_auc_of_one_class_is_unknown() -> None:
    assert np.isnan(auc(np.full((3, 2), 0.5), np.ones(3, int)))


def test_accuracies() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    classes = np.array([0, 0, 0, 1])
    assert (accuracy(probabilities, classes), balanced_accuracy(probabilities, classes)) == (1, 1)
    assert accuracy(probabilities, 1 - classes) == 0
    assert balanced_accuracy(probabilities, np.array([0, 0, 1, 1])) == 0.75


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_network_gives_a_logit_for_each_class(size: tuple[int, int]) -> None:
    network = OfSlices(TileNet(3, 4, channels=(6, 8), blocks=2)).eval()
    volumes = torch.rand(2, 3, *size, 1)
    logits = network(volumes)
    assert logits.shape == (2, 4)
    assert torch.allclose(logits[:1], network(volumes[:1]), atol=1e-6)  # independent of the batch


def test_middle_is_cut_or_padded() -> None:
    image = torch.arange(1.0, 31).view(1, 6, 5, 1)
    assert torch.equal(centre_crop(image, (2, 3, 1)), image[:, 2:4, 1:4])
    padded = centre_crop(image, (8, 3, 1))
    assert torch.equal(padded[:, 1:7], image[:, :, 1:4]) and not padded[:, [0, 7]].any()
