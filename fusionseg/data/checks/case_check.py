"""The checks of one case: they read every file to its last byte and note every problem.

The rules are those of `fusionseg.data.formats.case_reader`, by which the other commands refuse a case. This module
notes the problems and measures the case. It runs in the worker processes of `fusionseg.data.checks.dataset_check`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusionseg.data.fingerprint.case import CaseFingerprint
from fusionseg.data.fingerprint.measuring import measure_case, spread_sample
from fusionseg.data.fingerprint.preview import Preview, make_preview
from fusionseg.data.formats.case import Case, missing_channels
from fusionseg.data.formats.case_reader import Image, Label, examine_image, examine_label
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.image_digest import image_digest
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import IGNORE, LabelScheme

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLES_PER_CHANNEL = 2000
"""Number of voxels at most from which the percentiles of a channel are estimated."""


@dataclass
class CaseReport(Findings):
    """The result of the checks of one case.

    It is sent from a worker process, so it holds a small sample of the voxels and not all of them.
    """

    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str = ""
    image_dtypes: list[str] = field(default_factory=list)
    label_dtype: str = ""
    label_voxels: dict[int, int] = field(default_factory=dict)
    """Number of voxels of each class index in the label file; `IGNORE` counts those that are not annotated."""
    intensity: dict[int, tuple[float, float, Array]] = field(default_factory=dict)
    """For each channel: lowest value, highest value, a sample of the values."""
    digest: str = ""
    """Digest of the image's voxels; empty if these could not be read or are all the same."""
    fingerprint: CaseFingerprint | None = None
    """Measurements of a case without errors, if they are asked for."""
    preview: Preview | None = None
    """Picture of the case, if it has a fingerprint."""


def check_case(
    case: Case,
    scheme: LabelScheme,
    channels: int,
    readers: Readers,
    patch: Sequence[int] | None = None,
    measured: Collection[str] = (),
) -> CaseReport:
    """Check the images and the label of a case. Problems are noted, none is raised.

    Args:
        case: the case.
        scheme: of the data set.
        channels: the required number of channels.
        readers: of the data set.
        patch: size of the training patch in voxels; a smaller volume gets a warning.
        measured: names of the cases whose fingerprint is wanted.
    """
    report = CaseReport(case.name)
    try:
        image = examine_image(case.images, channels, report, readers)
        if image is not None:
            _measure_image(report, image, missing_channels(case.images))
            _check_patch(report, case, image.grid.shape, patch)
        grid = None if image is None else image.grid
        if case.name not in measured:
            image = None  # frees the memory before the label is read
        label = None if case.label is None else examine_label(case.label, grid, scheme, report, readers)
        if image is not None and not report.errors:
            values = None if label is None else label.values
            report.fingerprint = measure_case(case, image, values, scheme)
            report.preview = make_preview(image, values, scheme)
    except MemoryError:
        report.add(
            "error", case.images[0], "memory", "does not fit into memory", "check its size, or use fewer workers"
        )
        return report
    if label is not None:
        report.label_dtype = label.dtype
        report.label_voxels = _count_classes(label, scheme)
        if case.label is not None and label.values is not None:
            _check_annotation(report, case.label, scheme)
    return report


def _count_classes(label: Label, scheme: LabelScheme) -> dict[int, int]:
    """Number of voxels of each class index; values that the data set does not know are left out."""
    whole = [value for value in label.counts if float(value).is_integer()]
    unknown = set(scheme.unknown(whole))
    counts: dict[int, int] = {}
    for value in whole:
        if value not in unknown:
            index = int(scheme.to_indices(np.array([int(value)]))[0])
            counts[index] = counts.get(index, 0) + label.counts[value]
    return counts


def _check_annotation(report: CaseReport, path: Path, scheme: LabelScheme) -> None:
    if set(report.label_voxels) == {IGNORE}:
        report.add(
            "warning",
            path,
            "no-annotation",
            f"has the ignore value {scheme.ignore} in every voxel",
            "annotate a part of the case, or take it out",
        )
    elif not report.label_voxels.keys() - {0, IGNORE}:
        report.add(
            "warning",
            path,
            "empty-foreground",
            "has no foreground voxel",
            "annotate the case, or leave it if nothing is to be found in it",
        )


def _measure_image(report: CaseReport, image: Image, missing: Sequence[int]) -> None:
    report.shape = image.grid.shape
    report.image_dtypes = list(image.dtypes)
    if image.grid.known:
        report.spacing_mm = voxel_sizes(image.grid.affine)
        report.orientation = image.grid.orientation
        if any(image.varies):  # all empty images have one digest
            report.digest = image_digest(image.values, image.grid.affine)
    for channel, values in enumerate(image.values):
        if channel in missing:
            continue
        sample = spread_sample(values, SAMPLES_PER_CHANNEL)
        sample = sample[abs(sample) < float("inf")]
        if sample.size:
            low, high = float(values.min()), float(values.max())
            if abs(low) < float("inf") and abs(high) < float("inf"):
                report.intensity[channel] = low, high, sample.copy()


def _check_patch(report: CaseReport, case: Case, shape: tuple[int, ...], patch: Sequence[int] | None) -> None:
    small = [f"{axis} ({n} < {p})" for axis, n, p in zip("xyz", shape, patch or shape, strict=True) if n < p]
    if small:
        report.add(
            "warning",
            case.images[0],
            "small-volume",
            f"is smaller than the patch along {', '.join(small)}, as stored",
            "choose a smaller data.patch, or leave it: the volume is padded",
        )
