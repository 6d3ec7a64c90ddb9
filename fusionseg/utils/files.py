"""Atomic writes of files, checks that a folder can be written, and safe file names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any, Literal

from fusionseg.utils.errors import UserError, WriteError

PARTIAL = ".partial-"
"""Prefix of every temporary name."""
MAX_NAME_BYTES = 255
"""Length of the longest file name of common file systems."""
_PARTIAL_BYTES = len(f"{PARTIAL}{'0' * 12}-")
_PROBE_BYTES = 4096
_FLAGS = {"a": os.O_APPEND, "w": os.O_TRUNC}
_LEFT_OVER_S = 60.0
# Names of devices. Windows, and disks that it shares, refuse them as file names.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write bytes to an unbuffered file, of which one call may take a part.

    Args:
        file: opened with `buffering=0`.
        data: the bytes.

    Raises:
        OSError: the system refused a write; a part of the bytes may be in the file.
    """
    while data:
        data = data[file.write(data) :]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the body is done, the file is synced to disk and renamed to `path`.

    If the body raises, the temporary file is removed, and an earlier file at `path` is not changed.

    Args:
        path: the file; its folder is made if it does not exist.

    Raises:
        WriteError: the file cannot be written.
    """
    # The suffixes stay at the end of the name: libraries choose the format by them (.nii.gz, .png).
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
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise
    with writing(path):
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a WriteError with the cause and a remedy.

    An OSError about another file (one that the body reads) is not changed.

    Args:
        path: the file that the body writes.

    Raises:
        WriteError: the file cannot be written.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if not error.args or not _concerns(error.filename, path):
            raise
        # NumPy sets no error number if fewer bytes were written than requested.
        raise WriteError(error.errno or errno.EIO, cause_of(error, path), str(path)) from error


def _concerns(filename: Any, path: Path) -> bool:
    """Tell whether an OSError is about `path`: its file is in the folder of `path`, or a parent of it, or unknown."""
    if not isinstance(filename, str):
        return True
    return Path(filename).is_relative_to(path.parent) or path.is_relative_to(filename)


def cause_of(error: OSError, path: Path) -> str:
    """Describe the cause of an error in writing `path`, and the remedy.

    Args:
        error: the error of the operating system.
        path: the file.
    """
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
    if error.errno == errno.ELOOP and os.path.islink(path):
        return f"it is a link to {os.readlink(path)}, through which nothing is written: remove the link"
    for folder in path.parents:
        if os.path.islink(folder) and not os.path.exists(folder):
            return f"{folder} is a link to {os.readlink(folder)}, which does not exist: choose another place"
        if os.path.exists(folder) and not os.path.isdir(folder):
            return f"{folder} is a file, not a folder: choose another place"
    return f"{reason}: choose another place"


def writable_folder(folder: Path, key: str) -> None:
    """Make sure that files can be written in a folder, before anything is computed for them.

    The attempt leaves nothing behind, not even the folder.

    Args:
        folder: need not exist.
        key: the setting or option that names the folder, for the message.

    Raises:
        UserError: the folder cannot be made or written.
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
            with suppress(OSError):  # another process may have written there since
                remove()


def writable_file(path: Path, key: str) -> None:
    """Make sure that a file can be written, before anything is computed for it.

    Args:
        path: the file.
        key: the setting or option that names the file, for the message.

    Raises:
        UserError: the file cannot be written.
    """
    reason = ""
    if os.path.isdir(path):
        reason = "there is a folder of this name: choose another name"
    elif len(os.fsencode(path.name)) + _PARTIAL_BYTES > MAX_NAME_BYTES:
        reason = "File name too long: choose a shorter name"
    if reason:
        raise UserError(f"{key}: {path}: cannot be written: {reason}")
    writable_folder(path.parent, key)


def open_no_link(path: Path, mode: Literal["a", "w", "ab"]) -> IO[Any]:
    """Open a file to write it in place, unless it is a symbolic link: a folder from elsewhere may hold one.

    Args:
        path: the file; it is made if it does not exist.
        mode: of `open`. Text is UTF-8.

    Raises:
        OSError: it is a link (ELOOP), or cannot be opened.
    """
    handle = os.open(path, _FLAGS[mode[0]] | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8")


def user_path(text: str) -> Path:
    """Convert a path from a configuration to a `Path`. `~` at its start stands for the home folder."""
    return Path(os.path.expanduser(text))


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that is unique among all processes and machines."""
    return path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:12]}-{path.name}")


def remove_left_over(paths: Iterable[Path]) -> None:
    """Delete temporary files that a process left beside `paths` when it was killed while it wrote them.

    A file that was changed in the last minute stays: another process may be writing it.

    Args:
        paths: the files for which they stood.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for found in folder.glob(f"{PARTIAL}*"):
            with suppress(OSError):
                is_old = time.time() - found.stat().st_mtime > _LEFT_OVER_S
                if is_old and found.name[_PARTIAL_BYTES:] in wanted:
                    found.unlink()


def file_name(name: str, suffix: str = "") -> str:
    """Convert a name from a data set to the name of a file or folder.

    A common name is not changed. A name that would lead to another folder, be hidden, look like an option, or be
    refused by a common file system is changed, and a short hash of the original is added: different names stay
    different.

    Args:
        name: the name of a case, for example.
        suffix: end of the file name, such as .nii.gz. The result is short enough for common file systems, also with
            the prefix of a temporary name.
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
    # The cut must not split a character of several bytes.
    return (safe.encode()[: room - len(key)].decode("utf-8", "ignore") or "_") + key + suffix


def _is_harmless(letter: str) -> bool:
    return letter == " " or (letter.isprintable() and letter not in "/\\")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: the file.
        text: its content.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file.
        value: dictionaries, lists, strings, numbers, booleans and None.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text of a JSON file.

    Args:
        value: dictionaries, lists, strings, numbers, booleans and None.
    """
    return json.dumps(value, indent=1) + "\n"


def sync_all(paths: Sequence[Path]) -> None:
    """Force files and folders to disk, all at once: a file system writes them in one go, and the wait is that for one.

    Args:
        paths: at least one.
    """
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder; a rename in it is atomic all the same
            raise
    finally:
        os.close(handle)
