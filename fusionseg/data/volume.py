"""From the files of a case to arrays in the network's frame: the chain that prepare and predict share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, Spacing
from numpy.typing import NDArray

from fusionseg.config.data_sections import DataConfig, IntensityConfig
from fusionseg.data.identity import image_digest
from fusionseg.telemetry.ranges import annotate


@dataclass(frozen=True)
class Volume:
    """A case in the network's frame, and the way back to its own.

    image: float32 (C, X, Y, Z), normalised. label: uint8 (X, Y, Z) or None.
    affine: 4x4, voxel of `image` -> mm. original_shape, original_affine: of the file.
    digest, label_digest: `image_digest` of the image and of the label as they were read; empty where it is unknown.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    original_shape: tuple[int, int, int]
    original_affine: NDArray[np.float64]
    digest: str = ""
    label_digest: str = ""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the prepared axes."""
        return voxel_sizes(self.affine)


def voxel_sizes(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths in mm of the three voxel axes of an affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def load_volume(images: Sequence[Path], label: Path | None, config: DataConfig, num_classes: int | None) -> Volume:
    """Load a case with MONAI, reorient, resample, crop and normalise it.

    Args:
        images: one file per channel, or one 3D or 4D file.
        num_classes: highest allowed label value + 1; None does not look.

    Raises:
        ValueError: what is wrong with the case, without its name.
    """
    with annotate("load"):
        image = _load(images)
        mask = _load([label]) if label is not None else None
    if image.ndim != 4:
        raise ValueError(f"the image has {image.ndim - 1} axes, and 3 are needed")
    shape = tuple(int(size) for size in image.shape[1:])
    if mask is not None and tuple(mask.shape) != (1, *shape):
        raise ValueError(f"image {shape} and label {tuple(mask.shape[1:])} differ in shape")
    original_affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(original_affine).all() or abs(np.linalg.det(original_affine[:3, :3])) < 1e-12:
        raise ValueError("the affine has no inverse: the header does not say where the voxels lie")
    bad = int((~torch.isfinite(image)).sum())
    if bad:
        raise ValueError(f"{bad} voxels of the image are NaN or infinite")
    if mask is not None:
        _check_label(mask, num_classes)
        # The label is taken voxel by voxel with its image: a small difference of the affines (a warning of
        # `fusionseg check`) must not shift it by a resampling of its own.
        mask.affine = image.affine
    digest = image_digest(image.numpy(), original_affine)
    label_digest = "" if mask is None else image_digest(mask.numpy(), original_affine)
    with annotate("reorient"):
        if config.orientation:
            reorient = Orientation(axcodes=config.orientation, labels=None)
            image = reorient(image)
            mask = reorient(mask) if mask is not None else None
    with annotate("resample"):
        if config.spacing and not np.allclose(voxel_sizes(np.asarray(image.affine)), config.spacing, rtol=1e-3):
            resample = Spacing(pixdim=config.spacing, padding_mode="border")
            image = resample(image, mode="bilinear")
            mask = resample(mask, mode="nearest") if mask is not None else None
    affine = np.asarray(image.affine, dtype=np.float64)
    array = np.asarray(image.as_tensor().numpy(), dtype=np.float32)
    label_array = None if mask is None else mask.as_tensor()[0].numpy().round().astype(np.uint8)
    with annotate("crop"):
        if config.crop_foreground is not None:
            crop = config.crop_foreground
            box = foreground_box(array, crop.threshold, crop.margin)
            array = array[(slice(None), *box)]
            label_array = None if label_array is None else label_array[box]
            affine = affine.copy()
            affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box])
    with annotate("normalise"):
        array = normalise(array, config.intensity)
    x, y, z = shape
    return Volume(np.ascontiguousarray(array), label_array, affine, (x, y, z), original_affine, digest, label_digest)


def normalise(image: NDArray[np.float32], intensity: IntensityConfig) -> NDArray[np.float32]:
    """Raw (C, X, Y, Z) intensities to the network's input, each channel for itself."""
    out = np.empty_like(image, dtype=np.float32)
    for channel, raw in enumerate(image):
        values = raw.astype(np.float64)
        if intensity.clip is not None:
            values = np.clip(values, *intensity.clip)
        if intensity.mode == "window":
            assert intensity.clip is not None  # the schema holds it
            low, high = intensity.clip
            out[channel] = (values - low) / (high - low)
            continue
        inside = raw != 0  # of the raw values: clipping may move zero
        measured = values[inside] if intensity.nonzero and inside.any() else values
        if intensity.percentiles is not None:
            low, high = np.percentile(measured, intensity.percentiles)
            values, measured = np.clip(values, low, high), np.clip(measured, low, high)
        result = (values - measured.mean()) / max(float(measured.std()), 1e-8)
        out[channel] = np.where(inside, result, 0) if intensity.nonzero else result
    return out


def foreground_box(image: NDArray[np.float32], threshold: float, margin: int) -> tuple[slice, slice, slice]:
    """The box of the voxels above `threshold` in any channel of (C, X, Y, Z), grown by `margin`; else everything."""
    above = (image > threshold).any(axis=0)
    if not above.any():
        x, y, z = image.shape[1:]
        return slice(0, x), slice(0, y), slice(0, z)
    sides = []
    hits = np.argwhere(above)
    for first, last, size in zip(hits.min(axis=0), hits.max(axis=0), above.shape, strict=True):
        sides.append(slice(max(0, int(first) - margin), min(size, int(last) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _load(paths: Sequence[Path]) -> MetaTensor:
    names = [str(path) for path in paths]
    try:
        loaded = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)(
            names if len(names) > 1 else names[0]
        )
    except Exception as error:  # MONAI and nibabel raise whatever their readers raise
        cause = str(error).strip().splitlines()
        raise ValueError(
            f"cannot be read ({type(error).__name__}: {cause[0] if cause else 'no reason given'})"
        ) from error
    assert isinstance(loaded, MetaTensor)
    return loaded


def _check_label(mask: MetaTensor, num_classes: int | None) -> None:
    values = torch.unique(mask.as_tensor())
    if not torch.isfinite(values).all() or (values != values.round()).any():
        raise ValueError(
            f"the label holds values that are no whole numbers, such as {values[values != values.round()][:3].tolist()}"
        )
    if num_classes is not None and (values.min() < 0 or values.max() >= num_classes):
        wrong = [int(value) for value in values if not 0 <= value < num_classes]
        raise ValueError(f"the label holds {wrong[:5]}, and the data set's labels are 0 to {num_classes - 1}")
