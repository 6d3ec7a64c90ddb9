"""Fingerprints of data sets that need no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusionseg.data.fingerprint.case import LEVELS, CaseFingerprint, Intensities
from fusionseg.data.fingerprint.fingerprint import Fingerprint


def intensities(low: float, high: float, *, maximum: float | None = None) -> Intensities:
    """Evenly distributed values from low to high, with one far brighter voxel if `maximum` is given."""
    quantiles = [low + (high - low) * level / 100 for level in LEVELS]
    quantiles[-1] = high if maximum is None else maximum
    return Intensities(1000, (low + high) / 2, (high - low) / np.sqrt(12), tuple(quantiles))


def case(
    name: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    channels: int = 1,
    whole: Intensities | None = None,
    foreground: Intensities | None = None,
    **fields: Any,
) -> CaseFingerprint:
    """A labelled case whose foreground lies in its middle."""
    full = ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    middle = tuple((size // 4, size - size // 4) for size in shape)
    values = {
        "orientation": "RAS",
        "stored_types": ("int16",),
        "nonzero_box": full,
        "nonzero_voxels": int(np.prod(shape)),
        "body_box": None,
        "foreground_box": middle,
        "labelled": True,
        **fields,
    }
    return CaseFingerprint(
        name,
        shape,
        spacing,
        whole=(whole or intensities(0, 100),) * channels,
        foreground=(foreground or intensities(40, 60),) * channels,
        **values,
    )


def fingerprint(cases: Sequence[CaseFingerprint], channels: Sequence[str] = ("MRI",)) -> Fingerprint:
    """The fingerprint of cases with one class."""
    return Fingerprint("made", tuple(channels), ("organ",), False, tuple(cases))
