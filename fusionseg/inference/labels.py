"""Label files as they are stored."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def read_label(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A label file as it is stored, and its affine."""
    image = nib.load(path)
    label = np.asarray(image.dataobj).round().astype(np.uint8)
    if label.ndim == 4 and label.shape[3] == 1:
        label = label[..., 0]
    if label.shape != shape:
        raise ValueError(f"image {shape} and label {label.shape} differ in shape")
    return label, image.affine
