"""The preparation of a case, from its files to the arrays that the network reads; prepare and predict share it."""

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

from fusionseg.config.data.dataset import DataConfig
from fusionseg.data.formats.case_reader import ARRAY, Image, read_case, read_image, read_label
from fusionseg.data.formats.geometry import Grid, voxel_sizes
from fusionseg.data.formats.image_digest import image_digest
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import IGNORE, UNLABELLED, LabelScheme
from fusionseg.data.preprocessing.intensity import foreground_box, normalise
from fusionseg.data.preprocessing.transforms import TransformError, open_transforms
from fusionseg.observability.ranges import annotate
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

BYTES_PER_POINT, BYTES_PER_VALUE = 24, 12
"""Memory of a resampling for each voxel: its position, and for each channel its value, in float64 and float32."""


@dataclass(frozen=True)
class Volume:
    """A prepared case, and the way back to the grid of its file.

    Args:
        image: float32 (C, X, Y, Z), normalised.
        label: uint8 class indices (X, Y, Z), `IGNORE` where nothing is annotated; None without a label.
        affine: 4x4, from voxel index of `image` to mm.
        original_shape: of the file, (X, Y, Z).
        original_affine: of the file.
        digest: `image_digest` of the image as it was read.
        label_digest: the same of the label; empty without a label.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    original_shape: tuple[int, int, int]
    original_affine: NDArray[np.float64]
    digest: str = ""
    label_digest: str = ""
    class_voxels: tuple[tuple[int, int, int, int], ...] = ()
    """For each foreground class: index, voxels in the label file, after resampling, and after the crop."""
    zero_is_outside: bool = False
    """True if 0 stands for air, so that the non-zero voxels alone are normalised."""

    @property
    def background(self) -> tuple[float, ...]:
        """For each channel, the value outside the volume: the value of air, or the lowest value."""
        if self.zero_is_outside:
            return (0.0,) * len(self.image)
        return tuple(float(channel.min()) for channel in self.image)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the prepared axes."""
        return voxel_sizes(self.affine)


