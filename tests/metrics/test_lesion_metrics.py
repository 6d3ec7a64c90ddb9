"""Lesions against scikit-image's components, MONAI's panoptic counts and every possible matching."""

from __future__ import annotations

from itertools import permutations
from math import isnan

import numpy as np
import pytest
import torch
from mask_pairs import SHAPE, SPACINGS, Mask, blobs, mask_pairs
from monai.metrics.panoptic_quality import compute_panoptic_quality
from skimage.measure import label

from fusionseg.metrics.lesions import detect_lesions

PAIRS = [*mask_pairs(), *((f"small{seed}", blobs(seed, share=0.08), blobs(seed + 9, share=0.1)) for seed in range(4))]


def components(mask: Mask) -> list[set[tuple[int, ...]]]:
    numbers = label(mask, connectivity=3)
    return [set(map(tuple, np.argwhere(numbers == number))) for number in range(1, numbers.max() + 1)]


def best_matching(predicted: Mask, true: Mask, min_iou: float) -> tuple[float, list[tuple[int, int]]] | None:
    """The sum of IoUs of the best one-to-one matching, by trying them all; None if there are too many."""
    ours, theirs = components(predicted), components(true)
    if max(len(ours), len(theirs)) > 7:
        return None
    ious = [[len(t & p) / len(t | p) for p in ours] for t in theirs]
    size = max(len(ours), len(theirs))
    table = np.zeros((size, size))
    for row, values in enumerate(ious):
        table[row, : len(values)] = [value if value > min_iou else 0 for value in values]
    best = max(permutations(range(size)), key=lambda order: sum(table[row, k] for row, k in enumerate(order)))
    pairs = [(row, column) for row, column in enumerate(best) if table[row, column] > 0]
    return sum(table[pair] for pair in pairs), pairs


@pytest.mark.parametrize("min_iou", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("name", "predicted", "true"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_lesions_are_matched_as_well_as_possible(name: str, predicted: Mask, true: Mask, min_iou: float) -> None:
    found = detect_lesions(predicted, true, (1, 1, 1), min_iou=min_iou)
    ours, theirs = components(predicted), components(true)
    assert sorted(one.volume_ml * 1000 for one in found.lesions if one.is_true) == pytest.approx(
        sorted(map(len, theirs))
    )
    assert sorted(one.volume_ml * 1000 for one in found.lesions if not one.is_true) == pytest.approx(
        sorted(map(len, ours))
    )
    matched = [one for one in found.lesions if one.is_true and one.is_matched]
    assert len(matched) == sum(one.is_matched for one in found.lesions if not one.is_true)
    assert all(one.dice == pytest.approx(2 * one.iou / (1 + one.iou)) for one in found.lesions)
    best = best_matching(predicted, true, min_iou)
    if best is not None:
        assert sum(one.iou for one in matched) == pytest.approx(best[0], abs=1e-9)
        count = len(best[1])
        expected = count / len(theirs) if theirs else float("nan")
        assert found.sensitivity == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert found.false_positives == len(ours) - count
        total = len(ours) + len(theirs)
        assert found.f1 == pytest.approx(2 * count / total if total else float("nan"), abs=1e-9, nan_ok=True)
    if min_iou == 0.5 and (ours or theirs):  # above one half there is one matching, and MONAI counts it
        instances = [torch.from_numpy(label(mask, connectivity=3).astype(np.int64)) for mask in (predicted, true)]
        counts = compute_panoptic_quality(*instances, remap=False, output_confusion_matrix=True).tolist()
        assert counts[:3] == [len(matched), found.false_positives, len(theirs) - len(matched)]
        assert counts[3] == pytest.approx(sum(one.iou for one in matched), abs=1e-5)


def test_one_large_prediction_over_two_lesions_finds_one() -> None:
    true, predicted = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    true[2:4, 2:5, 2:5] = true[6:8, 2:4, 2:4] = True
    predicted[2:8, 2:5, 2:5] = True
    found = detect_lesions(predicted, true, (1, 1, 1), min_iou=0.1)
    assert (found.sensitivity, found.false_positives, found.f1) == (0.5, 0, pytest.approx(2 / 3))
    (first, second, _) = found.lesions
    assert first.iou == 18 / 54 and second.iou == 0 and first.centre == (2.5, 3, 3)
    assert found.mean_dice == pytest.approx(0.5 * 36 / 72)
    assert isnan(detect_lesions(predicted, true & False, (1, 1, 1), min_iou=0.1).sensitivity)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_small_lesions_are_left_out_of_both_masks(spacing: tuple[float, float, float]) -> None:
    voxel_ml = float(np.prod(spacing)) / 1000
    true, predicted = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    true[2, 2, 2:5] = true[8:10, 5:7, 5:7] = predicted[12, 10, 8:10] = predicted[8:10, 5:7, 5] = True
    everything = detect_lesions(predicted, true, spacing, min_iou=0.1)
    assert (everything.sensitivity, everything.false_positives) == (0.5, 1)
    large = detect_lesions(predicted, true, spacing, min_iou=0.1, min_ml=4 * voxel_ml)
    assert (large.sensitivity, large.false_positives, len(large.lesions)) == (1, 0, 2)
    assert [one.volume_ml for one in large.lesions] == pytest.approx([8 * voxel_ml, 4 * voxel_ml])


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    true = np.zeros(SHAPE, bool)
    true[3, 3, 3] = true[4, 4, 4] = true[6, 6, 6] = True
    assert len(detect_lesions(true & False, true, (1, 1, 1), min_iou=0.1).lesions) == 2
