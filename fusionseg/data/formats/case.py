"""One case of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Names of channel files in nnU-Net's layout, without suffix: NAME_0000, NAME_0001, ..."""


class ChannelFiles(tuple[Path, ...]):
    """The files of an image of which channels are missing: the existing files, one for each channel.

    It is equal to a tuple of these files. The readers of a case put a channel of zeros where one is missing.
    """

    missing: tuple[int, ...]
    """Positions of the missing channels among all channels, in ascending order."""

    def __new__(cls, files: Iterable[Path], missing: Iterable[int]) -> Self:
        """Args:
        files: those that exist, in the order of the channels; at least one.
        missing: positions of the others.
        """
        made = super().__new__(cls, files)
        made.missing = tuple(missing)
        return made

    def __getnewargs__(self) -> tuple[tuple[Path, ...], tuple[int, ...]]:  # for pickle
        return tuple(self), self.missing


def missing_channels(images: object) -> tuple[int, ...]:
    """Positions of the channels that a case lacks.

    Args:
        images: the images of the case.
    """
    return images.missing if isinstance(images, ChannelFiles) else ()


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
        target: the value that a task learns, where `data.target` names it.
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
    target: str | None = None
    stratum: tuple[str, ...] = ()
