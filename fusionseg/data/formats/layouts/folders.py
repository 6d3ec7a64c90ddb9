"""The cases of a data set without a list: a folder for each case, or a folder of images beside a folder of labels.

ROOT/<case>/ holds the image (a file, or the slices of a DICOM series, in the folder or in folders within it), one for
each channel, and the label. A label is recognised by its name, or as DICOM-SEG; channels by what the names of their
files have more than the name of the case. A label may be a folder with a mask for each class.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.data.formats.case import CHANNEL, Case
from fusionseg.data.formats.mask_folder import MASK_SUFFIXES, MaskFolder, mask_name
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import some_of
from fusionseg.utils.tables import counted

LABEL_WORDS = {
    *("label", "labels", "labelmap", "mask", "masks", "seg", "segm", "segmentation", "segmentations"),
    *("annotation", "annotations", "gt", "groundtruth"),
}
MAX_DEPTH = 6
"""Largest number of folders between a case and its image: hospitals export PATIENT/STUDY/SERIES."""
WORD = re.compile(r"[^\W_]+")
"""A word of a file name or of the name of a channel."""


def case_folders(root: Path) -> list[Path]:
    """List the folders of the cases: the visible subfolders.

    Args:
        root: the folder of the data set.
    """
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def is_folder_layout(root: Path, readers: Readers) -> bool:
    """Test that a folder without a list has a folder for each case: an image is in its first or second subfolder.

    A folder of images beside a folder of labels counts too.

    Args:
        root: the folder of the data set.
        readers: of the data set.
    """
    if image_and_label_folder(root) is not None:
        return True
    return any(next(_images_in(folder, readers), None) is not None for folder in case_folders(root)[:2])


def folder_cases(
    root: Path, channels: Sequence[str], problems: list[str], notes: list[str], readers: Readers
) -> tuple[list[Case], tuple[str, ...]]:
    """Find the cases of a data set with a folder for each case.

    Args:
        root: the folder of the data set.
        channels: names of the channels that dataset.json states; empty if there are none.
        problems: gets folders whose image or label is not clear.
        notes: gets folders without an image.
        readers: of the data set.

    Returns:
        The cases, and the names of the channels; no names for a single channel.
    """
    if (pair := image_and_label_folder(root)) is not None:
        return paired_cases(*pair, problems, readers), ()
    found: dict[Path, _Channels] = {}
    labels: dict[Path, Path | None] = {}
    empty = []
    images_of = {folder: list(_images_in(folder, readers)) for folder in case_folders(root)}
    labels_of = {
        folder: [path for path in images if is_label(path, folder, readers)] for folder, images in images_of.items()
    }
    masks = _mask_folders(labels_of)
    for folder, images in images_of.items():
        marked = labels_of[folder]
        if folder in masks:
            labels[folder] = masks[folder]
        elif len(marked) > 1:
            problems.append(
                f"{folder}: holds {len(marked)} labels ({some_of([_below(path, folder) for path in marked])}); keep one"
                " label in the folder of a case (one file with a value for each class, or a folder segmentations/ with"
                " a mask for each class), or list the cases in a datalist"
            )
        labels.setdefault(folder, marked[0] if marked else None)
        others = [path for path in images if path not in marked]
        if not others:
            empty.append(folder.name)
            continue
        found[folder] = _Channels.of(folder, others, readers)
        if len(found[folder].images) < len(others):
            problems.append(
                f"{folder}: holds {len(others)} images whose names do not tell them apart"
                f" ({some_of([_below(path, folder) for path in others])}); keep one image for each channel"
            )
    if empty:
        notes.append(
            f"{root}: {counted(len(empty), 'folder')} without an image left out ({some_of(empty)}); add"
            " the image, or remove the folder"
        )
    order = _channel_order(found, channels)
    cases = []
    for folder, keyed in _named_channels(found, order, problems).items():
        # A channel that is missing has a path that does not exist, which is reported, or accepted by a setting.
        listed = bool(order) and keyed.keys() <= set(order)
        files = tuple(keyed.get(key, folder / key) for key in order) if listed else tuple(keyed.values())
        cases.append(Case(folder.name, files, labels[folder]))
    return cases, tuple(channels) or (tuple(order) if len(order) > 1 else ())


def _mask_folders(labels: Mapping[Path, Sequence[Path]]) -> dict[Path, MaskFolder]:
    """The folders of masks of the cases; none where a label is one file.

    In a folder of several masks each is a class. If one case has such a folder, the same folder of a case with one file
    holds a mask too.

    Args:
        labels: of each folder of a case.
    """
    found: dict[Path, Path] = {}
    for folder, paths in labels.items():
        parents = {path.parent for path in paths}
        named = len(parents) == 1 and not LABEL_WORDS.isdisjoint(_words(next(iter(parents)).name))
        if named and folder not in parents and all(path.name.lower().endswith(MASK_SUFFIXES) for path in paths):
            found[folder] = next(iter(parents))
    if all(len(labels[folder]) == 1 for folder in found):
        return {}
    names = sorted({mask_name(path) for folder in found for path in labels[folder]})
    values = {name: value for value, name in enumerate(names, 1)}
    return {folder: MaskFolder.of(path, values) for folder, path in found.items()}


def image_and_label_folder(root: Path) -> tuple[Path, Path] | None:
    """Find a folder of images beside a folder of labels: images/ and labels/, image/ and masks/, imagesTr/ and others.

    Args:
        root: the folder of the data set.

    Returns:
        The two folders; None if there are not exactly these.
    """
    names = {folder.name.casefold().removesuffix("tr"): folder for folder in case_folders(root)}
    images = [names[name] for name in ("images", "image", "imgs", "img") if name in names]
    labels = [names[name] for name in sorted(LABEL_WORDS) if name in names]
    return (images[0], labels[0]) if len(images) == len(labels) == 1 else None


def paired_cases(images: Path, labels: Path, problems: list[str], readers: Readers) -> list[Case]:
    """Find the cases of a folder of images beside a folder of labels, by the names of the files.

    x.nii.gz has the label x.nii.gz, x_label.nii.gz or x-seg.nrrd. x_0000 and x_0001 are the channels of x.

    Args:
        images: the folder of the images, which may be folders with a DICOM series.
        labels: the folder of the labels.
        problems: gets labels without an image.
        readers: of the data set.
    """
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _items(images, readers):
        match = CHANNEL.fullmatch(readers.stem(path))
        name, number = (match[1], int(match[2])) if match else (readers.stem(path), 0)
        if number in channels[name]:
            problems.append(f"{path}: is an image named {name}, as {channels[name][number].name}; rename one of them")
        channels[name][number] = path
    found: dict[str, Path] = {}
    for path in _items(labels, readers):
        stem = readers.stem(path)
        words = list(WORD.finditer(stem))
        if stem not in channels and len(words) > 1 and words[-1].group().casefold() in LABEL_WORDS:
            stem = stem[: words[-2].end()]
        if stem not in channels or stem in found:
            what = "two labels have this name" if stem in found else f"no image of {images.name} has this name"
            problems.append(f"{path}: {what} ({stem}); rename the file, or list the cases in a datalist")
        found[stem] = path
    return [
        Case(name, tuple(files[number] for number in sorted(files)), found.get(name))
        for name, files in channels.items()
    ]


def _items(folder: Path, readers: Readers) -> list[Path]:
    """The images in a folder: its image files, and its subfolders with a DICOM series."""
    return sorted(
        [*readers.image_files(folder), *(path for path in case_folders(folder) if readers.reads_folder(path))]
    )


def _images_in(folder: Path, readers: Readers, depth: int = 0) -> Iterator[Path]:
    """Yield the images and labels in a folder and in the folders within it."""
    files = readers.image_files(folder)
    if readers.reads_folder(folder):
        yield folder
    yield from files
    for child in case_folders(folder) if depth < MAX_DEPTH else ():
        yield from _images_in(child, readers, depth + 1)


def is_label(path: Path, folder: Path, readers: Readers) -> bool:
    """Test that an image below the folder of a case is a label, by the words of its path or by its format.

    Args:
        path: of the image.
        folder: of the case.
        readers: of the data set.
    """
    case = _words(folder.name)
    words = {word for part in _parts(path, folder, readers) for word in _without(case, _words(part))}
    return not words.isdisjoint(LABEL_WORDS) or readers.is_label(path)


def _without(case: list[str], words: list[str]) -> list[str]:
    """Remove the name of the case from the words of a name. It may have a label's word: seg_1/seg_1_ct.nii.gz."""
    starts = range(len(words) - len(case) + 1)
    start = next((start for start in starts if case and words[start : start + len(case)] == case), None)
    return words if start is None else words[:start] + words[start + len(case) :]


