"""The volumes of a data set as the network sees them: the crop, the voxel size and the median shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.section import Triple
from fusionseg.data.fingerprint.case import Box, CaseFingerprint, box_shape, box_voxels
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.planning.choices import Choice
from fusionseg.planning.modality import is_ct

SMALL_BOX = 0.75
"""nnU-Net's threshold: below this median share of the volume, the box of the non-zero voxels has an effect."""
ANISOTROPY = 3.0
"""nnU-Net's threshold: voxels and shapes that differ by more are anisotropic."""
BODY_HU = -500.0
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class PlannedVolumes:
    """The prepared volumes that a plan expects.

    Args:
        cases: the cases of the data set that can be trained on.
        spacing: voxel size in mm along x, y, z.
        shapes: voxels of each case (X, Y, Z), cropped and resampled.
        choices: the keys of the section `data` that follow.
    """

    cases: tuple[CaseFingerprint, ...]
    spacing: tuple[float, float, float]
    shapes: tuple[Triple, ...]
    choices: tuple[Choice, ...]

    @property
    def median_shape(self) -> Triple:
        """Median number of voxels along x, y, z."""
        x, y, z = (int(size) for size in np.median(np.array(self.shapes), axis=0).round())
        return x, y, z


def plan_volumes(fingerprint: Fingerprint, given: DataConfig) -> PlannedVolumes:
    """Choose the crop and the voxel size.

    Args:
        fingerprint: of the data set.
        given: the section `data` of the request; keys that it states are kept.
    """
    cases = fingerprint.labelled
    crop, boxes = _crop(fingerprint, cases, given)
    shapes = np.array([box_shape(box) for box in boxes], float)
    spacings = np.array([case.spacing_mm for case in cases], float)
    spacing, choice = _spacing(spacings, shapes, given)
    resampled = np.maximum(1, np.rint(shapes * spacings / np.array(spacing))).astype(int)
    return PlannedVolumes(cases, spacing, tuple((int(x), int(y), int(z)) for x, y, z in resampled), (choice, *crop))


def _spacing(
    spacings: np.ndarray[Any, Any], shapes: np.ndarray[Any, Any], given: DataConfig
) -> tuple[tuple[float, float, float], Choice]:
    """Choose the voxel size by the rule of nnU-Net (Isensee et al., 2021, supplementary note 2).

    It is the median of the cases. If one axis has voxels more than 3 times larger and a shape more than 3 times smaller
    than the others, its size is the 10th percentile: fewer cases are then interpolated from thick slices to thinner
    ones.
    """
    if given.spacing is not None:
        return given.spacing, Choice("data.spacing", list(given.spacing), "Given with the command.")
    target = np.median(spacings, axis=0)
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    found = f"The voxel sizes of the {len(spacings)} cases"
    if np.allclose(low, high, rtol=1e-3):
        reason = f"{found} are equal. nnU-Net's rule: their median."
    else:
        reason = f"{found} are {_mm(low)} to {_mm(high)} mm, median {_mm(target)} mm. nnU-Net's rule: their median."
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    size = np.median(np.rint(shapes * spacings / target), axis=0)
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        tenth = max(float(np.percentile(spacings[:, worst], 10)), float(target[others].max()))
        reason += (
            f" Along {AXES[worst]} voxels are more than {ANISOTROPY:g} times larger than along the other axes, and"
            f" volumes more than {ANISOTROPY:g} times shorter: there it is the 10th percentile, {tenth:.4g} mm."
        )
        target[worst] = tenth
    x, y, z = (float(f"{size:.5g}") for size in target)
    return (x, y, z), Choice("data.spacing", [x, y, z], reason)


def _crop(
    fingerprint: Fingerprint, cases: Sequence[CaseFingerprint], given: DataConfig
) -> tuple[list[Choice], list[Box]]:
    """Choose the crop, and the box of each case."""
    whole: list[Box] = [((0, case.shape[0]), (0, case.shape[1]), (0, case.shape[2])) for case in cases]
    if "crop_foreground" in given.model_fields_set:
        return [], whole
    in_hu = is_ct(fingerprint, 0)
    what = f"voxels above {BODY_HU:g} HU" if in_hu else "voxels that are not 0"
    boxes = [(case.body_box if in_hu else case.nonzero_box) or box for case, box in zip(cases, whole, strict=True)]
    share = float(np.median([box_voxels(box) / case.voxels for case, box in zip(cases, boxes, strict=True)]))
    found = f"The box of the {what} has a median of {share:.0%} of the volume"
    inside = all(
        case.foreground_box is None or _contains(box, case.foreground_box)
        for case, box in zip(cases, boxes, strict=True)
    )
    if share >= SMALL_BOX:
        return [Choice("data.crop_foreground", None, f"{found}: a crop would save little.")], whole
    negative = any(part.minimum < 0 for case in cases for part in case.whole if part is not None)
    if not in_hu and negative:
        reason = f"{found}, but a crop keeps the voxels above 0, and others are negative: there is no crop."
        return [Choice("data.crop_foreground", None, reason)], whole
    if not inside:
        reason = f"{found}, but labels reach beyond it: there is no crop, so that no label is lost."
        return [Choice("data.crop_foreground", None, reason)], whole
    crop: dict[str, Any] = {"threshold": BODY_HU if in_hu else 0.0, "margin": 4}
    if in_hu and len(fingerprint.channels) > 1:
        crop["channel"] = fingerprint.channels[0]
    reason = f"{found} and holds all labels. The crop saves memory and time; predictions have the shape of the file."
    return [Choice("data.crop_foreground", crop, reason)], boxes


def _contains(outer: Box, inner: Box) -> bool:
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))


def _mm(sizes: Sequence[float] | np.ndarray[Any, Any]) -> str:
    """Voxel sizes for a comment: 0.977 x 0.977 x 3.27."""
    return " x ".join(f"{size:.4g}" for size in sizes)
