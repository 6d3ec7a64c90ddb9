"""One case of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        columns: further keys of the case's entry in the JSON, and their values.
        group: patient, site or the like, where `data.group` names it.
        weight: in the sampling, above 0, where `data.weight` names it; None counts as 1.
        stratum: values that the folds balance, where `data.stratify` names them.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None = None
    annotated: tuple[str, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    group: str | None = None
    weight: float | None = None
    stratum: tuple[str, ...] = ()
