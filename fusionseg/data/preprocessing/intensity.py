"""Normalisation of the intensities of a volume, and its foreground by intensity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.preprocessing import ChannelIntensityConfig


def normalise(
    image: NDArray[np.float32], settings: Sequence[ChannelIntensityConfig], missing: Sequence[int] = ()
) -> NDArray[np.float32]:
    """Normalise raw intensities to the network's input, each channel by itself.

    Args:
        image: (C, X, Y, Z).
        settings: those of each channel.
        missing: channels that the case lacks. They become 0.
    """
    if all(setting.mode == "none" for setting in settings) and not missing:
        return image
    out = np.empty_like(image, dtype=np.float32)
    for channel, (raw, setting) in enumerate(zip(image, settings, strict=True)):
        if channel in missing:
            out[channel] = 0
        else:
            _MODES[setting.mode](raw, setting, out[channel])
    return out


def _window(raw: NDArray[np.float32], setting: ChannelIntensityConfig, out: NDArray[np.float32]) -> None:
    assert setting.clip is not None  # the schema requires it
    low, high = setting.clip
    for plane, target in zip(raw, out, strict=True):  # plane by plane, so that float64 takes little memory
        target[...] = (np.clip(plane.astype(np.float64), low, high) - low) / (high - low)


def _zscore(raw: NDArray[np.float32], setting: ChannelIntensityConfig, out: NDArray[np.float32]) -> None:
    values = raw.astype(np.float64)
    if setting.clip is not None:
        np.clip(values, *setting.clip, out=values)
    inside = raw != 0  # by the raw values: clipping may change a zero
    measured = values[inside] if setting.nonzero and inside.any() else values
    if setting.percentiles is not None:
        low, high = np.percentile(measured, setting.percentiles)
        np.clip(values, low, high, out=values)
        if measured is not values:
            np.clip(measured, low, high, out=measured)
    if setting.mean is not None and setting.deviation is not None:
        mean, deviation = setting.mean, setting.deviation
    else:
        mean, deviation = measured.mean(), max(float(measured.std()), 1e-8)
    for plane, kept, target in zip(values, inside, out, strict=True):
        result = (plane - mean) / deviation
        target[...] = np.where(kept, result, 0) if setting.nonzero else result


def _rescale(raw: NDArray[np.float32], setting: ChannelIntensityConfig, out: NDArray[np.float32]) -> None:
    low, high = (raw.min(), raw.max()) if setting.percentiles is None else np.percentile(raw, setting.percentiles)
    for plane, target in zip(raw, out, strict=True):
        target[...] = (np.clip(plane.astype(np.float64), low, high) - low) / max(float(high) - float(low), 1e-8)


def _keep(raw: NDArray[np.float32], setting: ChannelIntensityConfig, out: NDArray[np.float32]) -> None:
    out[...] = raw


_MODES: dict[str, Callable[[NDArray[np.float32], ChannelIntensityConfig, NDArray[np.float32]], None]] = {
    "window": _window,
    "zscore": _zscore,
    "rescale": _rescale,
    "none": _keep,
}


def foreground_box(
    image: NDArray[np.float32], threshold: float, margin: int, channels: Sequence[int] | None = None
) -> tuple[slice, slice, slice]:
    """Find the box of the voxels that are above a threshold in any channel.

    Args:
        image: (C, X, Y, Z).
        threshold: raw intensity.
        margin: voxels that the box grows by on every side.
        channels: the channels that count; None means all.

    Returns:
        The whole volume if no voxel is above the threshold.
    """
    sides = [np.zeros(size, bool) for size in image.shape[1:]]
    for channel in range(len(image)) if channels is None else channels:
        for x, plane in enumerate(image[channel]):  # a comparison of the volume would take a quarter of its memory
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
