"""The rules about an affine that all formats share: it has an inverse, plausible voxel sizes, and right angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.geometry import LARGEST_SPACING_MM, SMALLEST_SPACING_MM, is_invertible, voxel_sizes
from fusionseg.data.formats.image_file import FileGeometry, FileProblem

SHEAR_TOLERANCE = 1e-2
"""Cosine of the angle of two voxel axes that gives no warning."""

UNKNOWN_AFFINE: NDArray[np.float64] = np.full((4, 4), np.nan)


def checked_geometry(
    shape: Sequence[int], affine: NDArray[np.float64], problems: Sequence[FileProblem] = ()
) -> FileGeometry:
    """Check the affine of a file.

    Args:
        shape: (X, Y, Z), or (C, X, Y, Z).
        affine: 4x4, from voxel index to mm in RAS+.
        problems: faults of the geometry that are known already.

    Returns:
        The geometry, with an error if the affine cannot be used, and a warning if axes are not at right angles.
    """
    found = tuple(map(int, shape))
    if not is_invertible(affine):
        error = FileProblem(
            "error",
            "affine",
            "the directions and spacings of the voxel axes have no inverse, or are not finite",
            "correct the header, or convert the file from its source again",
        )
        return FileGeometry(found, UNKNOWN_AFFINE, (*problems, error))
    sizes = voxel_sizes(affine)
    if not (min(sizes) >= SMALLEST_SPACING_MM and max(sizes) <= LARGEST_SPACING_MM):
        error = FileProblem(
            "error",
            "spacing",
            f"the voxel spacing is {numbers(sizes)} mm (expected {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm)",
            "set the true spacing in the header, in mm",
        )
        return FileGeometry(found, UNKNOWN_AFFINE, (*problems, error))
    return FileGeometry(found, affine, (*problems, *shear_problems(affine)))


def shear_problems(affine: NDArray[np.float64]) -> list[FileProblem]:
    """The warning about voxel axes that are not at right angles; an empty list if they are.

    Args:
        affine: 4x4, invertible.
    """
    axes = affine[:3, :3] / np.array(voxel_sizes(affine))
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine <= SHEAR_TOLERANCE:
        return []
    tilt = np.degrees(np.arcsin(min(cosine, 1.0)))
    return [
        FileProblem(
            "warning",
            "shear",
            f"the voxel axes are {tilt:.3g} degrees away from right angles; distances within the file's grid are"
            " approximate",
            "resample the volume to a rectangular grid (a tilted CT gantry leaves such files)",
        )
    ]


def numbers(values: Any) -> str:
    """Numbers for a message, such as 1x1x2.5."""
    return "x".join(f"{value:g}" for value in values)
