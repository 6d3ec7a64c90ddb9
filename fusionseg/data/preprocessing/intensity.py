"""Normalisation of the intensities of a volume, and its foreground by intensity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.preprocessing import IntensityConfig


def normalise(image: NDArray[np.float32], intensity: IntensityConfig) -> NDArray[np.float32]:
    """Normalise raw intensities to the network's input, each channel by itself.

    Args:
        image: (C, X, Y, Z).
        intensity: the settings.
    """
    if intensity.mode == "none":
        return image
    out = np.empty_like(image, dtype=np.float32)
    for channel, raw in enumerate(image):
        values = raw.astype(np.float64)
        if intensity.clip is not None:
            values = np.clip(values, *intensity.clip)
        if intensity.mode == "window":
            assert intensity.clip is not None  # the schema requires it
            low, high = intensity.clip
            out[channel] = (values - low) / (high - low)
            continue
        inside = raw != 0  # by the raw values: clipping may change a zero
        measured = values[inside] if intensity.nonzero and inside.any() else values
        if intensity.percentiles is not None:
            low, high = np.percentile(measured, intensity.percentiles)
            values, measured = np.clip(values, low, high), np.clip(measured, low, high)
        result = (values - measured.mean()) / max(float(measured.std()), 1e-8)
        out[channel] = np.where(inside, result, 0) if intensity.nonzero else result
    return out


def foreground_box(image: NDArray[np.float32], threshold: float, margin: int) -> tuple[slice, slice, slice]:
    """Find the box of the voxels that are above a threshold in any channel.

    Args:
        image: (C, X, Y, Z).
        threshold: raw intensity.
        margin: voxels that the box grows by on every side.

    Returns:
        The whole volume if no voxel is above the threshold.
    """
    sides = [np.zeros(size, bool) for size in image.shape[1:]]
    for channel in image:
        for x, plane in enumerate(channel):  # the comparison of a whole volume would take a quarter of its memory
            above = plane > threshold
            rows = above.any(axis=1)
            sides[0][x] |= rows.any()
            sides[1] |= rows
            sides[2] |= above.any(axis=0)
    box = []
    for side in sides:
        hits = np.flatnonzero(side)
        first, last = (hits[0], hits[-1] + 1) if hits.size else (0, len(side))
        box.append(slice(max(0, int(first) - margin), min(len(side), int(last) + margin)))
    return box[0], box[1], box[2]
