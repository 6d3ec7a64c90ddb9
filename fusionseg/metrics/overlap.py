"""Metrics of overlap and volume, computed from the numbers of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan


@dataclass(frozen=True)
class VoxelCounts:
    """Numbers of voxels of one class or region, in one case or summed over cases. Ignored voxels are left out."""

    both: int
    """Predicted and true."""
    predicted: int
    true: int

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(self.both + other.both, self.predicted + other.predicted, self.true + other.true)

    @property
    def dice(self) -> float:
        """2 both / (predicted + true); nan if both masks are empty."""
        return _ratio(2 * self.both, self.predicted + self.true)

    @property
    def iou(self) -> float:
        """Intersection over union; nan if both masks are empty."""
        return _ratio(self.both, self.predicted + self.true - self.both)

    @property
    def sensitivity(self) -> float:
        """Share of the true voxels that is predicted; nan if there is no true voxel."""
        return _ratio(self.both, self.true)

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that is true; nan if there is no predicted voxel."""
        return _ratio(self.both, self.predicted)

    @property
    def volume_similarity(self) -> float:
        """1 - |predicted - true| / (predicted + true); nan if both masks are empty."""
        total = self.predicted + self.true
        return 1 - abs(self.predicted - self.true) / total if total else nan

    def volume_ml_error(self, voxel_ml: float) -> float:
        """Predicted volume minus true volume, in ml.

        Args:
            voxel_ml: volume of a voxel, in ml.
        """
        return (self.predicted - self.true) * voxel_ml


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else nan
