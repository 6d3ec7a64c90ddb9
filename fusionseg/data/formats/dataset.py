"""The content of a data set on disk: cases, channels, label names, folds.

Four layouts are read and left as they are: the layout of the Medical Segmentation Decathlon (MSD), the raw layout of
nnU-Net (versions 1 and 2), a MONAI datalist, and a folder for each case. This module reads names and JSON only;
`fusionseg.data.checks.dataset_check` reads the voxels.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fusionseg.config.data.labels import LabelSettings
from fusionseg.config.outside_part import OutsidePart
from fusionseg.data.formats.case import Case, missing_channels
from fusionseg.data.formats.channel_names import channel_names
from fusionseg.data.formats.dataset_json import (
    LAYOUTS,
    Layout,
    base_folder,
    find_json,
    read_json,
    recognise_layout,
    unique_names,
)
from fusionseg.data.formats.ignored_entries import (
    misspelt_keys,
    unlisted_files,
    unread_files,
    unread_lists,
    wrong_numbers,
)
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.layouts.folders import folder_cases
from fusionseg.data.formats.layouts.listed import listed_cases
from fusionseg.data.formats.layouts.nnunet import nnunet_cases
from fusionseg.data.formats.layouts.own import own_datalist
from fusionseg.data.formats.missing_files import (
    accept_missing,
    capped,
    file_problems,
    missing_notes,
    missing_packages,
    wrong_base,
)
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.opening import fitting_settings, named_by_masks, open_labels
from fusionseg.data.labels.scheme import UNLABELLED, LabelScheme
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import user_path

__all__ = ["Case", "Dataset", "open_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A data set as its JSON describes it.

    Args:
        root: the folder of the JSON file, or of the folders of the cases.
        layout: of the files: the name of a built-in one, or the dotted path of the user's own.
        name: as the JSON states it, otherwise that of the folder or the list.
        channels: channel names, at least one.
        scheme: the meaning of the values in the label files.
        training: sorted by name, cases without a label included (pre-training uses them).
        testing: the test cases, sorted by name; some may have a label.
        faults: errors of the data set as a whole; empty unless opened with `require_files=False`.
        notes: entries that are left out of the data set, each as "the entry; the remedy".
        source: the JSON file; a folder may hold several lists. A data set with a folder for each case has the path of
            dataset.json, whether there is one or not.
        base: the folder at which the relative paths of a list start.
        readers: read the image files.
    """

    root: Path
    layout: str
    name: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    training: tuple[Case, ...]
    testing: tuple[Case, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Path = Path()
    base: Path = Path()
    readers: Readers = field(default_factory=Readers, compare=False)

    @property
    def place(self) -> Path:
        """The absolute path of the JSON file: one path for one file, however `data.root` was written.

        A link to a JSON file is not followed: the cases lie beside the link.
        """
        return self.source.parent.resolve() / self.source.name

    @property
    def short_name(self) -> str:
        """The name of the folder; for a datalist, the names of the folder and of the list."""
        folder = self.place.parent.name
        return folder if self.source.name == "dataset.json" else "_".join(filter(None, (folder, self.source.stem)))

    @property
    def labels(self) -> dict[int, str]:
        """Class index -> name; 0 is the background."""
        return self.scheme.labels

    @property
    def is_partly_annotated(self) -> bool:
        """True if a labelled case annotates only some of the outputs."""
        return any(case.annotated is not None for case in (*self.training, *self.testing))

    @property
    def num_classes(self) -> int:
        """Number of classes, the background included."""
        return self.scheme.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes, in the order of their indices."""
        return self.scheme.names[1:]


def open_dataset(
    root: str | Path,
    layout: str | OutsidePart = "auto",
    labels: LabelSettings | None = None,
    *,
    default_labels: LabelSettings | None = None,
    images_only: bool = False,
    require_files: bool = True,
    readers: Readers | None = None,
    base_dir: str | None = None,
    missing_channels: str = "refuse",
) -> Dataset:
    """Read the list of a data set's cases, and check that the files exist.

    Args:
        root: the folder of the data set, or the JSON file of a datalist.
        layout: msd, nnunet, datalist or folders; "auto" decides by the JSON and the file names. Or the section of the
            user's own.
        labels: the keys about labels; they take precedence over the names in the file.
        default_labels: those of a run, which are used as far as they fit this data set.
        images_only: the names of labels have no meaning for the caller, and are not read.
        require_files: False leaves missing files for `check_dataset` to report case by case.
        readers: of the image files; None for the built-in ones.
        base_dir: the folder at which the relative paths of a list start (`data.base_dir`); None is that which the list
            states, or else its own.
        missing_channels: "zero" accepts cases that lack the file of a channel (`data.missing_channels`).

    Raises:
        UserError: with every problem found.
    """
    if isinstance(layout, str) and layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"data.layout={layout}: no such layout, there are {', '.join(LAYOUTS)}{hint}")
    readers = readers or Readers()
    place = user_path(str(root)).absolute()
    own = layout if isinstance(layout, OutsidePart) else None
    if own is not None:
        source, content = own_datalist(place, own)
        chosen: Layout = "datalist"
    else:
        assert isinstance(layout, str)
        source = find_json(place, layout, readers)
        content = read_json(source)
        chosen = cast(Layout, layout) if layout != "auto" else recognise_layout(source, content, readers)

    shown = chosen if own is None else own.name

    base = base_folder(source, content, chosen, base_dir)
    problems: list[str] = []
    channels = channel_names(content.get("channel_names", content.get("modality")), source, problems)
    # `check` reports these and goes on to the cases. Keys of the user's own layout are not typed by hand.
    faults = [] if own is not None else misspelt_keys(source, content, chosen)
    notes: list[str] = []
    if chosen == "nnunet":
        training, testing = nnunet_cases(source, content, len(channels), problems, readers)
    elif chosen == "folders":
        training, channels = folder_cases(source.parent, channels, problems, notes, readers)
        testing = []
        content = named_by_masks(content, labels, source, training, problems)
    else:
        unread_lists(source, content, faults, notes)
        if own is None:
            unread_files(source, content, readers, faults, notes)
        training, testing = listed_cases(
            source, content, problems, notes, readers, base, accept_missing=missing_channels == "zero"
        )
    copied = chosen != "nnunet" or (source.parent / "imagesTs").is_dir()
    faults += wrong_numbers(source, content, training, testing if copied else None)
    notes += unlisted_files(source, base, training + testing, readers, compare=chosen == "msd" or "dataset" in content)
    if not training and not testing and not problems:
        problems.append(f"{source}: no case is listed or found; check the path and data.layout ({shown})")
    training, testing = unique_names(source, base, training, testing, faults)
    problems += _name_problems(training + testing)
    problems += missing_packages(training + testing, readers)
    channels = channels or _guess_channels(training + testing, readers)
    if missing_channels == "zero":
        training, testing = (accept_missing(cases, len(channels)) for cases in (training, testing))
        notes += missing_notes(source, training + testing, channels)
    scheme = UNLABELLED
    if labels is None:
        labels = LabelSettings() if default_labels is None else fitting_settings(content, default_labels, source)
    if not images_only:
        scheme, training, testing = open_labels(
            content, labels, source, training, testing, problems, readers, read_all=not require_files
        )
    lost = wrong_base(source, base, training + testing) if chosen != "nnunet" else []
    faults += lost
    if require_files or problems:
        problems += faults
    if require_files:
        problems += [] if lost else file_problems(source, training + testing, len(channels), readers)
    if problems:
        raise UserError(capped(problems, source))
    in_list = chosen == "datalist" and not (own is not None and source != place)  # otherwise the folder has the name
    return Dataset(
        root=source.parent,
        layout=shown,
        name=str(content.get("name") or (source.stem if in_list else source.parent.name)),
        channels=channels,
        scheme=scheme,
        training=tuple(sorted(training, key=lambda case: case.name)),
        testing=tuple(sorted(testing, key=lambda case: case.name)),
        faults=tuple(faults),
        notes=tuple(notes),
        source=source,
        base=base,
        readers=readers,
    )


def _name_problems(cases: Iterable[Case]) -> list[str]:
    """A message for each name in another encoding, as in old archives. Records and tables cannot hold such names."""
    return [
        f"{os.fsencode(case.images[0])!r}: the name is not UTF-8; rename the file (convmv does many)"
        for case in cases
        if not case.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in case.name)
    ]


def _guess_channels(cases: Sequence[Case], readers: Readers) -> tuple[str, ...]:
    """Names for the channels of a data set whose JSON names none."""
    count = max((len(case.images) + len(missing_channels(case.images)) for case in cases), default=1)
    if count == 1 and cases:
        try:
            shape = readers.read_geometry(cases[0].images[0]).shape
        except VolumeError:  # `check` or the preparation reports it
            shape = ()
        count = shape[0] if len(shape) == 4 else 1
    return tuple(f"channel{i}" for i in range(count)) if count > 1 else ("image",)
