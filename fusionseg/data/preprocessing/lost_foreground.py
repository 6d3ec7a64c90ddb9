"""Foreground that the preparation removes: cut off by data.crop_foreground, or lost in resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.preprocessing.record import PreparedCase

LEAST_VOLUME = 0.5
"""A class is named in the warning if resampling leaves a smaller share of its volume."""
MAX_NAMED = 10


def missed_voxels(record: PreparedCase, membership: NDArray[np.bool_]) -> list[int]:
    """Count the voxels of each output that the prepared label lacks.

    These are the voxels that were cut off. For an output of which nothing is left the count is at least 1, so that it
    counts as missed.

    Args:
        record: of the prepared case.
        membership: (R, K), the classes of each output; see `LabelScheme.membership`.

    Returns:
        For each output, a number of voxels of the prepared grid.
    """
    missed = []
    for classes in membership:
        rows = [row for row in record.class_voxels if row[0] < len(classes) and classes[row[0]]]
        resampled, kept = sum(row[2] for row in rows), sum(row[3] for row in rows)
        missed.append(max(1, resampled) if rows and not kept else resampled - kept)
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
