"""A file beside the data set that a key of the configuration names, and its hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fusionseg.utils.errors import UserError
from fusionseg.utils.files import user_path


@dataclass(frozen=True)
class NamedFile:
    """A file that was read.

    Args:
        key: that named it, with the path, for messages.
        path: of the file.
        text: its content.
        sha256: of its bytes.
    """

    key: str
    path: Path
    text: str
    sha256: str


def read_named_file(key: str, text: str, folder: Path) -> NamedFile:
    """Read a text file: in the folder of the data set, or else in the current folder.

    Args:
        key: of the configuration.
        text: the path as the key gives it.
        folder: of the data set.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    given = user_path(text)
    places = [given] if given.is_absolute() else [folder / given, Path.cwd() / given]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = " and ".join(str(place) for place in dict.fromkeys(places))
        raise UserError(f"{key}={text}: there is no such file (expected {looked}); correct the path")
    try:
        content = path.read_bytes()
        return NamedFile(f"{key}={text}", path, content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest())
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={text}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{key}={text}: cannot be read ({error.strerror}); check its permissions") from None
