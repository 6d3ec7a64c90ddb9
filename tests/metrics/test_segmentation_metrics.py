"""Dice and HD95 against MONAI and computed by hand; absent classes; means without nan."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot
from torch import Tensor

from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, hd95_per_class, nanmean_per_class
from fusionseg.utils.means import nanmean


def masks(seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (9, 8, 7), generator=generator)
    other = torch.randint(0, classes, (9, 8, 7), generator=generator)
    return torch.where(torch.rand(9, 8, 7, generator=generator) < 0.6, truth, other), truth


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_that_of_monai(seed: int) -> None:
    prediction, truth = masks(seed)
    ours = dice_per_class(confusion_matrix(prediction, truth, 4))
    theirs = compute_dice(one_hot(prediction[None, None], 4), one_hot(truth[None, None], 4), include_background=False)[
        0
    ]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-6)


def test_confusion_matrix_has_rows_of_predictions_and_columns_of_labels() -> None:
    prediction, truth = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 2, 0])
    assert confusion_matrix(prediction, truth, 3).tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 2]]
    as_bytes = confusion_matrix(prediction.to(torch.uint8), truth.to(torch.uint8), 20)  # 20 * 20 exceeds 255
    assert as_bytes.shape == (20, 20) and as_bytes.sum() == 6 and as_bytes[2, 2] == 2


def test_dice_of_absent_classes_is_nan_or_zero_if_predicted() -> None:
    truth = torch.tensor([0, 0, 1, 1])
    dice = dice_per_class(confusion_matrix(torch.tensor([0, 2, 1, 1]), truth, 4))
    assert dice[:2] == [1.0, 0.0] and isnan(dice[2])
    missed = dice_per_class(confusion_matrix(torch.tensor([0, 0, 0, 0]), truth, 2))
    assert missed == [0.0]


def test_dice_of_large_counts_is_exact() -> None:
    counts = torch.tensor([[2**40, 1], [0, 2**40]])
    assert dice_per_class(counts) == [2 * 2**40 / (2 * 2**40 + 1)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hd95_of_a_shifted_plate_is_the_shift_in_mm(spacing: tuple[float, float, float], axis: int) -> None:
    truth, prediction = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    at, moved = [slice(None)] * 3, [slice(None)] * 3
    at[axis], moved[axis] = slice(4, 5), slice(7, 8)
    truth[tuple(at)] = prediction[tuple(moved)] = 1
    assert hd95_per_class(prediction, truth, 2, spacing) == pytest.approx([3 * spacing[axis]])


def test_hd95_ignores_the_largest_five_percent() -> None:
    truth = torch.zeros(40, 40, 16, dtype=torch.uint8)
    truth[:, :, 4] = 1
    few, many = truth.clone(), truth.clone()
    few[:8, :8, 12] = 1  # 64 of 1664 surface voxels: under 5 %
    many[:16, :16, 12] = 1
    assert hd95_per_class(few, truth, 2, (1, 1, 1)) == [0.0]
    assert hd95_per_class(many, truth, 2, (1, 1, 1.5)) == pytest.approx([12.0])
    assert hd95_per_class(truth, many, 2, (1, 1, 1.5)) == pytest.approx([12.0])  # symmetric


def test_hd95_without_a_surface_is_nan() -> None:
    truth = torch.zeros(8, 8, 8, dtype=torch.uint8)
    truth[2:4, 2:4, 2:4] = 1
    prediction = truth.clone()
    prediction[6, 6, 6] = 2
    first, second, third = hd95_per_class(prediction, truth, 4, (1, 1, 1))
    assert first == 0 and isnan(second) and isnan(third)


def test_means_ignore_nan() -> None:
    cases = {"b": [0.5, nan, nan], "a": [1.0, 0.25, nan]}
    first, second, third = nanmean_per_class(cases)
    assert (first, second) == (0.75, 0.25) and isnan(third)
    assert nanmean([first, second, third]) == 0.5
    assert isnan(nanmean([])) and nanmean_per_class({}) == []


def test_mean_does_not_depend_on_the_order_of_the_cases() -> None:
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    cases = {f"c{i}": value for i, value in enumerate(values)}
    assert nanmean_per_class(dict(reversed(cases.items()))) == nanmean_per_class(cases)
    with pytest.raises(ValueError):
        nanmean_per_class({"a": [1.0], "b": [1.0, 2.0]})
