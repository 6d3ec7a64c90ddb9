"""A small picture of each case for the page: the slice with the most foreground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import Image
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.resampling import find_reorientation

LONGEST_SIDE = 112
"""Length of the longer side of a picture, in pixels."""
NAMES_OF_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Preview:
    """A slice of a case, in few pixels of the same size in mm.

    Args:
        plane: sagittal, coronal or axial, by the patient's axes.
        shape: (W, H); the second axis points up, the patient's right is on the left.
        grey: intensities from 0 to 255 in C order.
        outputs: for each pixel the number from 1 of the last output that it belongs to, 0 for none, in C order.
    """

    plane: str
    shape: tuple[int, int]
    grey: bytes
    outputs: bytes

    @property
    def image(self) -> NDArray[np.uint8]:
        """The intensities, (W, H)."""
        return np.frombuffer(self.grey, np.uint8).reshape(self.shape)

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The outputs, (W, H)."""
        return np.frombuffer(self.outputs, np.uint8).reshape(self.shape)


def make_preview(image: Image, label: NDArray[np.uint8] | None, scheme: LabelScheme) -> Preview:
    """Make the picture of a case: perpendicular to the axis with the largest voxels, the plane of most scans.

    Args:
        image: as its files hold it, on a known grid.
        label: class indices (X, Y, Z); None shows the slice in the middle.
        scheme: of the data set.
    """
    turn, affine = find_reorientation(image.grid.affine, image.grid.shape, "RAS")
    spacing = np.array(voxel_sizes(affine))
    axis = 2 - int(np.argmax(spacing[::-1]))  # z if all are equal
    present = next((index for index, varies in enumerate(image.varies) if varies), 0)
    volume = turn(image.values[present])
    membership = scheme.membership_of_indices
    topmost = (membership * np.arange(1, len(membership) + 1)[:, None]).max(axis=0, initial=0).astype(np.uint8)
    position = volume.shape[axis] // 2
    mask = None
    if label is not None:
        drawn = turn(label)
        counts = (topmost[drawn] > 0).sum(axis=tuple(other for other in range(3) if other != axis))
        if counts.any():
            position = int(counts.argmax())
        mask = topmost[drawn.take(position, axis)]
    grey = volume.take(position, axis)
    low, high = np.percentile(grey, (1, 99))
    scaled = (np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
    pixels = _pixels(scaled.shape, np.delete(spacing, axis))
    flips = axis != 0  # x is the first axis of coronal and axial slices
    shown = [_shrink(plane, pixels, flips) for plane in (scaled, np.zeros_like(scaled) if mask is None else mask)]
    width, height = shown[0].shape
    return Preview(NAMES_OF_PLANES[axis], (width, height), shown[0].tobytes(), shown[1].tobytes())


def _pixels(shape: tuple[int, ...], spacing: NDArray[np.float64]) -> tuple[int, ...]:
    """Size of the picture of a slice whose longer side, in mm, gets at most `LONGEST_SIDE` pixels."""
    extent = np.array(shape) * spacing
    pixel_mm = max(extent.max() / LONGEST_SIDE, float(spacing.min()))
    return tuple(max(1, round(float(length) / pixel_mm)) for length in extent)


def _shrink(plane: NDArray[np.uint8], pixels: tuple[int, ...], flips: bool) -> NDArray[np.uint8]:
    """Take the nearest pixels of a slice."""
    near = [
        np.minimum(((np.arange(count) + 0.5) * size / count).astype(np.intp), size - 1)
        for size, count in zip(plane.shape, pixels, strict=True)
    ]
    shown: NDArray[np.uint8] = plane[near[0]][:, near[1]]
    return np.ascontiguousarray(shown[::-1] if flips else shown)
