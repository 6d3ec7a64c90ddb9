"""The measurement of a case that has been read: one image and one label are in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.fingerprint.case import (
    LEVELS,
    AnnotationGap,
    Box,
    CaseFingerprint,
    Intensities,
    OutputMeasurement,
)
from fusionseg.data.formats.case import Case, missing_channels
from fusionseg.data.formats.case_reader import Image
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.data.preprocessing.resampling import find_reorientation

BODY_HU = -500.0
"""Voxels of a CT above this value are the patient and the table, not air."""
MOST_VOXELS = 100_000
"""Number of voxels of a channel from which quantiles are taken at most."""
LONGEST_GAP = 10
"""Number of slices of a gap at most: more is the space between two structures, such as the lungs or the kidneys."""
DIGITS = 6
"""Significant digits of a measurement."""

Mask = NDArray[np.bool_]


def measure_case(case: Case, image: Image, label: NDArray[np.uint8] | None, scheme: LabelScheme) -> CaseFingerprint:
    """Measure a case.

    Args:
        case: the case.
        image: as its files hold it, on a known grid.
        label: class indices (X, Y, Z) on the grid of the image; None without a label.
        scheme: of the data set.
    """
    turn, affine = find_reorientation(image.grid.affine, image.grid.shape, "RAS")
    missing = missing_channels(case.images)
    channels = [None if index in missing else channel for index, channel in enumerate(image.values)]
    nonzero: Mask = np.logical_or.reduce(image.values != 0, axis=0)
    is_ct = bool(image.values[0].min() < BODY_HU)
    foreground = None if label is None else _look_up(np.logical_or.reduce(scheme.membership_of_indices), label)
    inside = foreground if foreground is not None and foreground.any() else None
    x, y, z = turn(nonzero).shape
    return CaseFingerprint(
        name=case.name,
        shape=(x, y, z),
        spacing_mm=_rounded_triple(voxel_sizes(affine)),
        orientation=image.grid.orientation,
        stored_types=image.dtypes,
        nonzero_box=find_box(turn(nonzero)),
        nonzero_voxels=int(np.count_nonzero(nonzero)),
        body_box=find_box(turn(image.values[0] > BODY_HU)) if is_ct else None,
        foreground_box=None if foreground is None else find_box(turn(foreground)),
        whole=tuple(None if channel is None else _whole_intensities(channel) for channel in channels),
        foreground=tuple(
            None if channel is None or inside is None else _intensities(channel[inside]) for channel in channels
        ),
        outputs={}
        if label is None
        else _measure_outputs(turn(label), scheme, case.annotated, prod(voxel_sizes(affine))),
        labelled=label is not None,
        ignored_voxels=0 if label is None else int(np.count_nonzero(label == IGNORE)),
    )


def find_box(mask: Mask) -> Box | None:
    """Find the box around the True voxels of a mask.

    Args:
        mask: (X, Y, Z).

    Returns:
        None if no voxel is True.
    """
    ranges = []
    for axis in range(3):
        inside = np.flatnonzero(_profile(mask, axis))
        if not inside.size:
            return None
        ranges.append((int(inside[0]), int(inside[-1]) + 1))
    x, y, z = ranges
    return x, y, z


def find_gaps(mask: Mask, ignored: Mask | None = None) -> tuple[AnnotationGap, ...]:
    """Find slices that are empty although the slices on both sides overlap.

    Args:
        mask: one output, (X, Y, Z).
        ignored: voxels that are stated as not annotated: slices with such voxels are no gap.

    Returns:
        The gaps along the three axes, in the voxels of the mask.
    """
    gaps = []
    for axis in range(3):
        filled = np.flatnonzero(_profile(mask, axis))
        skipped = None if ignored is None else _profile(ignored, axis)
        for before, after in zip(filled[:-1].tolist(), filled[1:].tolist(), strict=True):
            if not 1 < after - before <= LONGEST_GAP + 1 or (skipped is not None and skipped[before + 1 : after].any()):
                continue
            if (mask.take(before, axis) & mask.take(after, axis)).any():
                gaps.append(AnnotationGap(axis, before + 1, after))
    return tuple(gaps)


def spread_sample(values: NDArray[Any], most: int) -> NDArray[Any]:
    """Take voxels of a volume at even distances in memory.

    The distance and the number of voxels have no common divisor: a distance that is a multiple of the length of an axis
    would take the voxels of one plane.

    Args:
        values: of any shape.
        most: number of voxels to take at most.
    """
    flat = values.ravel(order="K")
    step = -(-flat.size // most)
    while gcd(step, flat.size) > 1:
        step += 1
    return flat[::step]


def _measure_outputs(
    indices: NDArray[np.uint8], scheme: LabelScheme, annotated: Sequence[str] | None, voxel_mm3: float
) -> dict[str, OutputMeasurement]:
    """Measure the outputs that a case annotates, each within the box of its classes."""
    from scipy import ndimage  # slow to import

    boxes = ndimage.find_objects(indices, max_label=scheme.num_classes - 1)
    ignored = indices == IGNORE if scheme.ignore is not None else None
    measured = {}
    stated = scheme.annotated_outputs(annotated)
    for name, row, inside in zip(scheme.output_names, scheme.membership_of_indices, stated, strict=True):
        if not inside:
            continue
        own = [boxes[index - 1] for index in np.flatnonzero(row) if boxes[index - 1] is not None]
        if not own:
            measured[name] = OutputMeasurement(0, 0.0, 0, 0, None)
            continue
        low = [min(box[axis].start for box in own) for axis in range(3)]
        high = [max(box[axis].stop for box in own) for axis in range(3)]
        window = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        mask = _look_up(row, indices[window])
        # Voxels that share a corner are connected.
        parts, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
        voxels = int(np.count_nonzero(mask))
        largest = voxels if count == 1 else _largest(parts, count)
        gaps = () if count == 1 else find_gaps(mask, None if ignored is None else ignored[window])
        box = ((low[0], high[0]), (low[1], high[1]), (low[2], high[2]))
        measured[name] = OutputMeasurement(
            voxels,
            _rounded(voxels * voxel_mm3),
            int(count),
            largest,
            box,
            tuple(AnnotationGap(gap.axis, gap.start + low[gap.axis], gap.stop + low[gap.axis]) for gap in gaps),
        )
    return measured


def _look_up(table: Mask, indices: NDArray[np.uint8]) -> Mask:
    """Look up each class index in a table of 256 values; NumPy's indexing takes eight bytes a voxel and more time."""
    found = indices.tobytes().translate(table.tobytes())
    return np.frombuffer(found, np.bool_).reshape(indices.shape)


