"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is synced to disk and takes the name `path`.

    When the body raises, the temporary file is removed and whatever was at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay at the end: libraries choose the format by them (.nii.gz, .png).
    temporary = partial_path(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync(path.parent)


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that no other process, on no other machine, takes."""
    return path.with_name(f".partial-{uuid.uuid4().hex[:12]}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder; the rename itself is still atomic
            raise
    finally:
        os.close(handle)
