"""The sliding windows over a volume, in order along one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import torch.nn.functional as F
from torch import Tensor, cat

Box = tuple[slice, slice, slice]
Shape = tuple[int, int, int]
Segment = tuple[int, int]
"""The first row of a segment, and the row after its last one; see `WindowLayout`."""


def whole_box(shape: Shape) -> Box:
    """The box of all voxels of a volume.

    Args:
        shape: of the volume.
    """
    x, y, z = (slice(0, size) for size in shape)
    return x, y, z


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """The first voxels of the windows along an axis, as MONAI lays them; the last window ends with the axis.

    Args:
        size: voxels along the axis; a shorter axis than the window is padded to it.
        patch: size of a window, in voxels.
        overlap: overlap of neighbouring windows, as a share of the window.
    """
    if size <= patch:
        return [0]
    interval = max(1, int(patch * (1 - overlap)))
    return [min(start, size - patch) for start in range(0, size - patch + interval, interval)]


@dataclass(frozen=True)
class WindowLayout:
    """The windows over a volume, and the rows that they close.

    A row is a plane of voxels across `axis`. A segment is a range of rows between two neighbouring first or last rows
    of windows, so that a window covers whole segments.
    """

    shape: Shape
    """Of the volume."""
    patch: Shape
    starts: tuple[list[int], list[int], list[int]]
    """The first voxels of the windows along each axis of the padded volume."""
    axis: int
    descending: bool
    """Whether the windows with the last rows come first."""

    @classmethod
    def of(
        cls, shape: Shape, patch: Sequence[int], overlap: float, axis: int = 0, *, descending: bool = False
    ) -> WindowLayout:
        """Lay windows over a volume.

        Args:
            shape: of the volume.
            patch: size of a window, in voxels.
            overlap: overlap of neighbouring windows, as a share of the window.
            axis: the axis along which the windows are in order.
            descending: begin with the last rows.
        """
        x, y, z = (window_starts(size, edge, overlap) for size, edge in zip(shape, patch, strict=True))
        return cls(shape, (patch[0], patch[1], patch[2]), (x, y, z), axis, descending)

    @property
    def padded(self) -> Shape:
        """The shape of the volume after padding to the size of a window."""
        x, y, z = (max(size, edge) for size, edge in zip(self.shape, self.patch, strict=True))
        return x, y, z

    @property
    def before(self) -> Shape:
        """The padding before the first voxel of each axis."""
        x, y, z = ((padded - size) // 2 for padded, size in zip(self.padded, self.shape, strict=True))
        return x, y, z

    @property
    def count(self) -> int:
        """The number of windows."""
        return prod(map(len, self.starts))

    @property
    def segments(self) -> list[Segment]:
        """The segments in the order in which they are closed."""
        edges = {edge for start in self.starts[self.axis] for edge in (start, start + self.patch[self.axis])}
        found = list(pairwise(sorted(edges)))
        return found[::-1] if self.descending else found

    def open_rows(self, batch: int) -> int:
        """The largest number of rows that are open at the same time.

        Args:
            batch: windows in one forward pass.
        """
        edge, starts = self.patch[self.axis], self.starts[self.axis]
        together = self._starts_together(batch)
        spans = (starts[min(first + together, len(starts)) - 1] - start for first, start in enumerate(starts))
        return edge + max(spans)

    def steps(self, batch: int) -> Iterator[tuple[list[Box], list[Segment]]]:
        """The windows in order, in groups that start at the same row, and the segments that each group closes.

        Windows of several starts are in one group if there are fewer windows across the axis than in a forward pass.

        Args:
            batch: windows in one forward pass.
        """
        ordered = self.starts[self.axis][:: -1 if self.descending else 1]
        together = self._starts_together(batch)
        segments = self.segments
        for first in range(0, len(ordered), together):
            following = ordered[first + together : first + together + 1]
            closed = [segment for segment in segments if not following or self._is_passed(segment, following[0])]
            segments = segments[len(closed) :]
            yield list(self._windows(ordered[first : first + together])), closed

    def _windows(self, starts: Sequence[int]) -> Iterator[Box]:
        """The windows that start at some rows, row by row."""
        x, y, z = (sorted(starts) if axis == self.axis else self.starts[axis] for axis in range(3))
        for corner in sorted(product(x, y, z), key=lambda corner: starts.index(corner[self.axis])):
            i, j, k = (slice(start, start + edge) for start, edge in zip(corner, self.patch, strict=True))
            yield i, j, k

    def _is_passed(self, segment: Segment, start: int) -> bool:
        """Tell whether the windows that start at a row, and those after them, lie beyond a segment."""
        return segment[0] >= start + self.patch[self.axis] if self.descending else segment[1] <= start

    def pad(self, image: Tensor, background: Sequence[float]) -> Tensor:
        """Pad an image to the size of a window.

        Args:
            image: (C, X, Y, Z).
            background: the intensity of each channel outside the volume.
        """
        if self.padded == self.shape:
            return image
        pads: list[int] = []
        for size, padded, front in reversed(list(zip(self.shape, self.padded, self.before, strict=True))):
            pads += [front, padded - size - front]
        return cat([F.pad(channel[None], pads, value=level) for channel, level in zip(image, background, strict=True)])

    def _starts_together(self, batch: int) -> int:
        """The number of starts along the axis whose windows share a forward pass."""
        return max(1, batch // (self.count // len(self.starts[self.axis])))
