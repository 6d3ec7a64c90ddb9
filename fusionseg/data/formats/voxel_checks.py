"""Checks of voxel values: finite images, and labels that hold the data set's label values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.problems import Findings
from fusionseg.data.labels.scheme import LabelScheme, ranges
from fusionseg.utils.tables import counted

CHUNK = 1 << 20
"""Number of voxels that are counted at once."""
HISTOGRAM_CHUNK = 1 << 16
FEW_VALUES = 16
"""Values below this are counted one by one, which is faster for few of them."""
MAX_LISTED_VALUES = 10


def check_finite(path: Path, which: str, values: NDArray[np.float32], findings: Findings) -> bool:
    """Note voxels of an image that are not finite.

    Args:
        path: the file.
        which: the channel, for the message; empty if there is one only.
        values: (X, Y, Z).
        findings: gets the error.

    Returns:
        False if all voxels have the same finite value.
    """
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


def label_numbers(voxels: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a label file: floats as float32, since an integer that was scaled need not be exact in float64.

    Args:
        voxels: of any shape.
    """
    if voxels.dtype.kind != "f":
        return voxels
    with np.errstate(over="ignore", invalid="ignore"):
        return voxels.astype(np.float32)


def count_values(values: NDArray[Any]) -> dict[float, int]:
    """Count the voxels of each value.

    Args:
        values: of any shape.

    Returns:
        Value -> number of voxels; one entry for all that are not finite.
    """
    if values.dtype == np.uint8:
        return {float(value): int(n) for value, n in enumerate(histogram(values)) if n}
    counts: dict[float, int] = {}
    flat = values.reshape(-1, order="F")
    for start in range(0, flat.size, CHUNK):  # np.unique sorts a copy: pieces save memory and time
        for value, n in zip(*np.unique(flat[start : start + CHUNK], return_counts=True), strict=True):
            key = float(value) if np.isfinite(value) else np.nan
            counts[key] = counts.get(key, 0) + int(n)
    return counts


def histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the voxels of each value from 0 to 255.

    Args:
        values: of any shape.
    """
    flat = values.ravel(order="K")
    counts = np.zeros(256, np.int64)
    highest = int(flat.max(initial=0))
    for start in range(0, flat.size, HISTOGRAM_CHUNK):
        chunk = flat[start : start + HISTOGRAM_CHUNK]
        if highest < FEW_VALUES:
            for value in range(1, highest + 1):
                counts[value] += np.count_nonzero(chunk == value)
        else:  # np.bincount makes a copy of eight bytes a value
            counts += np.bincount(chunk, minlength=256)
    counts[0] += flat.size - counts.sum()
    return counts


def check_label_values(
    path: Path,
    counts: dict[float, int],
    dtype: np.dtype[Any],
    stored_type: str,
    scheme: LabelScheme,
    findings: Findings,
) -> bool:
    """Note label values that are not integers, or that the data set does not know.

    Args:
        path: the file.
        counts: number of voxels of each value.
        dtype: of the values.
        stored_type: data type of the stored numbers, for the message.
        scheme: of the data set.
        findings: gets the problems.

    Returns:
        True if there is no error.
    """
    # The test is exact, because the cast to an integer would turn 0.99999 into 0.
    odd = [value for value in counts if not float(value).is_integer()]
    unknown = scheme.unknown([value for value in counts if float(value).is_integer()])
    if odd:
        findings.add(
            "error",
            path,
            "label-fraction",
            f"the label holds values that are not integers, such as {_values(odd)}, in {_voxels(counts, odd)}",
            "resample labels with nearest neighbour, and store integers",
        )
    elif dtype.kind == "f":
        findings.add("warning", path, "label-float", f"integers are stored as {stored_type}", "store it as uint8")
    if unknown:
        findings.add(
            "error",
            path,
            "label-value",
            f"the label holds {_values(unknown)}, and the data set's labels are {ranges(scheme.values)}"
            f" ({_voxels(counts, unknown)})",
            "correct the label file, or name the values in dataset.json or data.labels",
        )
    return not odd and not unknown


def _values(values: Sequence[float]) -> str:
    more = ", ..." if len(values) > MAX_LISTED_VALUES else ""
    return f"[{', '.join(f'{v:g}' for v in values[:MAX_LISTED_VALUES])}{more}]"


def _voxels(counts: dict[float, int], values: Sequence[float]) -> str:
    return counted(sum(counts[value] for value in values), "voxel")
