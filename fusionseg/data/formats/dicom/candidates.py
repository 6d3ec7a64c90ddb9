"""The DICOM files among the files of a folder, by their names and their first bytes. Nothing here needs pydicom."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OTHER_NAMES = {"dicomdir", "thumbs.db", "desktop.ini", "lockfile", "readme", "license", "version", "autorun.inf"}
_OTHER_SUFFIXES = (
    *(".txt", ".xml", ".json", ".csv", ".tsv", ".xls", ".xlsx", ".html", ".htm", ".css", ".js", ".pdf", ".md", ".log"),
    *(".yaml", ".yml", ".ini", ".inf", ".db", ".exe", ".dll", ".bat", ".sh", ".py", ".doc", ".docx", ".rtf", ".url"),
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".ico", ".svg", ".mp4", ".avi"),
    *(".zip", ".gz", ".tar", ".tgz", ".bz2", ".rar", ".7z", ".md5", ".sha256", ".bval", ".bvec", ".pt", ".pkl"),
    *(".nii", ".hdr", ".img", ".nrrd", ".nhdr", ".raw", ".zraw", ".mha", ".mhd", ".mgz", ".npy", ".npz", ".h5", ".stl"),
)
"""Names of files that hospitals' exports and other programs put beside the slices."""


def candidate_files(folder: Path, *, nested: bool = True) -> Iterator[Path]:
    """Yield the files of a folder that should be DICOM, by their names. Hidden files are left out.

    DICOM files often have no suffix, or any other one. So a file counts unless its name is known as something else.

    Args:
        folder: of an image.
        nested: False leaves out the subfolders.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if nested and not name.startswith("."))
        for name in sorted(names):
            lower = name.lower()
            if not (name.startswith(".") or lower in _OTHER_NAMES or lower.endswith(_OTHER_SUFFIXES)):
                yield Path(place, name)


def is_dicom(path: Path) -> bool:
    """Test the first bytes of a file: the mark of a DICOM file, or a data set without it, as old programs write it.

    A pipe or a device is no DICOM file, and is not waited for.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        content = file.read(140) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    # Without the mark, a data set begins with group 0008 (or 0002), element numbers below 0x1000.
    return content[128:132] == b"DICM" or (content[:2] in (b"\x08\0", b"\x02\0") and content[3:4] < b"\x10")
