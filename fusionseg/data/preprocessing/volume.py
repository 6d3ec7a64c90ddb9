"""The preparation of a case, from its files to the arrays that the network reads; prepare and predict share it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.data.preprocessing import ChannelIntensityConfig, channel_key
from fusionseg.data.formats.case import missing_channels
from fusionseg.data.formats.case_reader import ARRAY, Image, read_case, read_image, read_label
from fusionseg.data.formats.geometry import Grid, voxel_sizes
from fusionseg.data.formats.image_digest import image_digest
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.voxel_checks import histogram
from fusionseg.data.labels.scheme import IGNORE, UNLABELLED, LabelScheme
from fusionseg.data.preprocessing.intensity import foreground_box, normalise
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.data.preprocessing.resampling import find_reorientation, plan_resampling, turned_channels
from fusionseg.observability.ranges import annotate
from fusionseg.utils.errors import UserError


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
    zero_is_outside: tuple[bool, ...] = ()
    """For each channel, True if 0 stands for air, so that the non-zero voxels alone are normalised; empty if it does in
    none."""
    missing: tuple[int, ...] = ()
    """Positions of the channels that the case lacks. They are 0 in every voxel."""

    @property
    def background(self) -> tuple[float, ...]:
        """For each channel, the value outside the volume: the value of air, or the lowest value."""
        zero = self.zero_is_outside or (False,) * len(self.image)
        return tuple(
            0.0 if is_zero else float(channel.min()) for channel, is_zero in zip(self.image, zero, strict=True)
        )

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
    missing: tuple[int, ...]


def load_volume(
    images: Sequence[Path] | Image,
    label: Path | None,
    config: DataConfig,
    scheme: LabelScheme | None,
    channels: int | None = None,
    channel_names: Sequence[str] | None = None,
    memory: MemoryLimit | None = None,
) -> Volume:
    """Prepare a case: read, reorient, resample, crop, apply `data.transforms`, normalise.

    Args:
        images: one file per channel, or one 3D or 4D file; or an image that is in memory, without a label.
        label: None for a case without one, as in a prediction.
        config: the section `data`.
        scheme: of the data set: the meaning of the label's values; None for a case without a label.
        channels: the required number of channels; None accepts any.
        channel_names: names of the channels in the order of the files, where `data.intensity` or
            `data.crop_foreground` has settings of single channels.
        memory: the memory that this process may take; None is the free memory.

    Raises:
        CaseError: with everything that is wrong with the case; `MemoryNeeded` if it is too large.
    """
    placed = _place(images, label, config, scheme, channels, channel_names, memory)
    image, mask = placed.image, placed.label
    if config.transforms:
        # MONAI, which takes seconds to import, is needed by the transforms only.
        from fusionseg.data.preprocessing.transforms import TransformError, open_transforms

        with annotate("transform"):
            try:
                image, mask = open_transforms(config.transforms)(image, mask, placed.affine, scheme)
            except TransformError as error:
                _refuse(_name_of(images), "transform", error.message, error.remedy)
    with annotate("normalise"):
        settings = channel_settings(config, channel_names, len(image))
        image = normalise(image, settings, placed.missing)
    return Volume(
        np.ascontiguousarray(image),
        mask,
        placed.affine,
        placed.original.shape,
        placed.original.affine,
        placed.digest,
        placed.label_digest,
        placed.class_voxels,
        zero_is_outside=tuple(setting.nonzero for setting in settings),
        missing=placed.missing,
    )


def check_transforms(
    images: Sequence[Path],
    label: Path | None,
    config: DataConfig,
    scheme: LabelScheme | None,
    channels: int | None,
    channel_names: Sequence[str] | None = None,
) -> None:
    """Apply `data.transforms` to one case, with and without its label, before all cases are prepared.

    A prediction has no label: the image must not depend on it, nor on chance.

    Args:
        images: one file per channel, or one 3D or 4D file.
        label: None for a case without one.
        config: the section `data`.
        scheme: as for `load_volume`.
        channels: as for `load_volume`.
        channel_names: as for `load_volume`.

    Raises:
        UserError: a transform fails, or gives two different images.
        CaseError: the case itself cannot be used.
    """
    from fusionseg.data.preprocessing.transforms import TransformError, open_transforms

    placed = _place(images, label, config, scheme, channels, channel_names)
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
    channel_names: Sequence[str] | None = None,
    memory: MemoryLimit | None = None,
) -> _PlacedCase:
    """Read, reorient, resample and crop a case; for the arguments see `load_volume`."""
    memory, readers = memory or MemoryLimit(), Readers.of(config)
    if not isinstance(images, Image):
        memory.check_files(images, config, channels or len(images), readers)
    with annotate("load"):
        if isinstance(images, Image):
            source, label_values = images, None
        else:
            source, label_values = read_case(images, label, channels, scheme or UNLABELLED, readers)
    digest = image_digest(source.values, source.grid.affine)
    label_digest = "" if label_values is None else image_digest(label_values[None], source.grid.affine)
    grid, array, label_array, affine = source.grid, source.values, label_values, source.grid.affine
    memory.check(_name_of(images), grid, config, len(array), 1 if isinstance(images, Image) else len(images))
    missing = missing_channels(images)
    del source, images  # the voxels as they were read are freed by the first step that makes others
    # The label is turned and resampled by the affine of its image. The geometry rule allows a small difference of the
    # two, which must not shift the label by a resampling of its own.
    with annotate("reorient"):
        if config.orientation:
            turn, affine = find_reorientation(affine, grid.shape, config.orientation)
            array = turned_channels(array, turn)
            label_array = None if label_array is None else turn(label_array)
    with annotate("resample"):
        if config.spacing and not np.allclose(voxel_sizes(affine), config.spacing, rtol=1e-3):
            shape = (array.shape[1], array.shape[2], array.shape[3])
            if (resampling := plan_resampling(affine, shape, config.spacing)) is not None:
                array, affine = resampling.image(array), resampling.affine
                label_array = None if label_array is None else resampling.label(label_array)
    whole_label = label_array
    with annotate("crop"):
        if config.crop_foreground is not None:
            crop = config.crop_foreground
            counted = crop_channels(config, channel_names, len(array), missing)
            box = foreground_box(array, crop.threshold, crop.margin, counted)
            array = array[(slice(None), *box)]
            label_array = None if label_array is None else label_array[box]
            affine = affine.copy()
            affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box])
    return _PlacedCase(
        array,
        label_array,
        affine,
        grid,
        digest,
        label_digest,
        class_voxels(label_values, whole_label, label_array),
        missing,
    )


def channel_settings(config: DataConfig, names: Sequence[str] | None, channels: int) -> list[ChannelIntensityConfig]:
    """The settings of `data.intensity` for each channel of an image.

    Args:
        config: the section `data`.
        names: of the channels; None if the settings are the same for all.
        channels: number of channels. It differs from that of the names only in an image that is refused later.

    Raises:
        ValueError: the settings differ, and there are no names.
    """
    if config.intensity.channels is None:
        return [config.intensity] * channels
    if names is None:
        raise ValueError("data.intensity has settings of single channels, and the names of the channels are not given")
    found = config.intensity.of_channels(names)[:channels]
    return found + [config.intensity] * (channels - len(found))


def crop_channels(config: DataConfig, names: Sequence[str] | None, channels: int, missing: Sequence[int]) -> list[int]:
    """The channels that `data.crop_foreground` looks at.

    Args:
        config: the section `data`.
        names: as for `channel_settings`.
        channels: number of channels.
        missing: those that the case lacks.
    """
    crop = config.crop_foreground
    present = [index for index in range(channels) if index not in missing]
    if crop is None or crop.channel is None:
        return present
    key = channel_key(crop.channel)
    # Without its channel, a case is not cropped: no other channel can tell the body by this threshold.
    return [index for index in present if channel_key((names or ())[index]) == key]


def class_voxels(*steps: NDArray[np.uint8] | None) -> tuple[tuple[int, int, int, int], ...]:
    """Count the voxels of each foreground class of a label at three steps: read, resampled, cropped.

    Returns:
        For each class its index and the three counts; empty without a label.
    """
    if any(step is None for step in steps):
        return ()
    read, resampled, cropped = (histogram(step) for step in steps if step is not None)
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


def _refuse(path: Path, code: str, message: str, remedy: str) -> None:
    findings = Findings()
    findings.add("error", path, code, message, remedy)
    findings.refuse()
