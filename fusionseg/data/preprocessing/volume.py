"""From the files of a case to arrays in the network's frame: the chain that prepare and predict share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from fusionseg.config.data_sections import DataConfig, IntensityConfig
from fusionseg.data.formats.case_reader import read_case, read_image, read_label
from fusionseg.data.formats.geometry import Grid, voxel_sizes
from fusionseg.data.formats.image_digest import image_digest
from fusionseg.data.formats.problems import Findings
from fusionseg.observability.ranges import annotate
from fusionseg.utils.machine import available_memory_bytes

BYTES_PER_POINT, BYTES_PER_VALUE = 24, 12
"""Memory of a resampling for each voxel: its place, and for each channel its value, in float64 and float32."""


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
    class_voxels: tuple[tuple[int, int, int, int], ...] = ()
    """Of each foreground class: value, voxels in the label file, after resampling, and after the crop."""
    zero_is_outside: bool = False
    """Whether 0 stands for air: the non-zero voxels alone are normalised."""

    @property
    def background(self) -> tuple[float, ...]:
        """Per channel, the value of what lies outside the volume: that of air in it, or the lowest."""
        if self.zero_is_outside:
            return (0.0,) * len(self.image)
        return tuple(float(channel.min()) for channel in self.image)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the prepared axes."""
        return voxel_sizes(self.affine)


def load_volume(
    images: Sequence[Path],
    label: Path | None,
    config: DataConfig,
    num_classes: int | None,
    channels: int | None = None,
) -> Volume:
    """Read a case, reorient, resample, crop and normalise it.

    Args:
        images: one file per channel, or one 3D or 4D file.
        num_classes: highest allowed label value + 1; None does not look.
        channels: how many the image must have; None takes what there is.

    Raises:
        CaseError: with everything that is wrong with the case.
    """
    with annotate("load"):
        source, label_values = read_case(images, label, channels, num_classes)
    original_affine = source.grid.affine
    digest = image_digest(source.values, original_affine)
    label_digest = "" if label_values is None else image_digest(label_values[None], original_affine)
    _refuse_too_large(images[0], source.grid, config, len(source.values))
    affine_tensor = torch.from_numpy(original_affine)
    image = MetaTensor(torch.from_numpy(source.values), affine=affine_tensor)
    # The label is taken voxel by voxel with its image: the small difference of the affines that the geometry rule
    # allows must not shift it by a resampling of its own.
    mask = None
    if label_values is not None:
        mask = MetaTensor(torch.from_numpy(label_values[None].astype(np.float32)), affine=affine_tensor)
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
    whole_label = label_array
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
    return Volume(
        np.ascontiguousarray(array),
        label_array,
        affine,
        source.grid.shape,
        original_affine,
        digest,
        label_digest,
        class_voxels(label_values, whole_label, label_array),
        zero_is_outside=config.intensity.nonzero,
    )


def class_voxels(*steps: NDArray[np.uint8] | None) -> tuple[tuple[int, int, int, int], ...]:
    """For each foreground class of a label its value, and its number of voxels at each of three steps."""
    if any(step is None for step in steps):
        return ()
    read, resampled, cropped = (np.bincount(step.ravel(), minlength=256) for step in steps if step is not None)
    return tuple(
        (value, int(read[value]), int(resampled[value]), int(cropped[value])) for value in range(1, 256) if read[value]
    )


def read_digests(images: Sequence[Path], label: Path | None) -> tuple[str, str | None]:
    """The digests that `load_volume` gives for a case, without the rest of it.

    Returns:
        Of the image, and of the label; None where there is none or it cannot be read.

    Raises:
        ValueError: the image cannot be read.
    """
    image = read_image(images)
    of_label = None
    if label is not None:
        with suppress(ValueError):
            of_label = image_digest(read_label(label, image.grid, None)[None], image.grid.affine)
    return image_digest(image.values, image.grid.affine), of_label


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
    sides = [np.zeros(size, bool) for size in image.shape[1:]]
    for channel in image:
        for x, plane in enumerate(channel):  # plane by plane: the comparison of a whole volume is a quarter of it
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


def _refuse_too_large(path: Path, grid: Grid, config: DataConfig, channels: int) -> None:
    """Refuse a volume that could not be resampled in the memory that is free, before any of it is taken."""
    voxels = resampled_voxels(grid, config)
    needed = voxels * (BYTES_PER_POINT + BYTES_PER_VALUE * channels)
    free = available_memory_bytes()
    if voxels > prod(grid.shape) and needed > free:
        findings = Findings()
        findings.add(
            "error",
            path,
            "memory",
            f"resampling to data.spacing {list(config.spacing or ())} takes about {needed / 1e9:.3g} GB, and"
            f" {free / 1e9:.3g} GB are free",
            "correct the spacing in the header, choose a coarser data.spacing, or use fewer workers",
        )
        findings.refuse()


def resampled_voxels(grid: Grid, config: DataConfig) -> float:
    """Voxels of a volume after it is resampled, before it is cropped."""
    if config.spacing is None:
        return float(prod(grid.shape))
    # The axes of the file that become x, y, z once it is turned; data.orientation always names them in this order.
    axes = np.argsort(io_orientation(grid.affine)[:, 0]) if config.orientation else np.arange(3)
    extent = np.array(grid.shape) * voxel_sizes(grid.affine)
    return float(np.prod(extent[axes] / config.spacing))
