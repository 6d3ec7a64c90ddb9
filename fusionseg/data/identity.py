"""The identity of an image: a digest of its voxels, the same whatever its file is called and however it is stored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray


def image_digest(image: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """Hash the voxels of an image, or of a label.

    Another file name, compression, data type or voxel order (an axis that is flipped or exchanged, with the affine
    following) keeps the digest. The position in space and the voxel sizes do not count: the same scan with a corrected
    header is the same scan.

    Args:
        image: (C, X, Y, Z), the values as they are read.
        affine: 4x4, invertible, voxel -> mm in RAS.
    """
    turn = io_orientation(affine)
    digest = hashlib.blake2b(digest_size=16)
    for channel in image:
        turned = apply_orientation(np.asarray(channel, np.float32), turn)
        digest.update(str(turned.shape).encode())
        # + 0.0 turns the negative zero, which equals 0, into it; a copy in C order comes with it.
        digest.update(np.add(turned, np.float32(0), order="C"))
    return digest.hexdigest()
