"""Shaded rendering of a mask, by projection in NumPy: for each pixel the first surface that its ray meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

View: TypeAlias = Literal["front", "left"]

VIEWS: tuple[View, ...] = ("front", "left")
SIDES: dict[View, str] = {"front": "RLSI", "left": "APSI"}
"""Letters of the left, right, top and bottom side of a view."""
GRID = 160
"""Voxels of the longest axis of the grid that is rendered."""
LEVEL = 0.3
"""Share of foreground in a smoothed voxel from which it is inside. Below 0.5, so that structures of one voxel stay."""
_SMOOTHING = 0.45
_NEAR = 4
"""Distance in voxels within which a surface voxel takes its class."""
_AMBIENT, _DEPTH = 0.25, 0.35
_LIGHT = np.array([-0.8, -0.45, -0.4]) / np.linalg.norm([-0.8, -0.45, -0.4])
"""Direction to the light from a surface, in the axes depth, down and right: from the viewer's upper left."""


class Renderer:
    """A mask on a grid of cubic voxels, ready to be seen from several sides.

    Args:
        mask: numbers of classes, 0 is background, (X, Y, Z) in RAS order.
        spacing_mm: size of a voxel along each axis.
    """

    def __init__(self, mask: NDArray[np.integer], spacing_mm: tuple[float, float, float]) -> None:
        from scipy.ndimage import gaussian_filter  # slow to import

        padded = np.pad(mask, 1)  # a mask that touches the border has a surface there too
        spacing = np.array(spacing_mm)
        extent = np.array(padded.shape) * spacing
        self.voxel_mm = float(extent.max() / GRID)
        shape = np.maximum(1, np.round(extent / self.voxel_mm).astype(int))
        factors = shape / np.array(padded.shape)
        # Smoothing before a coarser grid keeps thin structures, after a finer one it takes away the steps.
        inside = gaussian_filter((padded > 0).astype(np.float32), _SMOOTHING * np.maximum(0, 1 / factors - 1))
        for axis, count in enumerate(shape):
            inside = _interpolated(inside, axis, int(count))
        self._inside = gaussian_filter(inside, _SMOOTHING * np.maximum(1, factors))
        near = [
            np.minimum(((np.arange(count) + 0.5) * size / count).astype(int), size - 1)
            for count, size in zip(self._inside.shape, padded.shape, strict=True)
        ]
        self._classes = padded[np.ix_(*near)].astype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid along each axis of the mask."""
        x, y, z = self._inside.shape
        return x, y, z

    def view(
        self, view: View, color: Callable[[int], tuple[int, int, int]], background: tuple[int, int, int]
    ) -> NDArray[np.uint8]:
        """Render the mask from one side.

        Args:
            view: front: from the front, the patient's right is on the left; left: from the patient's left side.
            color: the colour of a class.
            background: the colour where there is no mask.

        Returns:
            RGB, (H, W, 3); a pixel is `voxel_mm` wide.
        """
        inside, classes = (_facing(volume, view) for volume in (self._inside, self._classes))
        hit = inside >= LEVEL
        seen = hit.any(axis=0)
        picture = np.empty((*seen.shape, 3), np.uint8)
        picture[:] = background
        if not seen.any():
            return picture
        rows, columns = np.nonzero(seen)
        depth = hit.argmax(axis=0)[seen]
        normal = _normals(inside, depth, rows, columns)
        light = _AMBIENT + (1 - _AMBIENT) * np.clip(normal @ _LIGHT, 0, 1)
        light *= 1 - _DEPTH * (depth - depth.min()) / max(1, int(depth.max() - depth.min()))
        numbers = _classes_at(classes, depth, rows, columns)
        palette = np.array([color(value) if value else background for value in range(int(numbers.max()) + 1)])
        picture[seen] = np.clip(palette[numbers] * light[:, None] * 1.15, 0, 255).astype(np.uint8)
        return picture


def _interpolated(volume: NDArray[np.float32], axis: int, count: int) -> NDArray[np.float32]:
    """Interpolate a volume along an axis, linearly, at the centres of `count` equal parts."""
    size = volume.shape[axis]
    place = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
    below = np.minimum(place.astype(int), max(0, size - 2))
    shape = [1] * volume.ndim
    shape[axis] = count
    weight = (place - below).astype(np.float32).reshape(shape)
    low, high = volume.take(below, axis), volume.take(np.minimum(below + 1, size - 1), axis)
    mixed: NDArray[np.float32] = low + weight * (high - low)
    return mixed


def _facing(volume: NDArray[Any], view: View) -> NDArray[Any]:
    """Turn a volume (X, Y, Z) so that its axes are depth from the viewer, down and right."""
    if view == "front":
        return volume.transpose(1, 2, 0)[::-1, ::-1, ::-1]
    return volume.transpose(0, 2, 1)[:, ::-1, ::-1]


def _normals(
    inside: NDArray[Any], depth: NDArray[np.intp], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Outward unit normals of the surface at voxels, by central differences, (N, 3)."""
    at = np.stack([depth, rows, columns])
    last = np.array(inside.shape)[:, None] - 1
    slopes = []
    for axis in range(3):
        step = np.zeros((3, 1), int)
        step[axis] = 1
        ahead, behind = np.minimum(at + step, last), np.maximum(at - step, 0)
        slopes.append(inside[tuple(behind)].astype(float) - inside[tuple(ahead)].astype(float))
    normal = np.stack(slopes, axis=1)
    unit: NDArray[np.float64] = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return unit


def _classes_at(
    classes: NDArray[Any], depth: NDArray[np.intp], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """The class of each surface voxel: the nearest below it, because the smoothed surface lies outside the mask."""
    last = np.array(classes.shape) - 1
    found = np.zeros(len(depth), np.uint8)
    # Nearest first: straight below, then beside it.
    for aside in range(_NEAR):
        for down in range(-aside, aside + 1):
            for right in range(-aside, aside + 1):
                if max(abs(down), abs(right)) < aside:
                    continue
                for below in range(_NEAR + 1):
                    at = (
                        np.minimum(depth + below, last[0]),
                        np.clip(rows + down, 0, last[1]),
                        np.clip(columns + right, 0, last[2]),
                    )
                    found = np.where(found > 0, found, classes[at])
        if found.all():
            break
    return found
