"""One case of a data set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Names of channel files in nnU-Net's layout, without suffix: NAME_0000, NAME_0001, ..."""


@dataclass(frozen=True)
class Case:
    """One patient or scan: an image and, in most data sets, its label.

    Args:
        name: unique in the data set: the name of the image file without suffix and channel number.
        images: one file per channel, or one file that is 3D (one channel) or 4D.
        label: None for a case without annotation.
        fold: the fold that validates on this case, where the datalist states it.
        annotated: names of the outputs that the label annotates; None for all.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None = None
    annotated: tuple[str, ...] | None = None
