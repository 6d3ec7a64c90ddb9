"""Tolerant readers of the JSON files of a run.

A file may be cut off because a process was killed, edited by hand, or written by another program. The readers return
the valid part and warn about the rest. They never end the command that reads.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from fusionseg.utils.files import write_all

log = logging.getLogger("fusionseg")

JsonObject = dict[str, Any]
_LARGEST = 2**63
TAIL_BYTES = 1 << 16
"""Bytes at the end of a file that are read where only its last lines matter."""


def read_object(path: Path) -> JsonObject:
    """Read a JSON file that holds an object.

    Returns:
        The object; an empty one if the file does not exist, cannot be read, or holds something else.
    """
    try:
        value = _parse(read_regular(path).decode("utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError):  # an archive takes the place of a run folder
        return {}
    except OSError as error:
        log.warning("%s: cannot be read (%s): ignored", path, error.strerror)
        return {}
    if not isinstance(value, dict):
        log.warning("%s: is not a JSON object: ignored", path)
        return {}
    return value


def read_lines(path: Path, is_valid: Callable[[JsonObject], bool], *, tail: bool = False) -> list[JsonObject]:
    """Read a file that holds one JSON object a line.

    Args:
        is_valid: accepts an object. A line that holds anything else is ignored with a warning.
        tail: read the last `TAIL_BYTES` bytes only.

    Returns:
        The valid objects, in the order of the file; none if the file does not exist or cannot be read.
    """
    try:
        content = read_regular(path, tail=tail)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("%s: cannot be read (%s): ignored", path, error.strerror)
        return []
    found, invalid = sift_lines(content, is_valid, starts_within_line=tail and len(content) >= TAIL_BYTES)
    if invalid:
        first = "" if tail else f", the first is line {invalid[0]}"
        log.warning("%s: %d lines are no records of this program%s: ignored", path, len(invalid), first)
    return found


def sift_lines(
    content: bytes, is_valid: Callable[[JsonObject], bool], *, starts_within_line: bool = False
) -> tuple[list[JsonObject], list[int]]:
    """Separate valid lines from invalid ones.

    A line that may be cut off does not count as invalid: the last line without a line end, and the first line of a
    tail. Blank lines are not counted.

    Args:
        starts_within_line: the content is the tail of a file.

    Returns:
        The valid objects, and the line numbers, from 1, of the invalid lines.
    """
    found: list[JsonObject] = []
    invalid: list[int] = []
    for number, (line, may_be_cut) in enumerate(_split_lines(content, starts_within_line), start=1):
        value = _parse(line)
        if isinstance(value, dict) and is_valid(value):
            found.append(value)
        elif not may_be_cut:
            invalid.append(number)
    return found, invalid


def append_line(path: Path, text: str, *, sync: bool = False) -> None:
    """Append lines to a file, whole or not at all. A torn last line, of a kill or a full disk, does not swallow them.

    Args:
        path: the file; it is made if it does not exist.
        text: one line, or several, each with its end.
        sync: wait for the disk.

    Raises:
        OSError: the lines cannot be written.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        is_torn = file.read(1) not in (b"", b"\n")
        try:
            write_all(file, ("\n" * is_torn + text).encode())
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def read_regular(path: Path, *, tail: bool = False) -> bytes:
    """Read a regular file.

    Args:
        tail: read the last `TAIL_BYTES` bytes only.

    Raises:
        OSError: the path does not exist, is no regular file, or cannot be read. A pipe is refused, not waited for.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "it is no regular file")
        if tail:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read()


def is_number(value: Any) -> bool:
    """Tell whether a value of a JSON file is a finite number. An integer has at most 64 bits."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def finite_or_none(value: Any) -> Any:
    """Replace nan and infinity by None, also inside dictionaries and lists, because JSON has neither."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value


def _split_lines(content: bytes, starts_within_line: bool) -> Iterator[tuple[str, bool]]:
    """Yield each line that is not blank, and whether it may be cut off."""
    lines = content.split(b"\n")
    for index, line in enumerate(lines):
        if line.strip():
            may_be_cut = index == len(lines) - 1 or (index == 0 and starts_within_line)
            yield line.decode("utf-8", errors="replace"), may_be_cut


def _parse(text: str) -> Any:
    """The value of a JSON text, nan and infinity as None; None if the text is not JSON."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
