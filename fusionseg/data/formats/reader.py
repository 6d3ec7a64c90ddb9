"""The images and the label of a case: one reader for check, prepare, predict and evaluate.

`examine_image` and `examine_label` note every problem of the files and go on; `fusionseg check` reports what they
note. `read_case`, `read_image` and `read_label` are the same code, and refuse a case with errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_file import place, read_file, read_file_grid, report_dimensions
from fusionseg.data.formats.channel_names import MAX_LABELS
from fusionseg.data.formats.geometry import KEEP, Grid, Turn
from fusionseg.data.formats.problems import Findings

CHUNK = 1 << 20
MAX_LISTED_VALUES = 10


@dataclass(frozen=True)
class Image:
    """An image as its files hold it.

    values: float32 (C, X, Y, Z), scaled. grid: of the first file, and so of all channels.
    header: nibabel's of the first file, as it is in the file. dtypes: of the stored numbers, one for each file.
    varies: per channel, whether its voxels differ.
    """

    values: NDArray[np.float32]
    grid: Grid
    header: Any
    dtypes: tuple[str, ...]
    varies: tuple[bool, ...]


@dataclass(frozen=True)
class Label:
    """A label on its image's grid: uint8 (X, Y, Z), None where it has errors; and how often each value occurs."""

    values: NDArray[np.uint8] | None
    counts: dict[float, int]
    dtype: str


def read_case(
    images: Sequence[Path], label: Path | None, channels: int | None, num_classes: int | None
) -> tuple[Image, NDArray[np.uint8] | None]:
    """Read a case.

    Args:
        images: one file per channel, or one file that is 3D, or 4D with the channels last.
        channels: how many there have to be; None takes what there is.
        num_classes: highest allowed label value + 1; None allows all that fit a byte.

    Raises:
        CaseError: with everything that `fusionseg check` calls an error.
    """
    findings = Findings()
    image = examine_image(images, channels, findings)
    mask = None if label is None else examine_label(label, None if image is None else image.grid, num_classes, findings)
    findings.refuse()
    assert image is not None  # an error says why, otherwise
    return image, None if mask is None else mask.values


def read_image(images: Sequence[Path], channels: int | None = None) -> Image:
    """Read the image of a case: see `read_case`."""
    return read_case(images, None, channels, None)[0]


def read_label(path: Path, grid: Grid, num_classes: int | None) -> NDArray[np.uint8]:
    """Read a label file, turned to the grid of its image: see `read_case`."""
    findings = Findings()
    label = examine_label(path, grid, num_classes, findings)
    findings.refuse()
    assert label is not None and label.values is not None
    return label.values


def read_grid(images: Sequence[Path]) -> Grid:
    """Read the grid of an image from the header of its first file, and no voxel.

    Raises:
        CaseError: the header is damaged or gives no usable geometry.
    """
    findings = Findings()
    grid = read_file_grid(images[0], findings)
    findings.refuse()
    assert grid is not None
    return grid


def examine_image(images: Sequence[Path], channels: int | None, findings: Findings) -> Image | None:
    """Read the image of a case and note its problems; None where no file of it can be read."""
    if channels is not None and len(images) > 1 and len(images) != channels:
        _report_channels(findings, images[0], len(images), channels)
    first: Image | None = None
    unread = False
    for number, path in enumerate(images):
        file = read_file(path, findings, "image")
        single = len(images) == 1
        if file is not None and file.values.ndim > 3 and not single:
            report_dimensions(findings, path, file.values.shape, "channel")
            file = None
        if file is None:
            unread = True
            continue
        values = file.values if file.values.ndim == 4 else file.values[..., None]
        if single and channels is not None and values.shape[3] != channels:
            _report_channels(findings, path, values.shape[3], channels)
        if first is None:
            array = np.zeros((values.shape[3] if single else len(images), *file.grid.shape), np.float32)
            first = Image(array, file.grid, file.header, (), ())
            turn: Turn | None = KEEP
        else:
            turn = place(path, file.grid, first.grid, images[0], "channel", findings)
        if turn is None:
            unread = True
            continue
        varies = []
        for channel in range(values.shape[3]):
            target = first.values[channel if single else number]
            with np.errstate(over="ignore", invalid="ignore"):  # reported as infinite
                target[...] = turn(values[..., channel])
            which = f"channel {channel} " if values.shape[3] > 1 else ""
            varies.append(_check_values(path, which, target, findings))
        first = Image(first.values, first.grid, first.header, (*first.dtypes, file.dtype), (*first.varies, *varies))
        del file, values  # before the next one is read
    if first is not None and not unread:
        _report_constant(first, images, findings)
    return first


