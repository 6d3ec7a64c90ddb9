"""The geometry of a patch: matrices from offsets in the patch to offsets in the volume."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.spatial.plan import SHEARS

Matrix = NDArray[np.float64]


def patch_to_volume(
    angles: NDArray[np.float64],
    zoom: NDArray[np.float64] | float,
    flip: NDArray[np.bool_],
    spacing_mm: NDArray[np.float64],
    *,
    shear: NDArray[np.float64] | None = None,
    quarter_turns: NDArray[np.int64] | None = None,
) -> Matrix:
    """The matrix (3, 3) from an offset in the patch to the offset in the volume, both in voxels.

    Rotation and shear are in mm, so that they stay what they are where voxels are not cubes. The order is that of
    MONAI's affine transforms: zoom first, then shear, then rotation.

    Args:
        angles: (3,), about the axes, in radians.
        zoom: factor, or (3,) a factor along each axis; above 1 things look larger.
        flip: (3,), True for an axis that is flipped.
        spacing_mm: (3,), voxel size.
        shear: (6,), tangents in the order of `SHEARS`.
        quarter_turns: (3,), turns by 90 degrees about each axis.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        matrix = matrix @ _rotation(axis, math.cos(angle), math.sin(angle))
    if shear is not None and shear.any():
        matrix = matrix @ shear_matrix(shear)
    result: Matrix = matrix * spacing_mm[None, :] / spacing_mm[:, None] / zoom
    return (
        result @ turned(flip, quarter_turns)
        if quarter_turns is not None and quarter_turns.any()
        else (result * np.where(flip, -1.0, 1.0))
    )


def shear_matrix(shear: NDArray[np.float64]) -> Matrix:
    """The product (3, 3) of six shears, the first one applied first, as MONAI's. Its determinant is 1.

    Args:
        shear: (6,), tangents in the order of `SHEARS`.
    """
    matrix = np.eye(3)
    for (displaced, along), tangent in zip(SHEARS, shear, strict=True):
        single = np.eye(3)
        single[displaced, along] = tangent
        matrix = single @ matrix
    return matrix


def turned(flip: NDArray[np.bool_], quarter_turns: NDArray[np.int64]) -> Matrix:
    """The matrix (3, 3) of flips and quarter turns: each row and column has one entry, 1 or -1.

    A patch is flipped along the axes of the volume, and then turned.
    """
    matrix = np.diag(np.where(flip, -1.0, 1.0))
    for axis, turns in enumerate(quarter_turns):
        cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[int(turns) % 4]
        matrix = matrix @ _rotation(axis, cosine, sine)
    return matrix


def _rotation(axis: int, cosine: float, sine: float) -> Matrix:
    rotation = np.eye(3)
    a, b = [other for other in range(3) if other != axis]
    rotation[a, a] = rotation[b, b] = cosine
    rotation[a, b], rotation[b, a] = -sine, sine
    return rotation
