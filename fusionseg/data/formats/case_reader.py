"""The images and the label of a case: one reader for check, prepare, predict and evaluate.

`examine_image` and `examine_label` note every problem of the files and go on; `fusionseg check` reports these notes.
`read_case`, `read_image` and `read_label` run the same code, and refuse a case with errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case import missing_channels
from fusionseg.data.formats.case_file import extend_to_grid, find_position, read_file, read_file_grid, report_dimensions
from fusionseg.data.formats.geometry import KEEP, Grid, Turn, is_invertible
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.voxel_checks import check_finite, check_label_values, count_values, label_numbers
from fusionseg.data.labels.scheme import UNLABELLED, LabelScheme
from fusionseg.utils.tables import counted

ARRAY = Path("array")
"""The name of an image without a file, in messages."""


@dataclass(frozen=True)
class Image:
    """The image of a case, as its files hold it.

    Args:
        values: float32 (C, X, Y, Z), scaled.
        grid: of the first file, and so of all channels.
        dtypes: data types of the stored numbers, one for each file.
        varies: for each channel, True if its voxels differ.
    """

    values: NDArray[np.float32]
    grid: Grid
    dtypes: tuple[str, ...]
    varies: tuple[bool, ...]


@dataclass(frozen=True)
class Label:
    """The label of a case, on the grid of its image.

    Args:
        values: uint8 class indices (X, Y, Z); None if the label has errors.
        counts: number of voxels of each value of the file.
        dtype: data type of the stored numbers.
    """

    values: NDArray[np.uint8] | None
    counts: dict[float, int]
    dtype: str


def read_case(
    images: Sequence[Path],
    label: Path | None,
    channels: int | None,
    scheme: LabelScheme,
    readers: Readers | None = None,
) -> tuple[Image, NDArray[np.uint8] | None]:
    """Read the image and the label of a case.

    Args:
        images: one file per channel, or one file that is 3D, or 4D with several channels.
        label: None for a case without one.
        channels: the required number of channels; None accepts any.
        scheme: of the data set: the meaning of the label's values.
        readers: of the data set; None for the built-in ones.

    Returns:
        The image, and the label on the image's grid as class indices (X, Y, Z); None without a label.

    Raises:
        CaseError: with everything that `fusionseg check` calls an error.
    """
    findings, readers = Findings(), readers or Readers()
    image = examine_image(images, channels, findings, readers)
    grid = None if image is None else image.grid
    mask = None if label is None else examine_label(label, grid, scheme, findings, readers)
    findings.refuse()
    assert image is not None  # otherwise there is an error
    return image, None if mask is None else mask.values


def read_image(images: Sequence[Path], channels: int | None = None, readers: Readers | None = None) -> Image:
    """Read the image of a case.

    Args:
        images: as for `read_case`.
        channels: as for `read_case`.
        readers: as for `read_case`.

    Raises:
        CaseError: with everything that `fusionseg check` calls an error.
    """
    return read_case(images, None, channels, UNLABELLED, readers)[0]


def read_label(path: Path, grid: Grid, scheme: LabelScheme, readers: Readers | None = None) -> NDArray[np.uint8]:
    """Read a label file as class indices, turned to the grid of its image.

    Args:
        path: the file.
        grid: of the label's image.
        scheme: as for `read_case`.
        readers: as for `read_case`.

    Returns:
        (X, Y, Z) on that grid.

    Raises:
        CaseError: with everything that `fusionseg check` calls an error.
    """
    findings = Findings()
    label = examine_label(path, grid, scheme, findings, readers or Readers())
    findings.refuse()
    assert label is not None and label.values is not None
    return label.values


def image_of_array(values: NDArray[Any], affine: NDArray[np.float64]) -> Image:
    """Make the image of a case that is in memory and has no file.

    Args:
        values: (X, Y, Z), or (C, X, Y, Z) with the channels first; any integer or floating-point type.
        affine: 4x4, from voxel index to mm in RAS+.

    Raises:
        CaseError: the array has a fault that `read_case` refuses in a file. Messages call it "array".
    """
    path, findings = ARRAY, Findings()
    if values.ndim not in (3, 4) or values.size == 0:
        report_dimensions(findings, path, values.shape, "array")
        findings.refuse()
    if values.dtype.kind not in "iuf":
        findings.add("error", path, "dtype", f"has the type {values.dtype}", "convert it to integers or floats")
        findings.refuse()
    if not (np.shape(affine) == (4, 4) and is_invertible(affine)):
        findings.add(
            "error", path, "affine", "the affine is not an invertible 4x4 matrix", "give the affine of its file"
        )
        findings.refuse()
    with np.errstate(over="ignore", invalid="ignore"):  # reported as infinite
        array = np.ascontiguousarray(values if values.ndim == 4 else values[None], np.float32)
    x, y, z = array.shape[1:]
    varies = tuple(
        check_finite(path, f"channel {channel} " if len(array) > 1 else "", plane, findings)
        for channel, plane in enumerate(array)
    )
    image = Image(array, Grid((x, y, z), affine), (str(values.dtype),), varies)
    _report_constant(image, [path], findings)
    findings.refuse()
    return image


def read_grid(images: Sequence[Path], readers: Readers | None = None) -> Grid:
    """Read the grid of an image from its first file, without the voxels where the reader can.

    Args:
        images: the files of the image.
        readers: as for `read_case`.

    Raises:
        CaseError: the file is damaged or gives no usable geometry.
    """
    findings = Findings()
    grid = read_file_grid(images[0], readers or Readers(), findings)
    findings.refuse()
    assert grid is not None
    return grid


def examine_image(
    images: Sequence[Path], channels: int | None, findings: Findings, readers: Readers | None = None
) -> Image | None:
    """Read the image of a case and note its problems.

    Args:
        images: as for `read_case`.
        channels: as for `read_case`.
        findings: gets the problems.
        readers: as for `read_case`.

    Returns:
        None if no file of the image can be read.
    """
    readers = readers or Readers()
    missing = missing_channels(images)
    count = len(images) + len(missing)
    if channels is not None and count > 1 and count != channels:
        _report_channels(findings, images[0], count, channels)
    positions = [index for index in range(count) if index not in missing]
    first: Image | None = None
    unread = False
    single = count == 1
    for index, path in zip(positions, images, strict=True):
        file = read_file(path, readers, findings, "image")
        if file is not None and file.voxels.ndim > 3 and not single:
            report_dimensions(findings, path, file.voxels.shape, "channel")
            file = None
        if file is None:
            unread = True
            continue
        voxels = file.voxels if file.voxels.ndim == 4 else file.voxels[None]
        if single and channels is not None and len(voxels) != channels:
            _report_channels(findings, path, len(voxels), channels)
        if first is None:
            array = np.zeros((len(voxels) if single else count, *file.grid.shape), np.float32)
            first = Image(array, file.grid, (), ())
            turn: Turn | None = KEEP
        else:
            turn = find_position(path, file.grid, first.grid, images[0], "channel", findings)
        if turn is None:
            unread = True
            continue
        varies = []
        for channel in range(len(voxels)):
            target = first.values[channel if single else index]
            with np.errstate(over="ignore", invalid="ignore"):  # reported as infinite
                target[...] = turn(voxels[channel])
            which = f"channel {channel} " if len(voxels) > 1 else ""
            varies.append(check_finite(path, which, target, findings))
        first = Image(first.values, first.grid, (*first.dtypes, file.stored_type), (*first.varies, *varies))
        del file, voxels  # before the next file is read
    if first is not None and not unread:
        _report_constant(first, images, findings)
    if first is not None and missing:
        varies = list(first.varies)
        for index in missing:
            varies.insert(index, False)
        first = Image(first.values, first.grid, first.dtypes, tuple(varies))
    return first


def examine_label(
    path: Path, grid: Grid | None, scheme: LabelScheme, findings: Findings, readers: Readers | None = None
) -> Label | None:
    """Read a label file and note its problems.

    Args:
        path: the file.
        grid: of the label's image; None if that could not be read.
        scheme: as for `read_case`.
        findings: gets the problems.
        readers: as for `read_case`.

    Returns:
        None if the file cannot be read.
    """
    file = read_file(path, readers or Readers(), findings, "label")
    if file is None:
        return None
    if file.voxels.ndim != 3:
        report_dimensions(findings, path, file.voxels.shape, "label")
        return None
    if grid is not None:
        file = extend_to_grid(file, grid)
    turn = KEEP if grid is None else find_position(path, file.grid, grid, None, "label", findings)
    values = label_numbers(file.voxels)
    counts = count_values(values)
    valid = check_label_values(path, counts, file.voxels.dtype, file.stored_type, scheme, findings)
    if not valid or turn is None:
        return Label(None, counts, file.stored_type)
    return Label(np.ascontiguousarray(turn(scheme.indices_of_known(values))), counts, file.stored_type)


def _report_constant(image: Image, images: Sequence[Path], findings: Findings) -> None:
    """Note constant channels: an error if all are constant, otherwise a warning.

    A sequence that is missing in a case is often stored as a constant channel.
    """
    missing = missing_channels(images)
    present = [channel for channel in range(len(image.values)) if channel not in missing]
    constant = [channel for channel, varies in zip(present, image.varies, strict=True) if not varies]
    for channel in constant:
        everywhere = len(constant) == len(image.varies)
        which = f"channel {channel} " if len(image.varies) > 1 else ""
        findings.add(
            "error" if everywhere else "warning",
            images[present.index(channel) if len(images) > 1 else 0],
            "constant" if everywhere else "constant-channel",
            f"{which}has the value {image.values[channel].flat[0]:g} in every voxel",
            "fetch the image again, or take the case out of the data set"
            if everywhere
            else "fetch the file again, unless the channel is missing in this case and was filled",
        )


def _report_channels(findings: Findings, path: Path, found: int, channels: int) -> None:
    findings.add(
        "error",
        path,
        "channels",
        f"the case has {counted(found, 'channel')} (expected {channels}, as the data set states)",
        "add the missing channels, or correct the channel names in the data set's JSON",
    )