def examine_label(path: Path, grid: Grid | None, num_classes: int | None, findings: Findings) -> Label | None:
    """Read a label file and note its problems; None where it cannot be read.

    Args:
        grid: of the label's image; None where that could not be read.
    """
    file = read_file(path, findings, "label")
    if file is None:
        return None
    if file.values.ndim != 3:
        report_dimensions(findings, path, file.values.shape, "label")
        return None
    turn = KEEP if grid is None else place(path, file.grid, grid, None, "label", findings)
    values = file.values
    if values.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(np.float32)  # a whole number that was scaled need not be exact in float64
    counts = _count_values(values)
    limit = MAX_LABELS if num_classes is None else num_classes
    # Exact, since a value of 0.99999 becomes 0 where a label is cut to an integer.
    odd = [value for value in counts if not float(value).is_integer()]
    unknown = sorted(value for value in counts if float(value).is_integer() and not 0 <= value < limit)
    if odd:
        findings.add(
            "error",
            path,
            "label-fraction",
            f"the label holds values that are no whole numbers, such as {_values(odd)}, in {_voxels(counts, odd)}",
            "resample labels with nearest neighbour, and store integers",
        )
    elif file.values.dtype.kind == "f":
        findings.add("warning", path, "label-float", f"whole numbers are stored as {file.dtype}", "store it as uint8")
    if unknown:
        findings.add(
            "error",
            path,
            "label-value",
            f"the label holds {_values(unknown)}, and the data set's labels are 0 to {limit - 1}"
            f" ({_voxels(counts, unknown)})",
            "correct the label file, or name the values in dataset.json or data.labels",
        )
    if odd or unknown or turn is None:
        return Label(None, counts, file.dtype)
    return Label(np.ascontiguousarray(turn(values.astype(np.uint8))), counts, file.dtype)


def _check_values(path: Path, which: str, values: NDArray[np.float32], findings: Findings) -> bool:
    """Note voxels that are no numbers; whether the others differ."""
    low, high = values.min(), values.max()
    if np.isfinite(low) and np.isfinite(high):
        return bool(low < high)
    finite = np.isfinite(values)
    nans = int(np.count_nonzero(np.isnan(values)))
    infinite = int(values.size - np.count_nonzero(finite) - nans)
    findings.add(
        "error",
        path,
        "non-finite",
        f"{which}has {nans} NaN and {infinite} infinite voxels of {values.size}",
        "replace them (by air or 0), or convert the file from its source again",
    )
    return True


def _report_constant(image: Image, images: Sequence[Path], findings: Findings) -> None:
    """An image without any contrast is an error; one channel without is what a missing sequence is stored as."""
    constant = [channel for channel, varies in enumerate(image.varies) if not varies]
    for channel in constant:
        everywhere = len(constant) == len(image.varies)
        which = f"channel {channel} " if len(image.varies) > 1 else ""
        findings.add(
            "error" if everywhere else "warning",
            images[channel if len(images) > 1 else 0],
            "constant" if everywhere else "constant-channel",
            f"{which}has the value {image.values[channel].flat[0]:g} in every voxel",
            "fetch the image again, or take the case out of the data set"
            if everywhere
            else "fetch the file again, unless the channel is missing in this case and was filled",
        )


def _count_values(values: NDArray[Any]) -> dict[float, int]:
    counts: dict[float, int] = {}
    flat = values.reshape(-1, order="F")
    for start in range(0, flat.size, CHUNK):  # np.unique sorts a copy: in pieces, for memory and speed
        for value, n in zip(*np.unique(flat[start : start + CHUNK], return_counts=True), strict=True):
            key = float(value) if np.isfinite(value) else np.nan
            counts[key] = counts.get(key, 0) + int(n)
    return counts


def _report_channels(findings: Findings, path: Path, found: int, channels: int) -> None:
    findings.add(
        "error",
        path,
        "channels",
        f"the case has {found} channel{'s' * (found != 1)}, and the data set says {channels}",
        "add the missing channels, or correct the channel names in the data set's JSON",
    )


def _values(values: Sequence[float]) -> str:
    more = ", ..." if len(values) > MAX_LISTED_VALUES else ""
    return f"[{', '.join(f'{v:g}' for v in values[:MAX_LISTED_VALUES])}{more}]"


def _voxels(counts: dict[float, int], values: Sequence[float]) -> str:
    number = sum(counts[value] for value in values)
    return f"{number} voxel{'s' * (number != 1)}"
