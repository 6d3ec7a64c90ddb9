"""The files behind the path of an image or a label: one in most formats, several in others."""

from __future__ import annotations

from pathlib import Path

from fusionseg.data.formats.readers import Readers


def files_of(path: Path, readers: Readers | None = None) -> list[Path]:
    """List the files of an image: the file; header and data of a pair; the slices of a folder.

    Args:
        path: that a case names.
        readers: of the data set; None for the built-in ones.

    Returns:
        Existing files; the path itself if it is no format that fusionseg reads itself.
    """
    found = (readers or Readers()).files(path)
    if found == [path] and path.is_dir():  # of a reader of the user's own
        return sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    return found
