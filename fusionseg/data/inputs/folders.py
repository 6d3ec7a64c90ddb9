"""The cases of a folder: images in it, or a folder for each case below it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fusionseg.data.formats.case import CHANNEL, Case
from fusionseg.data.formats.dicom.folder import kind_without_volume
from fusionseg.data.formats.layouts.folders import LABEL_WORDS, MAX_DEPTH, case_folders, is_folder_layout, is_label
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.channel_files import cases_of_files, channel_of, files_of_case, named_channels
from fusionseg.data.inputs.found import Found
from fusionseg.utils.errors import some_of


def cases_in_folder(
    folder: Path, channels: Sequence[str] | None, readers: Readers, *, accept_missing: bool = False
) -> Found:
    """Find the cases whose images lie in a folder itself, without its subfolders.

    Labels of other images in the folder are left out: `a_seg` beside `a`, and `label` beside anything else.

    Args:
        folder: the slices of a DICOM series, which are one case, or image files.
        channels: names of the network's channels; None if they are not known.
        readers: of the image files.
        accept_missing: a case may lack the file of a channel.

    Returns:
        No case and no problem if there is no image in the folder itself.
    """
    every = readers.image_files(folder)
    labels = [file for file in every if is_label(file, folder, readers)]
    if len(labels) < len(every):  # a word in the name of an image is not enough, where images lie side by side
        stems = {"", *(readers.stem(file) for file in every)}
        stems |= {match[1] for stem in stems if (match := CHANNEL.fullmatch(stem))}
        stems |= {named[0] for stem in stems if (named := channel_of(stem, channels or ())) is not None}
        labels = [file for file in labels if readers.is_label(file) or _stem_of_image(file, readers) in stems]
    files = [file for file in every if file not in labels]
    if readers.reads_folder(folder):
        if files:
            return Found(problems=[_mixed(folder, files)])
        return Found(
            [Case(folder.resolve().name, (folder,), None)], unread=[*labels, *folders_with_images(folder, readers)]
        )
    if labels and not files and not is_folder_layout(folder, readers):
        files, labels = labels, []  # images with such names
    if not files:
        return Found()
    found = cases_of_files(folder, files, channels, readers, accept_missing=accept_missing)
    found.unread += [*labels, *other_files(folder, every, readers), *folders_with_images(folder, readers)]
    return found


def cases_below_folder(
    folder: Path, channels: Sequence[str] | None, readers: Readers, *, accept_missing: bool = False
) -> Found:
    """Find the cases of a folder with a folder for each case: an image, the files of its channels, or DICOM series.

    A case is called like its folder, below the input: `PATIENT_STUDY_SERIES` for PATIENT/STUDY/SERIES. The name does
    not depend on other cases, so it stays the same when cases are added.

    Args:
        folder: the input.
        channels: names of the network's channels; None if they are not known.
        readers: of the image files.
        accept_missing: a case may lack the file of a channel.
    """
    found = Found()
    _search(folder, (), channels or ("image",), readers, found, {folder.resolve()}, accept_missing=accept_missing)
    return found


def other_files(folder: Path, files: Sequence[Path], readers: Readers) -> list[Path]:
    """List the files of a folder that are no part of its images. Hidden files are not listed.

    Args:
        folder: the folder.
        files: its image files.
        readers: of the image files.
    """
    parts = {part for file in files for part in readers.files(file)}
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry not in parts and entry.is_file()
    )


def folders_with_images(folder: Path, readers: Readers) -> list[Path]:
    """List the subfolders of a folder that hold images themselves.

    Args:
        folder: the folder.
        readers: of the image files.
    """
    return [child for child in case_folders(folder) if readers.image_files(child) or readers.reads_folder(child)]


def _search(
    folder: Path,
    parts: tuple[str, ...],
    channels: Sequence[str],
    readers: Readers,
    found: Found,
    seen: set[Path],
    *,
    accept_missing: bool,
) -> None:
    """Add the cases of the subfolders of a folder to those that were found.

    Args:
        parts: names of the folders from the input to this folder.
        seen: the folders on the way, so that a link to one of them does not lead in a circle.
    """
    for child in case_folders(folder):
        if (place := child.resolve()) in seen:
            continue
        name = "_".join((*parts, child.name))
        # Labels lie beside the images in data sets with a folder for each case.
        of_labels = child.name.casefold() in LABEL_WORDS or (bool(parts) and is_label(child, folder, readers))
        labels = [file for file in readers.image_files(child) if of_labels or is_label(file, child, readers)]
        files = [file for file in readers.image_files(child) if file not in labels]
        inner = case_folders(child)
        lone = not (of_labels or files or readers.reads_folder(child) or is_folder_layout(child, readers))
        if labels and lone:
            files, labels = labels, []  # images with such names, since nothing else is there
        found.unread += labels
        if readers.reads_folder(child):
            if readers.is_label(child):
                found.without_volume[child] = "segmentation"
            elif files:
                found.problems.append(_mixed(child, files))
            else:
                found.cases.append(Case(name, (child,), None))
                found.unread += folders_with_images(child, readers)
        elif files:
            of_case = files_of_case(name, child, files, channels, readers, accept_missing=accept_missing)
            found.cases += of_case.cases
            found.problems += of_case.problems
            others = other_files(child, [*files, *labels], readers)
            found.unread += [*of_case.unread, *others, *folders_with_images(child, readers)]
        elif of_labels:
            pass
        elif (images := _channel_folders(inner, channels, readers)) is not None:
            found.cases.append(Case(name, images, None))
        elif inner and len(parts) < MAX_DEPTH:
            seen_here = {*seen, place}
            _search(child, (*parts, child.name), channels, readers, found, seen_here, accept_missing=accept_missing)
        elif (kind := kind_without_volume(child)) is not None:  # exports have such folders beside the series
            found.without_volume[child] = kind
        else:
            found.empty.append(child)


def _channel_folders(folders: Sequence[Path], channels: Sequence[str], readers: Readers) -> tuple[Path, ...] | None:
    """The image of each channel, from folders that are called like the channels: T1/, FLAIR/.

    Returns:
        The images in the order of the channels; None if the folders are not those of a case with several channels.
    """
    if len(channels) < 2:
        return None
    for named in named_channels(folders, channels, readers).values():
        if len(named) == len(channels) and all(len(paths) == 1 for paths in named.values()):
            images = [_only_image(named[position][0], readers) for position in range(len(channels))]
            if all(image is not None for image in images):
                return tuple(image for image in images if image is not None)
    return None


def _only_image(folder: Path, readers: Readers) -> Path | None:
    """The one image in a folder: the folder itself for a DICOM series, or its only image file."""
    files = readers.image_files(folder)
    if readers.reads_folder(folder):
        return None if files else folder
    return files[0] if len(files) == 1 else None


def _stem_of_image(label: Path, readers: Readers) -> str | None:
    """The stem of the image that a label belongs to: `a` for `a_seg` and `a-label`, empty for `label`.

    Returns:
        None if the last word of the name is none for a label.
    """
    words = re.split(r"([_\-. ]+)", readers.stem(label))
    count = len(words)
    while words and words[-1].casefold() in LABEL_WORDS:
        words = words[:-2]
    return "".join(words) if len(words) < count else None


def _mixed(folder: Path, files: Sequence[Path]) -> str:
    listed = some_of([file.name for file in files])
    return (
        f"{folder}: holds a DICOM series and other images ({listed}); it is not clear which is the input: put them in"
        " different folders"
    )
