"""The loss of a validation: that of the training, over whole volumes in parts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusionseg.config import validate
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

    label = torch.zeros(4, 4, 4, dtype=torch.uint8)
    found = validator(loss, (4, 4, 4)).loss_of_volume(torch.zeros(3, 4, 4, 4), label, np.array([True, False, True]))
    assert found == 1 and seen == [[[True, False, True]]]
