"""The loss of a validation: that of the training, over whole volumes in parts."""

from __future__ import annotations

from math import isnan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusionseg.config import validate
from fusionseg.data.labels.scheme import IGNORE
from fusionseg.losses.segmentation import PartialLabel, build_loss
from fusionseg.training.tasks.segmentation_validation import Validator

ALL = np.ones(3, np.bool_)


def validator(loss: object, patch: tuple[int, int, int]) -> Validator:
    """A validator that has what its loss needs."""
    made = object.__new__(Validator)
    made.patch, made.loss = patch, loss  # type: ignore[assignment]
    made.world = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("shape", [(20, 8, 5), (8, 8, 8), (3, 17, 9)])
def test_parts_cover_the_volume_and_count_by_their_voxels(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(3, *shape, generator=generator), torch.randint(3, shape, generator=generator)
    cross_entropy = build_loss(validate({"model": {"name": "unet"}, "loss": {"name": "cross_entropy"}}).loss)
    sizes = []

    def loss(part: Tensor, target: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[2:]))
        assert target.shape == (1, 1, *part.shape[2:]) and target.dtype == torch.int64
        return cross_entropy(part, target)

    found = validator(loss, (8, 8, 8)).loss_of_volume(logits, label.to(torch.uint8), ALL)
    assert found == pytest.approx(float(F.cross_entropy(logits[None], label[None])), rel=1e-5)
    assert max(max(size) for size in sizes) <= 8 and sum(np.prod(size) for size in sizes) == label.numel()


def test_one_part_is_the_loss_of_a_training_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(3, 6, 7, 8, generator=generator), torch.randint(3, (6, 7, 8), generator=generator)
    loss = build_loss(validate({"model": {"name": "unet"}, "loss": {"name": "dice_focal"}}).loss)
    found = validator(loss, (8, 8, 8)).loss_of_volume(logits, label, ALL)
    assert found == pytest.approx(float(loss(logits[None], label[None, None])), rel=1e-6)


def test_outputs_that_a_case_does_not_annotate_are_named() -> None:
    seen = []

    def loss(part: Tensor, target: object) -> Tensor:
        assert isinstance(target, PartialLabel)
        seen.append(target.annotated.tolist())
        return torch.ones(())

    label = torch.ones(4, 4, 4, dtype=torch.uint8)
    found = validator(loss, (4, 4, 4)).loss_of_volume(torch.zeros(3, 4, 4, 4), label, np.array([True, False, True]))
    assert found == 1 and seen == [[[True, False, True]]]


def test_a_perfect_prediction_has_no_dice_loss() -> None:
    """Seven of the eight parts are background."""
    label = torch.zeros(16, 16, 16, dtype=torch.uint8)
    label[1:6, 2:7, 1:5] = 1
    logits = 20 * F.one_hot(label.long(), 2).movedim(-1, 0).float()
    loss = build_loss(validate({"model": {"name": "unet"}, "loss": {"name": "dice_ce"}}).loss)
    made = validator(loss, (8, 8, 8))
    assert made.loss_of_volume(logits, label, ALL[:2]) == pytest.approx(0, abs=1e-4)
    assert made.loss_of_volume(-logits, label, ALL[:2]) > 10
    assert isnan(made.loss_of_volume(logits, torch.zeros_like(label), ALL[:2])), "no foreground"


@pytest.mark.parametrize("num_outputs", [3, 2])
def test_ignored_voxels_and_outputs_do_not_count(num_outputs: int) -> None:
    """The loss is 1 in the first part, half of which is ignored, and 2 in the second one; the third is ignored."""
    label = torch.ones(12, 4, 4, dtype=torch.uint8)
    label[:2] = label[8:] = IGNORE
    logits = torch.ones(num_outputs, 12, 4, 4)
    logits[:, 4:8] = 2
    made = validator(lambda part, target: part.mean(), (4, 4, 4))
    annotated = np.arange(num_outputs) > 0  # as with regions
    assert made.loss_of_volume(logits, label, annotated) == pytest.approx((32 * 1 + 64 * 2) / 96)
    assert isnan(made.loss_of_volume(logits, torch.full_like(label, IGNORE), annotated))
    assert isnan(made.loss_of_volume(logits, label, np.zeros(num_outputs, np.bool_)))
