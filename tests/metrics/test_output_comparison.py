"""Scores of regions, with ignored voxels and outputs that a case does not annotate, against those of plain masks."""

from __future__ import annotations

from math import isnan, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusionseg.config import validate
from fusionseg.data.labels.scheme import IGNORE, LabelScheme, Region
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.outputs import OutputComparison, masks_of
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, hd95_per_class

CLASSES = LabelScheme.of_names(["background", "oedema", "necrosis", "live"]).classes
PLAIN = LabelScheme(CLASSES)
REGIONS = LabelScheme(CLASSES, 9, (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2)))
SPACING = (1.0, 2.0, 0.5)
METRICS = ["iou", "volume_ml_error", "hd95_mm", "monai.metrics:MeanIoU"]


def metrics() -> Any:
    config = validate({"model": {"name": "unet"}, "metrics": METRICS})
    return build_metrics(config.metrics)


def random_masks() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randint(0, 4, (2, 6, 7, 5), generator=generator, dtype=torch.uint8))  # type: ignore[return-value]


def scores(compared: OutputComparison) -> list[list[float]]:
    measured = [compared.measure(metric, SPACING) for metric in metrics().values()]
    return [compared.dice(), compared.hd95_mm(SPACING), *measured]


def test_classes_without_anything_special_have_the_scores_of_their_masks() -> None:
    prediction, label = random_masks()
    compared = OutputComparison(prediction, label, PLAIN)
    assert compared.ignored == 0
    assert compared.dice() == dice_per_class(confusion_matrix(prediction, label, 4))
    assert compared.dice([5, 0, 0]) == dice_per_class(confusion_matrix(prediction, label, 4), [5, 0, 0])
    assert compared.hd95_mm(SPACING) == hd95_per_class(prediction, label, 4, SPACING)
    for metric in metrics().values():
        assert compared.measure(metric, SPACING) == metric(prediction, label.long(), 4, SPACING)
    assert compared.counts.true == tuple(int((label == k).sum()) for k in (1, 2, 3))
    assert compared.counts.predicted == tuple(int((prediction == k).sum()) for k in (1, 2, 3))


def test_each_region_has_the_scores_of_its_binary_masks() -> None:
    prediction, label = random_masks()
    masks = torch.stack([prediction >= 1, prediction >= 2])
    truth = [label >= 1, label >= 2]
    assert all(torch.equal(one, two) for one, two in zip(masks_of(label, REGIONS), truth, strict=True))
    compared = OutputComparison(masks, label, REGIONS)
    binary = LabelScheme.of_names(["background", "region"])
    alone = [
        scores(OutputComparison(mask.to(torch.uint8), true, binary)) for mask, true in zip(masks, truth, strict=True)
    ]
    assert scores(compared) == [[one, two] for (one,), (two,) in zip(*alone, strict=True)]
    assert compared.counts.both == tuple(int((mask & true).sum()) for mask, true in zip(masks, truth, strict=True))


@pytest.mark.parametrize("scheme", [PLAIN, REGIONS], ids=["classes", "regions"])
def test_ignored_voxels_change_no_score(scheme: LabelScheme) -> None:
    prediction, label = random_masks()
    label[:3] = IGNORE
    outcomes = []
    for seed in range(2):  # other predictions under the ignored voxels
        prediction[:3] = torch.randint(0, 4, (3, 7, 5), generator=torch.Generator().manual_seed(seed))
        given = prediction if scheme is PLAIN else torch.stack(list(masks_of(prediction, REGIONS)))
        compared = OutputComparison(given, label, scheme)
        assert compared.ignored == 3 * 7 * 5
        outcomes.append((scores(compared), compared.counts))
    assert outcomes[0] == outcomes[1]
    cropped = OutputComparison(given[..., 3:, :, :], label[3:], scheme)
    assert cropped.dice() == compared.dice() and cropped.counts == compared.counts
    empty = OutputComparison(given, torch.full_like(label, IGNORE), scheme)
    assert all(isnan(value) for value in empty.dice()) and not any(empty.counts.predicted)


def test_an_output_that_is_not_annotated_has_no_score() -> None:
    prediction, label = random_masks()
    masks = torch.stack(list(masks_of(prediction, REGIONS)))
    whole = OutputComparison(masks, label, REGIONS)
    part = OutputComparison(masks, label, REGIONS, np.array([False, True]))
    for ours, all_known in zip(scores(part), scores(whole), strict=True):
        assert isnan(ours[0]) and ours[1] == all_known[1]
    classes = OutputComparison(prediction, label, PLAIN, np.array([True, False, True]))
    assert all(isnan(each[1]) and each[0] == each[0] for each in scores(classes))
    assert REGIONS.annotated_outputs(("core",)).tolist() == [False, True]
    assert REGIONS.annotated_outputs(None).tolist() == [True, True]
    assert nan not in whole.dice()


def test_a_label_with_an_unknown_class_is_refused() -> None:
    prediction, label = random_masks()
    label[0, 0, 0] = 7
    with pytest.raises(ValueError, match="wrong class indices"):
        _ = OutputComparison(torch.stack(list(masks_of(prediction, REGIONS))), label, REGIONS).counts