@dataclass(frozen=True)
class _PlacedCase:
    """A case that was read, turned, resampled and cropped; its intensities are raw."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    original: Grid
    digest: str
    label_digest: str
    class_voxels: tuple[tuple[int, int, int, int], ...]


def load_volume(
    images: Sequence[Path] | Image,
    label: Path | None,
    config: DataConfig,
    scheme: LabelScheme | None,
    channels: int | None = None,
) -> Volume:
    """Prepare a case: read, reorient, resample, crop, apply `data.transforms`, normalise.

    Args:
        images: one file per channel, or one 3D or 4D file; or an image that is in memory, without a label.
        label: None for a case without one, as in a prediction.
        config: the section `data`.
        scheme: of the data set: the meaning of the label's values; None for a case without a label.
        channels: the required number of channels; None accepts any.

    Raises:
        CaseError: with everything that is wrong with the case.
    """
    placed = _place(images, label, config, scheme, channels)
    image, mask = placed.image, placed.label
    if config.transforms:
        with annotate("transform"):
            try:
                image, mask = open_transforms(config.transforms)(image, mask, placed.affine, scheme)
            except TransformError as error:
                _refuse(_name_of(images), "transform", error.message, error.remedy)
    with annotate("normalise"):
        image = normalise(image, config.intensity)
    return Volume(
        np.ascontiguousarray(image),
        mask,
        placed.affine,
        placed.original.shape,
        placed.original.affine,
        placed.digest,
        placed.label_digest,
        placed.class_voxels,
        zero_is_outside=config.intensity.nonzero,
    )


def check_transforms(
    images: Sequence[Path], label: Path | None, config: DataConfig, scheme: LabelScheme | None, channels: int | None
) -> None:
    """Apply `data.transforms` to one case, with and without its label, before all cases are prepared.

    A prediction has no label: the image must not depend on it, nor on chance.

    Args:
        images: one file per channel, or one 3D or 4D file.
        label: None for a case without one.
        config: the section `data`.
        scheme: as for `load_volume`.
        channels: as for `load_volume`.

    Raises:
        UserError: a transform fails, or gives two different images.
        CaseError: the case itself cannot be used.
    """
    placed = _place(images, label, config, scheme, channels)
    transforms = open_transforms(config.transforms)
    try:
        first, _ = transforms(placed.image, placed.label, placed.affine, scheme)
        second, _ = transforms(placed.image, None, placed.affine, scheme)
    except TransformError as error:
        raise UserError(f"{error} ({images[0]})") from error
    if not np.array_equal(first, second):
        raise UserError(
            "data.transforms: the image depends on the label or on chance (two results of"
            f" {images[0]} differ, one with its label and one without), and a prediction has no label; let the"
            " transforms compute the image from the image alone"
        )


def _place(
    images: Sequence[Path] | Image,
    label: Path | None,
    config: DataConfig,
    scheme: LabelScheme | None,
    channels: int | None,
) -> _PlacedCase:
    """Read, reorient, resample and crop a case; for the arguments see `load_volume`."""
    with annotate("load"):
        if isinstance(images, Image):
            source, label_values = images, None
        else:
            source, label_values = read_case(images, label, channels, scheme or UNLABELLED, Readers(config.reader))
    original_affine = source.grid.affine
    digest = image_digest(source.values, original_affine)
    label_digest = "" if label_values is None else image_digest(label_values[None], original_affine)
    _refuse_too_large(_name_of(images), source.grid, config, len(source.values))
    affine_tensor = torch.from_numpy(original_affine)
    image = MetaTensor(torch.from_numpy(source.values), affine=affine_tensor)
    # The label gets the affine of its image. The geometry rule allows a small difference of the two, which must not
    # shift the label by a resampling of its own.
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
    return _PlacedCase(
        array,
        label_array,
        affine,
        source.grid,
        digest,
        label_digest,
        class_voxels(label_values, whole_label, label_array),
    )


def class_voxels(*steps: NDArray[np.uint8] | None) -> tuple[tuple[int, int, int, int], ...]:
    """Count the voxels of each foreground class of a label at three steps: read, resampled, cropped.

    Returns:
        For each class its index and the three counts; empty without a label.
    """
    if any(step is None for step in steps):
        return ()
    read, resampled, cropped = (np.bincount(step.ravel(), minlength=256) for step in steps if step is not None)
    classes = (index for index in range(1, IGNORE) if read[index])
    return tuple((index, int(read[index]), int(resampled[index]), int(cropped[index])) for index in classes)


def _name_of(images: Sequence[Path] | Image) -> Path:
    """The first file of a case, for messages."""
    return ARRAY if isinstance(images, Image) else images[0]


def read_digests(
    images: Sequence[Path], label: Path | None, scheme: LabelScheme, readers: Readers
) -> tuple[str, str | None]:
    """Compute the digests that `load_volume` gives for a case, and nothing else.

    Args:
        images: one file per channel, or one 3D or 4D file.
        label: None for a case without one.
        scheme: of the data set: the digest of a label is that of its class indices.
        readers: of the data set.

    Returns:
        The digest of the image, and the digest of the label; the second is None if the label is missing or cannot be
        read.

    Raises:
        ValueError: the image cannot be read.
    """
    image = read_image(images, readers=readers)
    of_label = None
    if label is not None:
        with suppress(ValueError):
            of_label = image_digest(read_label(label, image.grid, scheme, readers)[None], image.grid.affine)
    return image_digest(image.values, image.grid.affine), of_label


def _refuse_too_large(path: Path, grid: Grid, config: DataConfig, channels: int) -> None:
    """Refuse a volume whose resampling needs more memory than is free, before memory is allocated."""
    voxels = resampled_voxels(grid, config)
    needed = voxels * (BYTES_PER_POINT + BYTES_PER_VALUE * channels)
    free = available_memory_bytes()
    if voxels > prod(grid.shape) and needed > free:
        _refuse(
            path,
            "memory",
            f"resampling to data.spacing {list(config.spacing or ())} takes about {needed / 1e9:.3g} GB, and"
            f" {free / 1e9:.3g} GB are free",
            "correct the spacing in the header, choose a coarser data.spacing, or use fewer workers",
        )


def _refuse(path: Path, code: str, message: str, remedy: str) -> None:
    findings = Findings()
    findings.add("error", path, code, message, remedy)
    findings.refuse()


def resampled_voxels(grid: Grid, config: DataConfig) -> float:
    """Number of voxels of a volume after the resampling and before the crop.

    Args:
        grid: of the file.
        config: the section `data`.
    """
    if config.spacing is None:
        return float(prod(grid.shape))
    # The axes of the file that become x, y, z; data.orientation always names them in this order.
    axes = np.argsort(io_orientation(grid.affine)[:, 0]) if config.orientation else np.arange(3)
    extent = np.array(grid.shape) * voxel_sizes(grid.affine)
    return float(np.prod(extent[axes] / config.spacing))
