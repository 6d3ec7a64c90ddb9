"""The one reader of a run's small JSON files: records, jobs, environment.

A file that was cut off by a kill, damaged, edited by hand or put there by another program gives what is intact in it,
with a warning about the rest; it never ends the command that reads it.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

log = logging.getLogger("fusionseg")

Record = dict[str, Any]
TAIL_BYTES = 1 << 16
_LARGEST = 2**63
# Numbers, and tables of numbers by name: what the readers of records compute with.
_NUMBERS = {
    "loss", "lr", "grad_norm", "skipped", "cases", "dice", "ssim", "psnr", "samples_per_s", "memory_gb", "step_s",
    "data_s", "val_s", "total_s",
}  # fmt: skip
_TABLES = {"dice_per_class", "phases_s"}
_EVENT_TEXTS = ("job", "log", "reason", "nodes")
_EVENT_COUNTS = ("steps", "step", "pid", "restarts", "exit_status")


def read_records(metrics: Path) -> list[Record]:
    """All records of a metrics.jsonl, the oldest first; none if there is no such file."""
    return _read(metrics, _is_record)


def sift_records(metrics: Path) -> tuple[list[Record], int]:
    """The same without a warning, and the number of lines that are no records."""
    try:
        found, wrong = _sift(read_regular(metrics), _is_record)
    except OSError:
        return [], 0
    return found, len(wrong)


def last_records(metrics: Path) -> dict[str, Record]:
    """The last record of each kind near the end of a metrics.jsonl, in the order in which they were written."""
    found: dict[str, Record] = {}
    for record in _read(metrics, _is_record, tail=True):
        found.pop(record["kind"], None)
        found[record["kind"]] = record
    return found


def read_events(ledger: Path) -> list[Record]:
    """All events of a jobs.jsonl, the oldest first; none if there is no such file."""
    return _read(ledger, _is_event)


def read_object(path: Path) -> Record:
    """The object that a JSON file holds; empty if there is no such file, or if it holds something else."""
    try:
        value = _parse(read_regular(path).decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s: cannot be read (%s): passed over", path, error.strerror)
        return {}
    if not isinstance(value, dict):
        log.warning("%s: is not a JSON object: passed over", path)
        return {}
    return value


def read_regular(path: Path, tail: bool = False) -> bytes:
    """The content, or the end of it, of a regular file. A pipe would be waited for, a folder is no content.

    Raises:
        OSError: there is no such file, it is no regular one, or it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "it is no regular file")
        if tail:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read()


def _read(path: Path, is_valid: Callable[[Record], bool], *, tail: bool = False) -> list[Record]:
    try:
        content = read_regular(path, tail)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s: cannot be read (%s): passed over", path, error.strerror)
        return []
    found, wrong = _sift(content, is_valid, begins_within=tail and len(content) >= TAIL_BYTES)
    if wrong:
        which = "" if tail else f", the first is line {wrong[0]}"
        log.warning("%s: %d lines are no records of this program%s: passed over", path, len(wrong), which)
    return found


def _sift(
    content: bytes, is_valid: Callable[[Record], bool], *, begins_within: bool = False
) -> tuple[list[Record], list[int]]:
    """The valid objects, and the numbers of the lines that are none."""
    found, wrong = [], []
    for number, (line, cut) in enumerate(_lines(content, begins_within), start=1):
        value = _parse(line)
        if isinstance(value, dict) and is_valid(value):
            found.append(value)
        elif not cut:
            wrong.append(number)
    return found, wrong


def _lines(content: bytes, begins_within: bool) -> Iterator[tuple[str, bool]]:
    """Lines, and whether they may be cut off: the first of a tail, and the last if it has no end."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        if line.strip():
            cut = number == len(lines) - 1 or (number == 0 and begins_within)
            yield line.decode("utf-8", errors="replace"), cut


def _parse(text: str) -> Any:
    """The value of a JSON text, NaN and infinity as None; None if it is no JSON."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def _is_record(record: Record) -> bool:
    kind = record.get("kind")
    if not isinstance(kind, str) or not _is_count(record.get("step")):
        return False
    if kind == "end" and not all(isinstance(record.setdefault(name, ""), str) for name in ("status", "reason")):
        return False
    for name, value in record.items():
        if (name in _NUMBERS or name.startswith("best_")) and not _is_number(value):
            return False
        if name in _TABLES and not (isinstance(value, dict) and all(map(_is_number, value.values()))):
            return False
    return True


def _is_event(event: Record) -> bool:
    return (
        isinstance(event.get("event"), str)
        and event.get("job", "-") != ""
        and all(event.get(name) is None or isinstance(event[name], str) for name in _EVENT_TEXTS)
        and all(event.get(name) is None or isinstance(event[name], int) for name in _EVENT_COUNTS)
        and (event["event"] not in ("submitted", "started") or isinstance(event.get("job"), str))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or null for one that is not known."""
    if isinstance(value, bool):
        return False
    return (
        value is None
        or (isinstance(value, int) and abs(value) < _LARGEST)
        or (isinstance(value, float) and isfinite(value))
    )
