"""The folders of prepared cases in a store.

A case lies in `cases/<case>`. Data sets that share a store may have cases of one name made from different files; the
later ones lie in `others/<case>/<key>`. A case is replaced only after its source files have changed, by a case made
from the same paths.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fusionseg.data.preprocessing.record import PreparedCase, read_record
from fusionseg.utils.files import file_name, partial_path, sync

CASES, OTHERS = "cases", "others"

TRIES = 10
"""Attempts to replace an outdated case while other processes do the same."""


def temporary_folder(root: Path, name: str) -> Path:
    """A new path for a case that is being written.

    Args:
        root: the folder of the store.
        name: of the case.
    """
    return partial_path(root / CASES / file_name(name))


def read_cases(root: Path, name: str) -> Iterator[PreparedCase]:
    """Read the records of all cases of a name.

    Args:
        root: the folder of the store.
        name: of the cases.
    """
    folders = [f"{CASES}/{file_name(name)}"]
    others = root / OTHERS / file_name(name)
    if os.path.isdir(others):
        folders += sorted(f"{OTHERS}/{others.name}/{folder.name}" for folder in others.iterdir())
    for folder in folders:
        record = read_record(root, folder)
        # A file system that does not distinguish upper and lower case finds the folder of A for a.
        if record is not None and record.name == name:
            yield record


def settle(root: Path, record: PreparedCase) -> PreparedCase:
    """Rename the temporary folder of a case to its final name, while other processes may do the same.

    A complete case made from the same files is never removed, because another process may use it already.

    Args:
        root: the folder of the store.
        record: of the case, with its temporary folder.

    Returns:
        The record with its final folder.

    Raises:
        OSError: other processes kept replacing the folder.
    """
    temporary = root / record.folder
    key = hashlib.sha256(f"{record.name}:{record.content}".encode("utf-8", "surrogatepass")).hexdigest()[:10]
    folder = f"{CASES}/{file_name(record.name)}"
    for _ in range(TRIES):
        target = root / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.rename(target)
            sync(target.parent)
            return replace(record, folder=folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        there = read_record(root, folder)
        if there is not None and (there.name, there.content) == (record.name, record.content):
            shutil.rmtree(temporary)
            return there
        if there is not None and (there.name, _paths(there)) != (record.name, _paths(record)):
            folder = f"{OTHERS}/{file_name(record.name)}/{key}"
            continue
        old = partial_path(root / CASES / target.name)
        with suppress(FileNotFoundError):  # another process moved it
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(errno.EBUSY, "other processes keep replacing this case with one of other files", str(target))


def _paths(record: PreparedCase) -> tuple[str, ...]:
    return tuple(source.path for source in record.sources)