@dataclass(frozen=True)
class _Channels:
    """The images of a case by channel.

    Args:
        images: the image by the words of its path that no other image of the case has.
        words: all words of the path of each image, without the name of the case.
        shared: words that all images of the case have; none if there is one image.
    """

    images: dict[str, Path]
    words: dict[Path, list[str]]
    shared: set[str]

    @staticmethod
    def of(folder: Path, images: Sequence[Path], readers: Readers) -> _Channels:
        """Tell the images of a case apart."""
        case = _words(folder.name)
        words = {}
        for path in images:
            parts = [word for part in _parts(path, folder, readers) for word in _words(part)]
            words[path] = parts[len(case) :] if parts[: len(case)] == case and len(parts) > len(case) else parts
        shared = set.intersection(*(set(parts) for parts in words.values())) if len(images) > 1 else set()
        keys = {" ".join(word for word in parts if word not in shared): path for path, parts in words.items()}
        return _Channels(keys, words, shared)

    def named_as(self, usual: Collection[str], shared: set[str]) -> dict[str, Path]:
        """The images by the channels of other cases: a case with fewer images has other words in common.

        Args:
            usual: the channels of other cases.
            shared: words that the images of another case have in common.
        """
        if self.images.keys() <= set(usual):
            return self.images
        named = {}
        for key, path in self.images.items():
            words = set(self.words[path])
            fitting = [name for name in usual if (own := set(name.split())) <= words and words - own <= shared]
            named[max(fitting, key=len, default=key)] = path
        return named if len(named) == len(self.images) else self.images


