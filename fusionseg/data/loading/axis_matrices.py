"""Linear changes of a volume along its axes, each a small matrix: a blur, or a coarser grid and back.

Such a change is separable: the matrix of an axis multiplies all lines of voxels along it. Matrix products are the
fastest operations of every device. The matrices are made on the host, by SciPy's and torch's own functions applied to
the unit matrix, so their definitions are those of SciPy and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from fusionseg.data.loading.augmentation_protocol import Draws

_BLOCK = 32
"""Rows of a matrix that are multiplied at once on a CPU, by the columns that are not all zero: a narrow band."""
_FEWEST_ROWS = 16
"""Fewest rows of a product on a CPU. With less than 12, MKL's products have other bits with another number of threads
(seen on an AMD EPYC, torch 2.13)."""

Matrix = NDArray[np.float32]


def gaussian(size: int, sigma: float) -> Matrix | None:
    """The matrix of a Gaussian blur, mirrored at the borders, without the border voxel twice; cut at 4 sigma.

    Args:
        size: voxels of the axis.
        sigma: standard deviation in voxels.

    Returns:
        (size, size); None for an axis that stays as it is.
    """
    if size == 1 or sigma == 0:
        return None
    blurred: Matrix = gaussian_filter1d(np.eye(size, dtype=np.float32), sigma, axis=0, mode="mirror")
    return blurred


@lru_cache(maxsize=256)
def coarser(size: int, small: int, down: str, up: str) -> Matrix | None:
    """The matrix of an axis that is sampled on fewer points and interpolated back to its own.

    Args:
        size: voxels of the axis.
        small: points of the coarser grid.
        down: "nearest" or "area", the values of the coarser grid.
        up: "linear" or "cubic", the interpolation.

    Returns:
        (size, size), do not change it; None for an axis that stays as it is.
    """
    if small >= size:
        return None
    lines = torch.eye(size)[None]  # a line for each voxel, with 1 at the voxel
    values = F.interpolate(lines, small, mode="nearest-exact" if down == "nearest" else "area")
    if up == "linear":
        back = F.interpolate(values, size, mode="linear")[0]
    else:
        back = F.interpolate(values[None], (size, size), mode="bicubic")[0, 0]
    return np.ascontiguousarray(back.numpy().T)


def apply_along_axes(volume: Tensor, matrices: Sequence[Matrix | None], send: Callable[[NDArray[Any]], Tensor]) -> None:
    """Multiply the lines of a volume along each axis by the matrix of the axis, in place.

    Args:
        volume: (X, Y, Z), contiguous.
        matrices: one for each axis; None leaves the lines as they are.
        send: copies an array to the device of the volume.
    """
    changed = [(axis, matrix) for axis, matrix in enumerate(matrices) if matrix is not None]
    # Two buffers, and the volume itself for the last product: fresh memory for each product would cost as much again.
    buffers = [torch.empty_like(volume) for _ in changed[:2]]
    source = volume
    for index, (axis, matrix) in enumerate(changed):
        last = index > 0 and index == len(changed) - 1
        target = volume if last else buffers[index % 2]
        _multiply(source, axis, matrix, target, send)
        source = target
    if source is not volume:
        volume.copy_(source)


def matrices_of_all(
    draws: Draws, name: str, shape: Sequence[int], matrix: Callable[[int, float], Matrix | None]
) -> dict[str, NDArray[Any]]:
    """The matrices of all channels of a batch, for `apply_to_all_axes`.

    Args:
        draws: of the batch, with numbers (C, 3) of each changed sample.
        name: of the numbers.
        shape: (5,), of the images.
        matrix: from the voxels of an axis and its number to its matrix; None for an axis that stays as it is.

    Returns:
        For each axis, (B * C, size, size).
    """
    channels = shape[1]
    found = {}
    for axis, size in enumerate(shape[2:]):
        of_axis = np.broadcast_to(np.eye(size, dtype=np.float32), (shape[0] * channels, size, size)).copy()
        for i, numbers in zip(np.flatnonzero(draws.hit), draws.values[name], strict=True):
            for channel in range(channels):
                made = matrix(size, numbers[channel, axis])
                if made is not None:
                    of_axis[i * channels + channel] = made
        found[f"matrix_{axis}"] = of_axis
    return found


def apply_to_all_axes(image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
    """Multiply the lines of all channels of a batch along each axis by the matrix of channel and axis.

    Each product moves the last axis to the front, so that after three of them the axes have their order again, without
    a copy. The products have 32 bits: those of TF32 would change a channel that the unit matrix must leave as it is.

    Args:
        image: (B, C, X, Y, Z), contiguous.
        sent: `matrices_of_all`.
    """
    lines = image
    with full_precision():
        for axis in (2, 1, 0):
            matrices = sent[f"matrix_{axis}"]
            rows = lines.view(len(matrices), -1, matrices.shape[2])
            lines = torch.bmm(matrices, rows.transpose(1, 2))
    return lines.view(image.shape)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products of 32-bit numbers in 32 bits, also where TF32 is allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _multiply(volume: Tensor, axis: int, matrix: Matrix, out: Tensor, send: Callable[[NDArray[Any]], Tensor]) -> None:
    """Write a volume into `out`, with the lines along one axis multiplied by a matrix."""
    x, y, z = volume.shape
    size = len(matrix)
    if volume.device.type != "cpu":
        blocks = [slice(0, size)]
    elif size < _FEWEST_ROWS and axis != 2:
        _multiply_few(volume, axis, matrix, out, send)
        return
    else:
        starts = range(0, max(1, size - _FEWEST_ROWS + 1), _BLOCK)
        blocks = [slice(first, last) for first, last in zip(starts, [*starts[1:], size], strict=True)]
    on_device = send(matrix)
    for rows in blocks:
        used = np.flatnonzero(matrix[rows].any(axis=0))
        band = slice(int(used[0]), int(used[-1]) + 1)
        part = on_device[rows, band]
        if axis == 0:
            torch.mm(part, volume[band].view(-1, y * z), out=out[rows].view(-1, y * z))
        elif axis == 1:
            out[:, rows] = torch.bmm(part.expand(x, *part.shape), volume[:, band])
        else:
            torch.mm(volume.view(x * y, z)[:, band], part.T, out=out.view(x * y, z)[:, rows])


def _multiply_few(
    volume: Tensor, axis: int, matrix: Matrix, out: Tensor, send: Callable[[NDArray[Any]], Tensor]
) -> None:
    """`_multiply` for the first or second axis with less than `_FEWEST_ROWS` rows: rows of zeros are added."""
    x, y, z = volume.shape
    size = len(matrix)
    padded = send(np.pad(matrix, ((0, _FEWEST_ROWS - size), (0, 0))))
    if axis == 0:
        out.copy_(torch.mm(padded, volume.view(x, y * z))[:size].view(x, y, z))
    else:
        out.copy_(torch.bmm(padded.expand(x, *padded.shape), volume)[:, :size])
