"""Folders that appear whole or not at all, and the deletion of checkpoints that are files or folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusionseg.utils.files import partial_path, sync, whole_file

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems without symbolic links."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` with a temporary name. When the body is done, it is renamed to `path`.

    The body forces its files to disk. If it raises, the folder is removed.

    Args:
        path: the folder, which must not exist; its parent is made if it does not exist.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    temporary = partial_path(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, path)
    except BaseException:
        remove_partial(temporary)
        raise
    sync(path.parent)


def remove_partial(path: Path) -> None:
    """Delete a temporary file or folder, as far as it can be deleted. The next start of the run deletes what stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint. A folder gets a temporary name first: no reader finds a part of it.

    Args:
        path: a file or a folder; nothing happens if it is missing.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        temporary = partial_path(path)
        os.rename(path, temporary)
        remove_partial(temporary)
    else:
        path.unlink(missing_ok=True)


def point_to(link: Path, folder: Path) -> None:
    """Make a symbolic link to a folder beside it, in place of what was there. Without links, nothing stays there.

    Args:
        link: its path.
        folder: in the same folder.

    Raises:
        OSError: the link cannot be made.
    """
    temporary = partial_path(link)
    try:
        os.symlink(folder.name, temporary)
        os.replace(temporary, link)
    except OSError as error:
        remove_partial(temporary)
        if error.errno not in _NO_LINKS:
            raise
        link.unlink(missing_ok=True)
    sync(link.parent)


def link_folder(source: Path, path: Path) -> None:
    """Give the files of a folder a second name in a new one, or copy them where the file system has no links.

    Args:
        source: the folder, whose files never change.
        path: the new folder, which must not exist.

    Raises:
        OSError: a file is missing, or cannot be written.
    """
    with whole_folder(path) as temporary:
        for file in sorted(source.iterdir()):
            try:
                os.link(file, temporary / file.name)
            except FileNotFoundError:
                raise
            except OSError:
                with whole_file(temporary / file.name) as copy:
                    shutil.copyfile(file, copy)
