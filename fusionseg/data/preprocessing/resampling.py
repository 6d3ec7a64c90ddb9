"""Reorientation and resampling of a volume to `data.orientation` and `data.spacing`.

The results are those of MONAI's `Orientation` and `Spacing` (border padding, align_corners=False, float64), bit for
bit on x86: tests/data/test_resampling.py compares them. The difference is the cost. `Spacing` makes a position of three
float64 values for every voxel, and interpolates by these. Here a volume whose axes stay parallel to those of the grid
(most CT) has one position for each index of an axis, and one plane at a time is interpolated from the planes beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from fusionseg.data.formats.geometry import Turn

SAME_MM = 1e-3
"""MONAI's AFFINE_TOL: a voxel size that differs by less is kept."""
SLAB_POINTS = 1 << 18
"""Most points of an oblique volume that are interpolated at once."""
BLOCK_POINTS = 1 << 14
"""Points of a plane of an aligned volume that are interpolated at once."""

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]


def find_reorientation(affine: Affine, shape: Shape, axes: str) -> tuple[Turn, Affine]:
    """Find the turn that brings the voxel axes of a volume to an orientation.

    Args:
        affine: 4x4, from voxel index to mm in RAS+.
        shape: (X, Y, Z) of the volume.
        axes: directions of the axes after the turn, such as RAS.

    Returns:
        The turn, and the affine of the turned volume.
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axes)))
    source = np.argsort(change[:, 0])
    turn = Turn(tuple(int(axis) for axis in source), tuple(bool(change[axis, 1] < 0) for axis in source))
    return turn, affine @ inv_ornt_aff(change, shape)


def turned_channels(image: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    """Turn all channels of an image.

    Args:
        image: (C, X, Y, Z).
        turn: of the axes x, y, z.
    """
    axes = Turn((0, *(axis + 1 for axis in turn.source)), (False, *turn.flip))
    # The axes keep their order in memory, on which the last bit of a mean depends.
    return axes(image).copy(order="K") if any(turn.flip) else axes(image)


@dataclass(frozen=True)
class Resampling:
    """The way from one grid of voxels to another one.

    Args:
        source: (X, Y, Z) of the volume.
        target: (X, Y, Z) of the resampled volume.
        affine: 4x4, of the resampled volume.
        theta: 3x4, from the position in the target to that in the source, both in `grid_sample`'s units: -1 and 1 are
            the outer faces of the first and last voxel. Its axes are x, y, z.
    """

    source: Shape
    target: Shape
    affine: Affine
    theta: NDArray[np.float64]

    @property
    def is_aligned(self) -> bool:
        """True if the axes of the two grids are parallel."""
        square = self.theta[:, :3]
        return np.count_nonzero(square) == np.count_nonzero(square.diagonal())

    def image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate linearly.

        Args:
            image: (C, X, Y, Z).
        """
        if self.is_aligned:
            return _interpolate_aligned(image, [self._positions(axis) for axis in range(3)])
        return self._oblique(image, "bilinear")

    def label(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take the value of the nearest voxel.

        Args:
            label: (X, Y, Z).
        """
        if not self.is_aligned:
            return self._oblique(label[None].astype(np.float32), "nearest")[0].astype(np.uint8)
        x, y, z = (np.rint(self._positions(axis)).astype(np.intp) for axis in range(3))
        near: NDArray[np.uint8] = label[x][:, y][:, :, z]
        return near

    def _positions(self, axis: int) -> NDArray[np.float64]:
        """Positions along an axis of an aligned volume, in voxels of the source, as `grid_sample` computes them."""
        centres = _centres(self.target[axis]) * self.theta[axis, axis] + self.theta[axis, 3]
        size = self.source[axis]
        return np.clip(((centres + 1) * size - 1) / 2, 0, size - 1)

    def _oblique(self, image: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
        """Interpolate by the position of every voxel, slab by slab: `affine_grid` and `grid_sample` of torch."""
        import torch
        from torch.nn.functional import grid_sample

        volume = torch.from_numpy(image.astype(np.float64))[None]
        # torch names the axes from the last one.
        theta = torch.from_numpy(np.ascontiguousarray(self.theta[::-1][:, [2, 1, 0, 3]]))[None]
        x, y, z = (torch.from_numpy(_centres(size)) for size in self.target)
        rows = max(2, SLAB_POINTS // (len(y) * len(z)))
        points = torch.ones((rows, len(y), len(z), 4), dtype=torch.float64)
        points[..., 0], points[..., 1] = z, y[:, None]
        out = np.empty((len(image), *self.target), np.float32)
        for first in range(0, len(x), rows):
            count = min(rows, len(x) - first)
            points[:count, ..., 2] = x[first : first + count, None, None]
            grid = (points[:count].view(1, -1, 4) @ theta.transpose(1, 2)).view(1, count, len(y), len(z), 3)
            part = grid_sample(volume, grid, mode, "border", align_corners=False)
            out[:, first : first + count] = part[0].numpy()
        return out


def plan_resampling(affine: Affine, shape: Shape, spacing: Sequence[float]) -> Resampling | None:
    """Plan the resampling of a volume to a voxel size. Rotations stay, a shear of the axes is removed.

    Args:
        affine: 4x4, from voxel index to mm.
        shape: (X, Y, Z).
        spacing: voxel size in mm along the axes of the volume.

    Returns:
        None if the grid stays as it is.
    """
    own = np.sqrt(np.sum(affine[:3, :3] * affine[:3, :3], axis=0))
    wanted = np.array(spacing, np.float64)
    wanted = np.where(np.abs(own - wanted) <= SAME_MM, own, wanted)
    target_affine = _zoom(affine, wanted)
    target, offset = _fit(affine, target_affine, shape)
    target_affine[:3, 3] = offset
    change = np.linalg.solve(affine, target_affine)
    if target == shape and (
        np.allclose(affine, target_affine, atol=SAME_MM) or np.allclose(change, np.eye(4), atol=SAME_MM)
    ):
        return None
    from_unit = np.linalg.inv(_to_unit(target))
    theta = _product(_product(_to_unit(shape), change), from_unit)
    return Resampling(shape, target, _product_by_torch(affine, change), theta[:3])


def _zoom(affine: Affine, spacing: NDArray[np.float64]) -> Affine:
    """The affine with other voxel sizes, orthogonal axes and no translation."""
    square = affine[:3, :3]
    upper = np.linalg.cholesky(square.T @ square).T
    zoomed = np.eye(4)
    zoomed[:3, :3] = (square @ np.linalg.inv(upper)) @ np.diag(np.sign(np.diag(upper)) * spacing)
    return zoomed


def _fit(affine: Affine, target: Affine, shape: Shape) -> tuple[Shape, NDArray[np.float64]]:
    """Shape of the target that holds the centres of all voxels, and the position in mm of its first voxel."""
    corners: NDArray[np.float64] = np.asarray(
        np.meshgrid(*((0.0, size - 1.0) for size in shape), indexing="ij")
    ).reshape(3, -1)
    corners = np.concatenate((corners, np.ones_like(corners[:1])))
    in_target = (np.linalg.solve(target, affine) @ corners)[:3]
    x, y, z = (int(size) for size in np.round(np.ptp(in_target, axis=1) + 1.0))
    in_mm = (affine @ corners)[:3]
    for index in range(corners.shape[1]):
        if np.allclose(np.min(in_target - in_target[:, index : index + 1], axis=1), 0.0, rtol=SAME_MM):
            return (x, y, z), in_mm[:, index]
    # No corner is the first one along all axes: the centres of the two volumes coincide.
    half, target_half = np.array(shape) / 2.0, np.array((x, y, z)) / 2.0
    return (x, y, z), affine[:3, :3] @ half + affine[:3, 3] - target[:3, :3] @ target_half


def _product(one: Affine, other: NDArray[np.floating[Any]]) -> Affine:
    """The product of two matrices, each term rounded by itself, as torch multiplies small batches of matrices."""
    product: Affine = sum((one[:, k, None] * other[k] for k in range(4)), np.zeros((4, 4)))
    return product


def _product_by_torch(one: Affine, other: NDArray[np.floating[Any]]) -> Affine:
    """The product of two matrices as MONAI makes it. NumPy's has other last bits on some CPUs (seen on an AMD EPYC)."""
    import torch

    product: Affine = (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()
    return product


def _to_unit(shape: Shape) -> NDArray[np.float64]:
    """From voxel index to `grid_sample`'s units."""
    sizes = np.array(shape, np.float64)
    matrix = np.diag([*(2.0 / sizes), 1.0])
    matrix[:3, 3] = 1.0 / sizes - 1.0
    return matrix


def _centres(size: int) -> NDArray[np.float64]:
    """Centres of the voxels along an axis in `grid_sample`'s units, as `affine_grid` computes them."""
    import torch  # of the order of a second; only a resampling needs it

    # The last bit of torch.linspace depends on the vector unit of the CPU, so that NumPy cannot stand in for it.
    ends = torch.linspace(-1, 1, size, dtype=torch.float64).numpy() if size > 1 else np.zeros(1)
    centres: NDArray[np.float64] = ends * (size - 1) / size
    return centres


def _interpolate_aligned(image: NDArray[np.float32], positions: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Interpolate linearly at all combinations of positions, in the order of the operations of `grid_sample`.

    Args:
        image: (C, X, Y, Z).
        positions: along each axis, in voxels, within the volume.
    """
    axes = [_Axis.of(position, size) for position, size in zip(positions, image.shape[1:], strict=True)]
    x, y, z = axes
    out = np.empty((len(image), *(len(position) for position in positions)), np.float32)
    rows = max(1, BLOCK_POINTS // len(positions[2]))
    for first in range(0, out.shape[2], rows):
        part = slice(first, first + rows)
        _interpolate_rows(image, (x, y.part(part), z), out[:, :, part])
    return out


def _interpolate_rows(image: NDArray[np.float32], axes: tuple[_Axis, _Axis, _Axis], out: NDArray[np.float32]) -> None:
    """Interpolate some rows of all planes. They are so few that the terms of a plane stay in the CPU's cache."""
    x, y, z = axes
    in_plane = [right * row[:, None] for row in (y.near, y.far) for right in (z.near, z.far)]
    weight, term, total = (np.empty((len(image), *out.shape[2:])) for _ in range(3))
    weight = weight[0]
    corners: dict[int, list[NDArray[np.float64]]] = {}
    for index in range(out.shape[1]):
        planes = ((int(x.first[index]), x.near[index]), (int(x.second[index]), x.far[index]))
        for passed in corners.keys() - {plane for plane, _ in planes}:
            del corners[passed]
        total.fill(0)
        for plane, share in planes:
            if plane not in corners:  # neighbouring planes of the result share it
                lines = [image[:, plane].take(row, axis=1).astype(np.float64) for row in (y.first, y.second)]
                corners[plane] = [line.take(column, axis=2) for line in lines for column in (z.first, z.second)]
            for corner, side in zip(corners[plane], in_plane, strict=True):
                np.multiply(side, share, out=weight)
                np.multiply(corner, weight, out=term)
                np.add(total, term, out=total)
        out[:, index] = total


@dataclass(frozen=True)
class _Axis:
    """For each position along an axis, the voxels on both sides of it and their weights."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    near: NDArray[np.float64]
    far: NDArray[np.float64]

    @staticmethod
    def of(positions: NDArray[np.float64], size: int) -> _Axis:
        low = np.floor(positions)
        first = low.astype(np.intp)
        # A position at the last voxel has weight 0 for the voxel behind it.
        return _Axis(first, np.minimum(first + 1, size - 1), (low + 1) - positions, positions - low)

    def part(self, part: slice) -> _Axis:
        return _Axis(self.first[part], self.second[part], self.near[part], self.far[part])
