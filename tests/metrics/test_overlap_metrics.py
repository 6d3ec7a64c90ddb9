"""Overlap and volume against MONAI and against sets of voxels; definitions of all metrics."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
import torch
from mask_pairs import Mask, mask_pairs
from monai.metrics import compute_iou
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
from torch import Tensor

from fusionseg.config import validate
from fusionseg.config.registry import metrics
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.definitions import DEFAULT_METRICS, DEFINITIONS, definition_of
from fusionseg.metrics.overlap import VoxelCounts

PAIRS = list(mask_pairs())
NAMES = ["iou", "sensitivity", "precision", "volume_similarity", "volume_ml_error"]
SPACING = (0.7, 1.1, 3.0)


def one_hot(mask: Mask) -> Tensor:
    return torch.from_numpy(np.stack([~mask, mask])[None]).float()


def by_sets(name: str, predicted: Mask, true: Mask) -> float:
    """The metric from sets of voxels, by its definition."""
    ours, theirs = (set(map(tuple, np.argwhere(mask))) for mask in (predicted, true))
    parts = {
        "iou": (len(ours & theirs), len(ours | theirs)),
        "sensitivity": (len(ours & theirs), len(theirs)),
        "precision": (len(ours & theirs), len(ours)),
        "volume_similarity": (2 * min(len(ours), len(theirs)), len(ours) + len(theirs)),
    }
    if name == "volume_ml_error":
        return (len(ours) - len(theirs)) * 0.7 * 1.1 * 3.0 / 1000
    part, whole = parts[name]
    return part / whole if whole else nan


def by_monai(name: str, predicted: Mask, true: Mask) -> float:
    pair = one_hot(predicted), one_hot(true)
    if name == "iou":
        return float(compute_iou(*pair, include_background=False)[0, 0])
    matrix = get_confusion_matrix(*pair, include_background=False)
    return float(compute_confusion_matrix_metric(name, matrix)[0, 0])


@pytest.mark.parametrize(("name", "predicted", "true"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_overlap_is_that_of_monai_and_of_the_sets_of_voxels(name: str, predicted: Mask, true: Mask) -> None:
    config = validate({"model": {"name": "unet"}, "metrics": NAMES})
    ours = {
        title: metric(torch.from_numpy(predicted.astype(np.uint8)), torch.from_numpy(true.astype(np.int64)), 2, SPACING)
        for title, metric in build_metrics(config.metrics).items()
    }
    for metric in NAMES:
        assert ours[metric] == [pytest.approx(by_sets(metric, predicted, true), abs=1e-9, nan_ok=True)], metric
    for metric in ("iou", "sensitivity", "precision"):
        # MONAI gives nan, too, for the IoU of a class that is predicted and not there; the share of the union is 0.
        if not (metric == "iou" and not true.any()):
            expected = by_monai(metric, predicted, true)
            assert ours[metric] == [pytest.approx(expected, abs=1e-6, nan_ok=True)], metric


def test_two_classes_are_scored_each_against_the_rest() -> None:
    prediction, label = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 2, 0])
    config = validate({"model": {"name": "unet"}, "metrics": NAMES})
    found = {name: metric(prediction, label, 4, (1, 1, 1)) for name, metric in build_metrics(config.metrics).items()}
    assert found["sensitivity"][:2] == [1, pytest.approx(2 / 3)] and isnan(found["sensitivity"][2])
    assert found["precision"][:2] == [1 / 2, pytest.approx(2 / 3)]
    assert found["volume_similarity"][:2] == [pytest.approx(2 / 3), 1]


def test_counts_add_up_to_those_of_all_cases() -> None:
    total = VoxelCounts(1, 2, 3) + VoxelCounts(0, 4, 1)
    assert total == VoxelCounts(1, 6, 4)
    assert (total.dice, total.iou, total.sensitivity, total.precision) == (2 / 10, 1 / 9, 1 / 4, 1 / 6)


def test_each_metric_has_one_definition() -> None:
    assert set(DEFAULT_METRICS) <= set(DEFINITIONS)
    assert set(metrics.names()) <= set(DEFINITIONS), "a metric that a configuration can name has a definition"
    for name, definition in DEFINITIONS.items():
        assert definition.name == name and definition.text and definition.absent
        assert set(definition.to_json({"tolerance_mm": 1.0})) == {
            "text",
            "unit",
            "higher_is_better",
            "absent",
            "source",
            "parameters",
        }


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("dice", "dice"),
        ("dice_per_class.liver (prepared)", "dice"),
        ("hd95_mm (files)", "hd95_mm"),
        ("psnr_hidden (prepared)", "psnr_hidden"),
        ("total_s", None),
        ("my_metric", None),
        ("metrics.iou.mean (prepared)", "iou"),
    ],
)
def test_a_column_of_a_table_has_the_definition_of_its_metric(column: str, name: str | None) -> None:
    found = definition_of(column)
    assert (found and found.name) == name


def test_the_direction_of_a_metric_is_known() -> None:
    better = {name: DEFINITIONS[name].higher_is_better for name in ("dice", "nsd", "hd95_mm", "assd_mm")}
    assert better == {"dice": True, "nsd": True, "hd95_mm": False, "assd_mm": False}
    assert DEFINITIONS["volume_ml_error"].higher_is_better is None