def _channel_order(found: dict[Path, _Channels], channels: Sequence[str]) -> list[str]:
    """The channels of most cases in their order; empty if no case has several images."""
    if all(len(case.images) == 1 for case in found.values()) and len(channels) < 2:
        return []
    if len(channels) > 1:
        return [" ".join(_words(channel)) for channel in channels]
    counts = Counter(frozenset(case.images) for case in found.values())
    usual = max(counts, key=lambda keys: (counts[keys], len(keys)))
    return sorted(usual)


def _named_channels(
    found: dict[Path, _Channels], order: Sequence[str], problems: list[str]
) -> dict[Path, dict[str, Path]]:
    """The images of each case by channel; cases with further channels are problems."""
    several = any(len(case.images) > 1 for case in found.values())
    shared = set[str]().union(*(case.shared for case in found.values()))
    result = {}
    for folder, case in found.items():
        result[folder] = keyed = case.named_as(order, shared) if several else case.images
        # Without several images in any case, one file may have all channels.
        if order and (several or len(order) == 1) and not keyed.keys() <= set(order):
            files = some_of([_below(path, folder) for path in keyed.values()])
            problems.append(
                f"{folder}: holds the channels {', '.join(sorted(keyed)) or 'image'} ({files}), and other cases have"
                f" {', '.join(order) or 'image'}; name one file for each channel, and move other images elsewhere"
            )
    return result


def _parts(path: Path, folder: Path, readers: Readers) -> list[str]:
    """The names from the folder of a case down to an image, the suffix left out."""
    inside = path.relative_to(folder)
    return [] if path == folder else [*inside.parts[:-1], readers.stem(path)]


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else "the slices in it"


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())
