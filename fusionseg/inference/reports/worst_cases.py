"""Properties of the cases of an evaluation, and those that the worst cases have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, prod
from statistics import median

import numpy as np
from numpy.typing import NDArray

from fusionseg.inference.reports.evaluated_cases import LabelledVolume
from fusionseg.observability.case_pictures import IGNORED
from fusionseg.observability.planes import Box, bounding_box

RIM_MM = 5.0
"""Thickness of the rim around the foreground that its contrast is measured against."""
MIN_CASES = 6
"""Fewest cases for a comparison of the worst with the others."""

PROPERTIES: Mapping[str, str] = {
    "foreground_ml": "foreground in the reference (ml)",
    "components": "connected parts of the foreground",
    "contrast": f"contrast to a rim of {RIM_MM:g} mm (deviations of the rim)",
    "at_border": "foreground at the border of the volume (1: yes)",
    "largest_voxel_mm": "longest edge of a voxel (mm)",
    "voxel_mm3": "volume of a voxel (mm³)",
    "volume_ml": "whole volume (ml)",
}
"""Name of each property, and its text for a table."""


def properties_of(case: LabelledVolume) -> dict[str, float]:
    """Measure the properties of a case, by the keys of `PROPERTIES`; nan where there is no foreground.

    Args:
        case: image and label.
    """
    from scipy.ndimage import label as connected  # slow to import

    foreground = (case.label > 0) & (case.label != IGNORED)
    voxel_mm3 = prod(case.spacing_mm)
    found = {
        "largest_voxel_mm": max(case.spacing_mm),
        "voxel_mm3": voxel_mm3,
        "volume_ml": foreground.size * voxel_mm3 / 1000,
        "foreground_ml": int(foreground.sum()) * voxel_mm3 / 1000,
        "components": nan,
        "contrast": nan,
        "at_border": nan,
    }
    if not foreground.any():
        return found
    box = bounding_box(foreground)
    found["components"] = float(connected(foreground[box.slices], np.ones((3, 3, 3)))[1])
    # An axis of one or two voxels is no border: a plane of a 2D data set always touches it.
    found["at_border"] = float(
        any(
            size > 2 and (low == 0 or high == size)
            for low, high, size in zip(box.low, box.high, foreground.shape, strict=True)
        )
    )
    found["contrast"] = _contrast(case, foreground, box)
    return found


def _contrast(case: LabelledVolume, foreground: NDArray[np.bool_], box: Box) -> float:
    """Distance of the means of foreground and rim, in standard deviations of the rim."""
    from scipy.ndimage import distance_transform_edt

    margin = [int(np.ceil(RIM_MM / mm)) for mm in case.spacing_mm]
    part = tuple(
        slice(max(0, low - space), high + space) for low, high, space in zip(box.low, box.high, margin, strict=True)
    )
    inside, image = foreground[part], case.image[part]
    distance = distance_transform_edt(~inside, sampling=case.spacing_mm)
    rim = (distance > 0) & (distance <= RIM_MM) & (case.label[part] == 0)
    deviation = float(image[rim].std()) if rim.any() else 0.0
    if deviation == 0:
        return nan
    return abs(float(image[inside].mean()) - float(image[rim].mean())) / deviation


@dataclass(frozen=True)
class Comparison:
    """A property in the worst cases and in the others. It describes these cases, and tests nothing."""

    name: str
    """A key of `PROPERTIES`."""
    worst: float
    """The median of the worst cases; nan if none has the property."""
    others: float
    """The median of the other cases."""
    correlation: float
    """Spearman's rank correlation of the property with the Dice over all cases; nan if one of them is constant."""
    cases: int
    """Number of cases that have the property."""


def compare_worst(
    dice: Mapping[str, float], properties: Mapping[str, Mapping[str, float]], worst: Sequence[str]
) -> list[Comparison]:
    """Compare the properties of the worst cases with those of the others.

    Args:
        dice: mean Dice by case.
        properties: `properties_of` by case.
        worst: names of the worst cases.

    Returns:
        The properties that differ between the cases, those with the strongest correlation first; none for fewer than
        `MIN_CASES` cases.
    """
    names = [name for name in dice if name in properties]
    if len(names) < MIN_CASES:
        return []
    found = []
    for key in PROPERTIES:
        known = {name: properties[name][key] for name in names if not isnan(properties[name][key])}
        low = [value for name, value in known.items() if name in worst]
        high = [value for name, value in known.items() if name not in worst]
        if low and high and len(set(known.values())) > 1:
            correlation = spearman(list(known.values()), [dice[name] for name in known])
            found.append(Comparison(key, median(low), median(high), correlation, len(known)))
    return sorted(found, key=lambda one: 0.0 if isnan(one.correlation) else -abs(one.correlation))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, with mean ranks for equal values; nan if a side is constant or has under 3 values.

    Args:
        first: values.
        second: as many values.
    """
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return nan
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return mean
