"""Pictures of predictions and reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS = np.array(
    [
        (0.9, 0.3, 0.2),
        (0.2, 0.7, 0.3),
        (0.25, 0.45, 0.95),
        (0.95, 0.8, 0.2),
        (0.7, 0.35, 0.85),
        (0.2, 0.8, 0.85),
    ]
)


def overlay(picture: Any) -> NDArray[np.float32]:
    """(3, H, W) in [0, 1]: the slice with the true mask on the left, with the predicted one on the right.

    Args:
        picture: has image (X, Y) and the masks label and prediction (X, Y), as tensors or arrays.
    """
    sides = [paint(np.asarray(picture.image), np.asarray(mask)) for mask in (picture.label, picture.prediction)]
    return np.concatenate(sides, axis=2)


def paint(image: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
    """(3, H, W): a grey slice (X, Y) with its mask in colour, turned so that the second axis points up."""
    grey = _grey(image, image)
    color = COLORS[(mask - 1) % len(COLORS)]
    return _turned(np.where((mask > 0)[..., None], 0.5 * grey + 0.5 * color, grey))


def reconstruction_strip(
    image: NDArray[Any], masked: NDArray[Any], reconstruction: NDArray[Any]
) -> NDArray[np.float32]:
    """(3, H, W) in [0, 1]: a slice, what the network was shown of it, and what it made of that, from left to right.

    Args:
        image: grey slice (X, Y); its range of greys is that of all three.
        masked: the same with its hidden voxels blacked out.
        reconstruction: the network's.
    """
    slices = [_turned(_grey(np.asarray(part), np.asarray(image))) for part in (image, masked, reconstruction)]
    return np.concatenate(slices, axis=2)


def _grey(image: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """(X, Y, 3) in [0, 1]: a slice, black and white at the 1st and 99th percentile of another."""
    low, high = np.percentile(like, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)[..., None].repeat(3, axis=2)


def _turned(picture: NDArray[Any]) -> NDArray[np.float32]:
    """(X, Y, 3) as (3, H, W), the second axis pointing up."""
    turned: NDArray[np.float32] = picture.transpose(2, 1, 0)[:, ::-1].astype(np.float32)
    return turned
