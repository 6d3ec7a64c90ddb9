"""The cases that were found for a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fusionseg.data.formats.case import Case


@dataclass(frozen=True)
class InputOptions:
    """The options that say which cases of a data set are predicted."""

    cases: str | None = None
    """`test`, `training` or `all` cases of a data set; None means the test cases, or all if there are none."""
    base_dir: str | None = None
    """The folder at which the relative paths of a list start; None is that which the list states, or its own."""
    missing_channels: str = "refuse"
    """"zero" accepts cases that lack the file of a channel (`data.missing_channels` of the run)."""


@dataclass(frozen=True)
class Inputs:
    """The cases to predict.

    Args:
        cases: sorted by name; the names are unique.
        source: a description of what was read, for the log.
        notes: a line about each kind of files that is left out.
        channels: the positions of the network's channels among those of the cases; None is the same order.
        searched: the folder in which each subfolder is a case. A mask must not be written below it.
    """

    cases: tuple[Case, ...]
    source: str
    notes: tuple[str, ...] = ()
    channels: tuple[int, ...] | None = None
    searched: Path | None = None


@dataclass
class Found:
    """The cases of a folder so far.

    Args:
        cases: in the order in which they were found.
        problems: messages about the folder that keep it from being predicted.
        unread: files, and folders with images, that belong to no case.
        empty: folders without an image.
        without_volume: DICOM folders that are no image, and their kind: a segmentation, a scout, a report.
    """

    cases: list[Case] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    without_volume: dict[Path, str] = field(default_factory=dict)
