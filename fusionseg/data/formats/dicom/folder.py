"""Questions about a folder of DICOM files: does it hold a series, and which files are its slices."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from fusionseg.data.formats.dicom.candidates import candidate_files, is_dicom
from fusionseg.data.formats.dicom.headers import SEGMENTATION, read_header
from fusionseg.data.formats.dicom.series import find_series
from fusionseg.data.formats.dicom.stack import stack_slices
from fusionseg.data.formats.image_file import VolumeError

_TRIED = 3
"""Number of files whose first bytes are read before a folder counts as one without DICOM."""


def holds_series(folder: Path) -> bool:
    """Test that a folder directly holds slices, or a single multi-frame file. At most a few files are read.

    Args:
        folder: any folder; the folders within it do not count.
    """
    if not folder.is_dir():
        return False
    files = candidate_files(folder, nested=False)
    try:
        first = next((file for file in islice(files, _TRIED) if is_dicom(file)), None)
    except OSError:
        return False
    if first is None:
        return False
    try:
        header = read_header(first)
    except VolumeError:  # `read` reports the damage
        return True
    if header.sop_class == SEGMENTATION or len(header.slices) > 1:
        return len(list(islice(candidate_files(folder, nested=False), 2))) == 1
    return True


def slice_files(folder: Path) -> list[Path]:
    """List the files of the one series of a folder, in the order of their positions.

    Args:
        folder: of the series.

    Raises:
        VolumeError: as the reader of DICOM.
    """
    return list(dict.fromkeys(one.path for one in stack_slices(find_series(folder)).slices))
