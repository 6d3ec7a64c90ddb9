"""Foreground that the preparation removes: cut off by data.crop_foreground, or lost in resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusionseg.data.preprocessing.record import PreparedCase

LEAST_VOLUME = 0.5
"""A class is named in the warning if resampling leaves a smaller share of its volume."""
MAX_NAMED = 10


def missed_voxels(record: PreparedCase, num_classes: int) -> list[int]:
    """Count the voxels of each foreground class that the prepared label lacks.

    These are the voxels that were cut off. For a class of which nothing is left the count is at least 1, so that the
    class counts as missed.

    Args:
        record: of the prepared case.
        num_classes: number of label values, the background included.

    Returns:
        For each foreground class, a number of voxels of the prepared grid.
    """
    missed = [0] * (num_classes - 1)
    for value, _, resampled, kept in record.class_voxels:
        if value < num_classes:
            missed[value - 1] = resampled - kept if kept else max(1, resampled)
    return missed


def lost_foreground(record: PreparedCase, labels: Mapping[int, str]) -> list[str]:
    """Describe the foreground that the preparation of a case has lost, in one line for each class.

    Args:
        record: of the prepared case.
        labels: value -> name.
    """
    lines = []
    sizes = (abs(np.linalg.det(np.array(affine)[:3, :3])) for affine in (record.affine, record.original_affine))
    growth = float(np.divide(*sizes))  # volume of a prepared voxel, in voxels of the file
    for value, in_file, resampled, kept in record.class_voxels:
        name = labels.get(value, str(value))
        if in_file and not resampled:
            lines.append(f"{record.name} lost class {name} ({in_file} voxels) to resampling (data.spacing)")
        elif resampled * growth < LEAST_VOLUME * in_file:
            left = resampled * growth / in_file
            lines.append(f"{record.name} kept {left:.0%} of the volume of class {name} in resampling (data.spacing)")
        if resampled > kept:
            lines.append(
                f"{record.name} lost {_share(resampled - kept, resampled)} of class {name} to data.crop_foreground"
            )
    return lines


def lost_foreground_warning(records: Sequence[PreparedCase], labels: Mapping[int, str]) -> str:
    """Write one message about all cases; empty if nothing was lost.

    Args:
        records: of the prepared cases.
        labels: value -> name.
    """
    lines = [line for record in records for line in lost_foreground(record, labels)]
    if not lines:
        return ""
    more = f"; and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return (
        f"the preparation removes foreground: {'; '.join(lines[:MAX_NAMED])}{more}. Voxels that are cut off count as"
        " missed in the validation, and are not trained on; lower data.crop_foreground.threshold, raise its margin, or"
        " choose a finer data.spacing"
    )


def _share(part: int, whole: int) -> str:
    if part == whole:
        return "all"
    return f"{part / whole:.0%}" if part / whole >= 0.01 else "under 1 %"
