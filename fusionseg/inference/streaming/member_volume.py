"""A prepared volume and the network that predicts it, as rows of logits with their way to the original grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.data.preprocessing.volume import Volume
from fusionseg.inference.streaming.chunks import MemberRows
from fusionseg.inference.streaming.grid_map import GridMap, grid_map
from fusionseg.inference.streaming.logits import Network, StreamSettings, stream_logits
from fusionseg.inference.streaming.row_buffer import RowBuffer
from fusionseg.inference.streaming.window_layout import Box, Shape, WindowLayout, whole_box, window_starts


def original_to_prepared(volume: Volume) -> NDArray[np.float64]:
    """The 4x4 mapping from a voxel of the original grid to a voxel of the prepared volume."""
    mapping: NDArray[np.float64] = np.linalg.inv(volume.affine) @ volume.original_affine
    return mapping


@dataclass(frozen=True)
class MemberVolume:
    """A volume that was prepared for a network."""

    volume: Volume
    network: Network
    patch: Shape
    overlap: float
    """Of neighbouring windows, as a share of the window."""
    batch: int
    """Windows in one forward pass."""
    copies: int = 1
    """Arrays of the size of the logits of a forward pass that `network` holds at the same time."""

    @property
    def shape(self) -> Shape:
        """The shape of the prepared volume."""
        _, x, y, z = self.volume.image.shape
        return x, y, z

    @cached_property
    def mapping(self) -> NDArray[np.float64]:
        """The result of `original_to_prepared`."""
        return original_to_prepared(self.volume)

    @cached_property
    def grid(self) -> GridMap:
        """The way to the original grid."""
        return grid_map(self.mapping, self.shape, self.volume.original_shape)

    def longest_axis(self) -> int:
        """The axis of the original grid along which the open rows take the least memory."""
        shares = [edge / max(size, edge) for size, edge in zip(self.shape, self.patch, strict=True)]
        return int(np.abs(self.mapping[int(np.argmin(shares)), :3]).argmax())

    @property
    def scale(self) -> float:
        """Voxels of the prepared volume for one of the original grid."""
        return float(abs(np.linalg.det(self.mapping[:3, :3])))

    def layout(self, axis: int, box: Box | None = None) -> WindowLayout:
        """The windows in order along an axis of the original grid.

        Args:
            axis: of the original grid.
            box: a part of the prepared volume; None means all of it.
        """
        along = self.mapping[:3, axis]
        prepared = int(np.abs(along).argmax())
        x, y, z = self.shape if box is None else (side.stop - side.start for side in box)
        return WindowLayout.of((x, y, z), self.patch, self.overlap, prepared, descending=bool(along[prepared] < 0))

    def rows(self, slab: Box | None, axis: int, settings: StreamSettings) -> MemberRows:
        """Begin the stream of the rows that cover a slab of the original grid.

        Args:
            slab: a box of the original grid; None means all of it.
            axis: the axis of the original grid along which the rows are in order.
            settings: the settings of the stream.
        """
        box = self.box_of_windows(slab)
        x, y, z = box
        image = torch.from_numpy(np.ascontiguousarray(self.volume.image[:, x, y, z]))
        layout = self.layout(axis, box)
        stream = stream_logits(self.network, image, self.volume.background, layout, self.batch, settings)
        buffer = RowBuffer(stream, layout.axis, descending=layout.descending)
        return MemberRows(buffer, self.grid, layout.axis, (x.start, y.start, z.start), self.scale)

    def box_of_windows(self, slab: Box | None) -> Box:
        """The part of the prepared volume that the windows over a slab of the original grid cover.

        Sliding windows over this part have the same positions as those of the whole volume.

        Args:
            slab: a box of the original grid; None means the whole prepared volume.
        """
        if slab is None:
            return whole_box(self.shape)
        needed = self.grid.needed(slab) or tuple(slice(0, 1) for _ in range(3))
        x, y, z = (
            slice(*window_span(size, edge, self.overlap, side.start, side.stop - 1))
            for size, edge, side in zip(self.shape, self.patch, needed, strict=True)
        )
        return x, y, z


def window_span(size: int, patch: int, overlap: float, first: int, last: int) -> tuple[int, int]:
    """The span, along one axis, of the sliding windows that cover some voxels.

    Args:
        size: voxels along the axis.
        patch: size of a window, in voxels.
        overlap: overlap of neighbouring windows.
        first, last: the first and the last voxel to cover.

    Returns:
        The first voxel of the span, and the voxel after its last one.
    """
    if size <= patch:
        return 0, size
    covering = [start for start in window_starts(size, patch, overlap) if start <= last and start + patch > first]
    return covering[0], covering[-1] + patch
