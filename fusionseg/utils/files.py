"""Files that appear whole or not at all; folders that can be written; file names made of other names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusionseg.utils.errors import UserError, WriteError

PARTIAL = ".partial-"
"""Beginning of every temporary name."""
MAX_NAME_BYTES = 255
"""Longest file name of the usual file systems."""
_PARTIAL_BYTES = len(f"{PARTIAL}{'0' * 12}-")
_PROBE_BYTES = 4096
# Names of devices, which Windows and the disks that it shares do not take as file names.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is synced to disk and takes the name `path`.

    When the body raises, the temporary file is removed and whatever was at `path` before is untouched.

    Raises:
        WriteError: the file cannot be written, with `path` and the cause.
    """
    # The suffixes stay at the end: libraries choose the format by them (.nii.gz, .png).
    temporary = partial_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
        if not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "nothing was written", str(temporary))
        with writing(path):
            sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is to be told
            temporary.unlink()
        raise
    with writing(path):
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system says about writing `path` as a WriteError that names it.

    An OSError about a file elsewhere (one that the body reads) passes as it is.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if not error.args or not _concerns(error.filename, path):
            raise
        # NumPy gives no number where fewer bytes were written than asked for.
        raise WriteError(error.errno or errno.EIO, cause_of(error, path), str(path)) from error


def _concerns(filename: Any, path: Path) -> bool:
    """Whether a name in an OSError lies in the folder of `path`, or is a folder that leads to it; or there is none."""
    if not isinstance(filename, str):
        return True
    return Path(filename).is_relative_to(path.parent) or path.is_relative_to(filename)


def cause_of(error: OSError, path: Path) -> str:
    """The reason why `path` cannot be written, and what to do about it."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or error.errno is None:
        return f"{reason}: free some space, or choose another place"
    if error.errno == errno.EFBIG:
        return f"{reason}: raise the limit (ulimit -f), or choose another place"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{reason}: choose another place, or change the permissions"
    if error.errno == errno.ENAMETOOLONG:
        return f"{reason}: choose a shorter name"
    if os.path.isdir(path):
        return "there is a folder of this name: choose another name"
    for folder in path.parents:
        if os.path.islink(folder) and not os.path.exists(folder):
            return f"{folder} is a link to {os.readlink(folder)}, which is not there: choose another place"
        if os.path.exists(folder) and not os.path.isdir(folder):
            return f"{folder} is a file, not a folder: choose another place"
    return f"{reason}: choose another place"


def writable_folder(folder: Path, key: str) -> None:
    """Make sure that a folder can be made and files written there, before anything is computed for them.

    Nothing stays of the attempt: what is refused for another reason leaves no empty folder.

    Args:
        key: the setting or the option that names the folder, for the message.

    Raises:
        UserError: with the folder and the cause.
    """
    missing = [part for part in (folder, *folder.parents) if not os.path.lexists(part)]
    probe = partial_path(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as error:
        raise UserError(f"{key}: {folder}: cannot be written: {cause_of(error, probe)}") from None
    finally:
        for remove in (probe.unlink, *(part.rmdir for part in missing)):
            with suppress(OSError):  # another process may be at work there already
                remove()


def writable_file(path: Path, key: str) -> None:
    """Make sure that a file can be written, before anything is computed for it.

    Raises:
        UserError: with the file and the cause.
    """
    reason = ""
    if os.path.isdir(path):
        reason = "there is a folder of this name: choose another name"
    elif len(os.fsencode(path.name)) + _PARTIAL_BYTES > MAX_NAME_BYTES:
        reason = "File name too long: choose a shorter name"
    if reason:
        raise UserError(f"{key}: {path}: cannot be written: {reason}")
    writable_folder(path.parent, key)


def user_path(text: str) -> Path:
    """A path from a configuration, in which ~/ is the home folder: a folder called ~ is never meant."""
    return Path(os.path.expanduser(text))


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that no other process, on no other machine, takes."""
    return path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:12]}-{path.name}")


def file_name(name: str, suffix: str = "") -> str:
    """A name from a data set as the name of a file or folder within another folder.

    Names that are usual stay as they are. One that could lead elsewhere, be hidden, be taken for an option, or be no
    file name on a common file system is made harmless and gets a short hash of the original: different names stay
    different.

    Args:
        suffix: what follows, such as .nii.gz; the whole fits a file system, with a temporary name's prefix too.
    """
    safe = "".join(letter if _is_harmless(letter) else "_" for letter in name)
    if safe[:1] in (".", "-", " "):
        safe = "_" + safe[1:]
    if safe[-1:] in (".", " "):
        safe = safe[:-1] + "_"
    if safe.split(".")[0].lower() in _RESERVED:
        safe = f"_{safe}"
    room = MAX_NAME_BYTES - _PARTIAL_BYTES - len(suffix.encode())
    if safe == name and 0 < len(name.encode()) <= room:
        return name + suffix
    key = "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    # Cut between letters, not within one.
    return (safe.encode()[: room - len(key)].decode("utf-8", "ignore") or "_") + key + suffix


def _is_harmless(letter: str) -> bool:
    return letter == " " or (letter.isprintable() and letter not in "/\\")


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
