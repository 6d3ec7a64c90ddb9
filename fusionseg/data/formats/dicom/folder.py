"""Questions about a folder of DICOM files: does it hold a series, and which files are its slices."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from fusionseg.data.formats.dicom.candidates import candidate_files, is_dicom
from fusionseg.data.formats.dicom.headers import SEGMENTATION, DicomFile, read_header
from fusionseg.data.formats.image_file import VolumeError

_TRIED = 3
"""Number of files that are no DICOM before a folder counts as one without a series."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Beginning of the UIDs of screenshots, such as the pages of a dose report."""


def holds_series(folder: Path, wanted: str | None = None) -> bool:
    """Test that a folder directly holds slices, or a single multi-frame file.

    Scouts, reports and screenshots do not count. In most folders, one file is read.

    Args:
        folder: any folder; the folders within it do not count.
        wanted: the series that counts, as for `is_wanted`.
    """
    if not folder.is_dir():
        return False
    try:
        return any(_is_part(file, folder, wanted) for file in _dicom_files(folder))
    except OSError:
        return False


def is_image_alone(path: Path, wanted: str | None = None) -> bool:
    """Test that a DICOM file is an image without other files: it has several frames, or is a DICOM-SEG.

    Args:
        path: the file. A file that cannot be read counts, so that `read` reports the damage.
        wanted: the series that counts, as for `is_wanted`.
    """
    try:
        header = read_header(path)
    except VolumeError:
        return True
    several = len(header.slices) > 1 and not header.is_localizer and is_wanted(header, wanted)
    return header.sop_class == SEGMENTATION or several


def files_of_folder(folder: Path, wanted: str | None = None) -> list[Path]:
    """List the files that the image of a folder is made of.

    Args:
        folder: of the image.
        wanted: the series that counts, as for `is_wanted`.

    Returns:
        The folder's own files if it is an image, see `holds_series`. Otherwise the files below it count too.
    """
    return list(candidate_files(folder, nested=not holds_series(folder, wanted)))


def is_wanted(header: DicomFile, wanted: str | None) -> bool:
    """Test that a file belongs to the series that the user has chosen.

    Args:
        header: of the file.
        wanted: the description of the series, where * and ? stand for any letters, or the end of its UID; several are
            separated by |. None takes every series.
    """
    if wanted is None:
        return True
    patterns = [pattern.strip() for pattern in wanted.split("|")]
    name = header.description.casefold()
    return any(
        fnmatchcase(name, pattern.casefold()) or (pattern.isdigit() and header.series.endswith(pattern))
        for pattern in patterns
    )


def is_segmentation(path: Path) -> bool:
    """Test that a file, or the one file in a folder, is a DICOM-SEG.

    Args:
        path: the file or the folder.
    """
    try:
        file = next(_dicom_files(path), None) if path.is_dir() else path
        return file is not None and read_header(file).sop_class == SEGMENTATION
    except (VolumeError, OSError):  # `read` reports the damage
        return False


def _dicom_files(folder: Path) -> Iterator[Path]:
    others = 0
    for file in candidate_files(folder, nested=False):
        if is_dicom(file):
            yield file
        elif (others := others + 1) >= _TRIED:
            return


def _is_part(file: Path, folder: Path, wanted: str | None) -> bool:
    """Test that a DICOM file of a folder makes the folder an image."""
    try:
        header = read_header(file)
    except VolumeError:  # `read` reports the damage
        return True
    if header.sop_class != SEGMENTATION and not is_wanted(header, wanted):
        return False
    if header.is_localizer or header.sop_class.startswith(_SECONDARY_CAPTURE):
        return False
    if header.sop_class == SEGMENTATION or len(header.slices) > 1:
        return len(list(islice(candidate_files(folder, nested=False), 2))) == 1
    return header.samples > 0


def kind_without_volume(folder: Path) -> str | None:
    """Tell the kind of a folder's DICOM files if they are no volume: a segmentation, a scout, contours or a report.

    Several multi-frame files are no single volume either.

    Args:
        folder: directly holds DICOM files, the first few of which are read.

    Returns:
        The kind; None for a volume, and for files that cannot be read, which the reader reports.
    """
    kinds = []
    for file in islice(candidate_files(folder, nested=False), _TRIED):
        try:
            header = read_header(file)
        except VolumeError:
            return None
        if header.sop_class == SEGMENTATION:
            kinds.append("segmentation")
        elif not header.samples:
            kinds.append(header.modality or "no pixels")
        elif header.is_localizer:
            kinds.append("scout")
        elif len(header.slices) > 1:  # a single one in its folder is an image
            kinds.append("several multi-frame files; give each a folder of its own, or the suffix .dcm")
        else:
            return None
    return kinds[0] if kinds else None


def holds_dicom(folder: Path) -> bool:
    """Test that one of the first files of a folder, or of folders within it, is DICOM.

    Args:
        folder: any folder.
    """
    try:
        return any(is_dicom(file) for file in islice(candidate_files(folder), _TRIED))
    except OSError:
        return False
