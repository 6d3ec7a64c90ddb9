"""gpu.csv: a row for each GPU and sample."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fusionseg.observability.gpu.sample import Sample
from fusionseg.utils.errors import UserError

_COUNTERS = tuple(field.name for field in fields(Sample) if field.name not in ("uuid", "index"))
COLUMNS = ("time", "uuid", "index", *_COUNTERS)
"""`time` is in UTC; the others are the fields of Sample, `throttle` as names joined by +, or none."""


class GpuCsv:
    """The file, open for appending; what was written before it stays, but for a line that was not finished."""

    def __init__(self, path: Path) -> None:
        """Raises:
        UserError: it has other columns, so its rows and the new ones could not be told apart.
        OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ",".join(COLUMNS) + "\n"
        with path.open("a+b") as file:
            file.seek(0)
            first = file.readline(len(header))
            # Looked at before anything is cut off: the path may be a slip, and the file someone's notes.
            if first != header.encode() and not (header.encode().startswith(first) and not first.endswith(b"\n")):
                raise UserError(f"{path}: is no gpu.csv with the columns of this version: move it away")
            end = _end_of_last_line(file)
            file.truncate(end)
        self._file = path.open("a", encoding="utf-8")
        if not end:
            self._file.write(header)
            self._file.flush()

    def write(self, samples: Sequence[Sample], time: datetime | None = None) -> None:
        """Append a row for each sample; they are in the file when this returns."""
        stamp = (time or datetime.now(UTC)).isoformat(timespec="milliseconds")
        lines = []
        for sample in samples:
            cells = [stamp, sample.uuid, sample.index, *(_cell(getattr(sample, name)) for name in _COUNTERS)]
            lines.append(",".join(cells) + "\n")
        self._file.write("".join(lines))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_gpu_csv(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gpu.csv: time as a datetime, uuid and index as text, the counters as numbers, None if empty.

    The last line of a run that was killed may be torn: it is left out.

    Raises:
        UserError: the file is not there, or is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(line for line in file if line.endswith("\n"))
            header = next(reader, [])
            if not {"time", "uuid", "index"} <= set(header):
                raise UserError(f"{path}: is no gpu.csv: its first line does not name time, uuid and index")
            for cells in reader:
                if len(cells) == len(header):
                    yield _row(path, reader.line_num, dict(zip(header, cells, strict=True)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _row(path: Path, line: int, cells: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: cells[name] for name in ("uuid", "index")}
    try:
        row["time"] = datetime.fromisoformat(cells["time"])
        for name in _COUNTERS:
            text = cells.get(name, "")
            if name == "throttle":
                row[name] = None if not text else tuple(text.split("+")) if text != "none" else ()
            else:
                row[name] = float(text) if text else None
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {error}: repair or remove the line") from None
    return row


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _end_of_last_line(file: IO[bytes]) -> int:
    """Where the last whole line ends: a killed run may leave half a line after it."""
    keep = file.seek(0, os.SEEK_END)
    while keep:
        start = max(0, keep - 4096)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        keep = start
    return 0