def _largest(parts: NDArray[np.int32], count: int) -> int:
    """Voxels of the largest component, counted plane by plane, because `np.bincount` takes eight bytes a voxel."""
    sizes = np.zeros(count + 1, np.int64)
    for plane in parts:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return int(sizes[1:].max())


def _whole_intensities(channel: NDArray[np.float32]) -> Intensities:
    """Intensities of a volume, without the value that more than half of the voxels have: masked or padded voxels."""
    sample = np.sort(spread_sample(channel, MOST_VOXELS))
    inside = sample[sample != sample[sample.size // 2]]  # no other value can be in more than half of the voxels
    if 0 < 2 * inside.size < sample.size:
        return _intensities(inside)
    return _intensities(sample, ends=(float(channel.min()), float(channel.max())))


def _intensities(values: NDArray[np.float32], ends: tuple[float, float] | None = None) -> Intensities:
    """Intensities of voxels: the inner quantiles are those of a sample if there are many.

    Args:
        values: (N,), N > 0.
        ends: lowest and highest value, where `values` is a sample of the voxels.
    """
    ordered = np.sort(spread_sample(values, MOST_VOXELS)).astype(np.float64)
    inner = np.interp(np.array(LEVELS[1:-1]) / 100 * (ordered.size - 1), np.arange(ordered.size), ordered)
    low, high = ends or (float(values.min()), float(values.max()))
    return Intensities(
        int(values.size),
        _rounded(float(values.mean(dtype=np.float64))),
        _rounded(float(values.std(dtype=np.float64))),
        (_rounded(low), *(_rounded(float(value)) for value in inner), _rounded(high)),
    )


def _profile(mask: Mask, axis: int) -> Mask:
    """Tell for each slice perpendicular to an axis whether it has a True voxel."""
    others = tuple(other for other in range(3) if other != axis)
    found: Mask = np.logical_or.reduce(mask, axis=others)
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _rounded_triple(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (_rounded(value) for value in values)
    return x, y, z
