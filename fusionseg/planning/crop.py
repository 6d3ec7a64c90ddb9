"""The crop of the volumes to their foreground, and the box that it leaves of each case."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.data.preprocessing import CropForegroundConfig, channel_key
from fusionseg.data.fingerprint.case import Box, CaseFingerprint, box_voxels
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.planning.choices import Choice
from fusionseg.planning.modality import SMALL_BOX, is_ct

BODY_HU = -500.0
"""Threshold of `CaseFingerprint.body_box`."""
MARGIN = 4
"""Voxels around the box, after the resampling."""


def plan_crop(
    fingerprint: Fingerprint, cases: Sequence[CaseFingerprint], given: DataConfig, spacing: Sequence[float]
) -> tuple[Choice, list[Box]]:
    """Choose the crop.

    Args:
        fingerprint: of the data set.
        cases: the cases that can be trained on.
        given: the section `data` of the request; a crop that it states is kept.
        spacing: voxel size in mm after the resampling, which the margin is in.

    Returns:
        The choice, and the voxels of each case's file that remain.
    """
    key, whole = "data.crop_foreground", [_whole(case) for case in cases]
    crop = _candidate(fingerprint, given)
    if crop is None:
        return Choice(key, None, "Given with the command."), whole
    boxes = [
        _grown(box, case, crop.margin, spacing)
        for case, box in zip(cases, _boxes_above(fingerprint, cases, crop), strict=True)
    ]
    share = float(np.median([box_voxels(box) / case.voxels for case, box in zip(cases, boxes, strict=True)]))
    pairs = [(box, case.foreground_box) for case, box in zip(cases, boxes, strict=True)]
    losing = sum(labels is not None and not _contains(box, labels) for box, labels in pairs)
    value = crop.model_dump(mode="json")
    if "crop_foreground" in given.model_fields_set:
        return Choice(key, value, _given_reason(share, losing, len(cases))), boxes
    in_hu = crop.threshold == BODY_HU
    what = f"voxels above {BODY_HU:g} HU" if in_hu else "voxels that are not 0"
    found = f"The box of the {what}, with {MARGIN} voxels around it, has a median of {share:.0%} of the volume"
    if share >= SMALL_BOX:
        return Choice(key, None, f"{found}: a crop would save little."), whole
    if not in_hu and any(part.minimum < 0 for case in cases for part in case.whole if part is not None):
        reason = f"{found}, but a crop keeps the voxels above 0, and others are negative: there is no crop."
        return Choice(key, None, reason), whole
    if losing:
        reason = f"{found}, but labels reach beyond it: there is no crop, so that no label is lost."
        return Choice(key, None, reason), whole
    reason = f"{found} and holds all labels. The crop saves memory and time; predictions have the shape of the file."
    return Choice(key, value, reason), boxes


def _candidate(fingerprint: Fingerprint, given: DataConfig) -> CropForegroundConfig | None:
    """The crop that is given with the command, or the one that a plan may choose; None if the command excludes a crop.

    Args:
        fingerprint: of the data set.
        given: the section `data` of the request.
    """
    if "crop_foreground" in given.model_fields_set:
        return given.crop_foreground
    if not is_ct(fingerprint, 0):
        return CropForegroundConfig(threshold=0.0, margin=MARGIN)
    channel = {"channel": fingerprint.channels[0]} if len(fingerprint.channels) > 1 else {}
    return CropForegroundConfig(threshold=BODY_HU, margin=MARGIN, **channel)


def _boxes_above(fingerprint: Fingerprint, cases: Sequence[CaseFingerprint], crop: CropForegroundConfig) -> list[Box]:
    """The smallest box that is known to hold all voxels above the threshold of a crop, without its margin, by case.

    A fingerprint has the boxes above -500 HU and of the voxels that are not 0. For other thresholds it is one of these
    or the whole volume, which is larger than the box of the crop.

    Args:
        fingerprint: of the data set.
        cases: some of its cases.
        crop: the crop.
    """
    names = [channel_key(name) for name in fingerprint.channels]
    channel = 0 if len(names) == 1 else None
    if crop.channel is not None and channel_key(crop.channel) in names:
        channel = names.index(channel_key(crop.channel))
    boxes = []
    for case in cases:
        known = [_whole(case)]
        if channel is None or case.whole[channel] is not None:  # without its channel, a case is not cropped
            known += [case.body_box] if case.body_box and channel == 0 and crop.threshold >= BODY_HU else []
            known += [case.nonzero_box] if case.nonzero_box and crop.threshold >= 0 else []
        boxes.append(min(known, key=box_voxels))
    return boxes


def _given_reason(share: float, losing: int, cases: int) -> str:
    reason = (
        f"Given with the command. Of the volume a median of at most {share:.0%} remains, and the patch follows it."
        if share < 1
        else "Given with the command. The fingerprint knows no box of this threshold that is smaller than the volume."
    )
    return reason + (f" Labels of {losing} of {cases} cases reach beyond it, and are lost." if losing else "")


def _grown(box: Box, case: CaseFingerprint, margin: int, spacing: Sequence[float]) -> Box:
    """A box with the margin of a crop, which is in resampled voxels."""
    sides = []
    for (start, stop), length, size, target in zip(box, case.shape, case.spacing_mm, spacing, strict=True):
        more = ceil(margin * target / size)
        sides.append((max(0, start - more), min(length, stop + more)))
    return sides[0], sides[1], sides[2]


def _whole(case: CaseFingerprint) -> Box:
    return (0, case.shape[0]), (0, case.shape[1]), (0, case.shape[2])


def _contains(outer: Box, inner: Box) -> bool:
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))
