"""The measurements of one case.

All geometry is in the order of the patient's axes: x from left to right, y from back to front, z from feet to head
(`data.orientation: RAS`), whatever the order of the voxels in the file is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

LEVELS = (0.0, 0.1, 0.5, 1.0, 2.0, *(5.0 * step for step in range(1, 20)), 98.0, 99.0, 99.5, 99.9, 100.0)
"""Percentiles that `Intensities.quantiles` holds."""

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and end (the last voxel + 1) along x, y, z."""


@dataclass(frozen=True)
class Intensities:
    """Raw intensities of a set of voxels of one channel.

    Args:
        voxels: number of voxels that the values are of.
        mean: of the voxels.
        deviation: standard deviation of the voxels.
        quantiles: the percentiles of `LEVELS`.
    """

    voxels: int
    mean: float
    deviation: float
    quantiles: tuple[float, ...]

    def percentile(self, level: float) -> float:
        """A percentile.

        Args:
            level: one of `LEVELS`.
        """
        return self.quantiles[LEVELS.index(level)]

    @property
    def minimum(self) -> float:
        """The lowest intensity."""
        return self.quantiles[0]

    @property
    def percentile_00_5(self) -> float:
        """The 0.5th percentile."""
        return self.percentile(0.5)

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentile(50.0)

    @property
    def percentile_99_5(self) -> float:
        """The 99.5th percentile."""
        return self.percentile(99.5)

    @property
    def maximum(self) -> float:
        """The highest intensity."""
        return self.quantiles[-1]


@dataclass(frozen=True)
class AnnotationGap:
    """Slices without annotation between two annotated slices of the same structure.

    The masks of the two slices overlap: a structure that ends and another one that begins are no gap.

    Args:
        axis: 0, 1, 2 for x, y, z: slices are perpendicular to it.
        start: index of the first slice of the gap.
        stop: index of the last slice + 1.
    """

    axis: int
    start: int
    stop: int

    @property
    def slices(self) -> int:
        """Number of slices without annotation."""
        return self.stop - self.start


@dataclass(frozen=True)
class OutputMeasurement:
    """One output of a case: a foreground class, or a region.

    Args:
        voxels: their number; 0 if the case does not have it.
        volume_mm3: of these voxels.
        components: number of connected components, where voxels that share a corner are connected.
        largest_component: voxels of the largest of them.
        box: around all voxels; None without any.
        gaps: slices that may have been forgotten in the annotation.
    """

    voxels: int
    volume_mm3: float
    components: int
    largest_component: int
    box: Box | None
    gaps: tuple[AnnotationGap, ...] = ()


@dataclass(frozen=True)
class CaseFingerprint:
    """The measurements of one training case.

    Args:
        name: of the case.
        shape: number of voxels (X, Y, Z).
        spacing_mm: voxel size along x, y, z.
        orientation: directions of the voxel axes in the file, such as LPS.
        stored_types: data types of the numbers in the image files, one for each file.
        nonzero_box: around the voxels that are not 0 in at least one channel; None if there are none.
        nonzero_voxels: their number.
        body_box: around the voxels above -500 in the first channel, for volumes with values below -500: the patient
            and the table of a CT; None for other volumes.
        foreground_box: around all voxels that belong to an output; None without any.
        whole: intensities of all voxels of each channel, without the value that more than half of them have; None for
            a channel that the case lacks.
        foreground: intensities of the voxels that belong to an output, for each channel; None for a channel that the
            case lacks, and for all channels without such voxels.
        outputs: name of the output -> measurement, in the order of the data set's outputs. Empty without a label;
            outputs that the case does not annotate are left out.
        labelled: True if the case has a label.
        ignored_voxels: number of voxels that are not annotated.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    stored_types: tuple[str, ...]
    nonzero_box: Box | None
    nonzero_voxels: int
    body_box: Box | None
    foreground_box: Box | None
    whole: tuple[Intensities | None, ...]
    foreground: tuple[Intensities | None, ...]
    outputs: dict[str, OutputMeasurement] = field(default_factory=dict)
    labelled: bool = False
    ignored_voxels: int = 0

    @property
    def voxels(self) -> int:
        """Number of voxels of the volume."""
        return prod(self.shape)

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Extent of the volume along x, y, z."""
        x, y, z = (count * size for count, size in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def nonzero_share(self) -> float:
        """Size of `nonzero_box` relative to the volume: nnU-Net normalises within it if the median is below 3/4."""
        return 0.0 if self.nonzero_box is None else box_voxels(self.nonzero_box) / self.voxels


def box_voxels(box: Box) -> int:
    """Number of voxels in a box."""
    return prod(box_shape(box))


def box_shape(box: Box) -> tuple[int, int, int]:
    """Number of voxels of a box along x, y, z."""
    x, y, z = (stop - start for start, stop in box)
    return x, y, z
