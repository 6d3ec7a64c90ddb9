"""The volumes of a data set as the network sees them: the crop, the voxel size and the median shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.section import Triple
from fusionseg.data.fingerprint.case import CaseFingerprint, box_shape
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.planning.choices import Choice
from fusionseg.planning.crop import plan_crop

ANISOTROPY = 3.0
"""nnU-Net's threshold: voxels and shapes that differ by more are anisotropic."""
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
    spacings = np.array([case.spacing_mm for case in cases], float)
    # The margin of a crop is in resampled voxels, so that a first voxel size is chosen without the crop.
    spacing, _ = _spacing(spacings, np.array([case.shape for case in cases], float), given)
    crop, boxes = plan_crop(fingerprint, cases, given, spacing)
    shapes = np.array([box_shape(box) for box in boxes], float)
    spacing, choice = _spacing(spacings, shapes, given)
    resampled = np.maximum(1, np.rint(shapes * spacings / np.array(spacing))).astype(int)
    return PlannedVolumes(cases, spacing, tuple((int(x), int(y), int(z)) for x, y, z in resampled), (choice, crop))


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


def _mm(sizes: Sequence[float] | np.ndarray[Any, Any]) -> str:
    """Voxel sizes for a comment: 0.977 x 0.977 x 3.27."""
    return " x ".join(f"{size:.4g}" for size in sizes)
