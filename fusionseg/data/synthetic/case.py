"""A synthetic case, and its place in the scanner: origin and order of the axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.synthetic.shapes import Array

# Orientations of the arrays, taken in turn. Even a small data set mixes them, so a program that ignores the affine
# fails on it.
ORIENTATIONS = ("RAS", "LPS", "LAS")


@dataclass(frozen=True, slots=True)
class SynthCase:
    """One volume.

    Args:
        image: int16 XYZ, or XYZC with several channels.
        label: uint8 XYZ.
        affine: (4, 4), voxel index to RAS+ mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def place_case(
    image: Array, label: Array, spacing: tuple[float, float, float], index: int, rng: np.random.Generator
) -> SynthCase:
    """Give a volume in RAS an origin, and an orientation by its index.

    Args:
        image: XYZ or XYZC.
        label: XYZ.
        spacing: edges of a voxel, mm.
        index: of the case.
        rng: for the origin.
    """
    edges = np.array(spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.uniform(-40, 40, 3) - edges * (np.array(label.shape) - 1) / 2
    orientations: Any = nib.orientations
    orientation = orientations.axcodes2ornt(ORIENTATIONS[index % len(ORIENTATIONS)])
    affine = affine @ orientations.inv_ornt_aff(orientation, label.shape)
    image, label = (orientations.apply_orientation(array, orientation) for array in (image, label))
    return SynthCase(np.ascontiguousarray(image), np.ascontiguousarray(label), affine)
