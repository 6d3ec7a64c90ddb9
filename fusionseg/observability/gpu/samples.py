"""Samples of GPU counters, and gpu.csv, the file that stores them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fusionseg.utils.errors import UserError

THROTTLE_REASONS = {
    0x002: "app_clocks",
    0x004: "power",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "thermal",
    0x040: "hw_thermal",
    0x080: "power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of NVML's mask of clock event reasons (nvml.h). 0x001, idle, is not a throttle reason."""
_IDLE = 0x001


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters of one GPU at one time; None is a counter that could not be read.

    The fields after `index` are the columns of gpu.csv, in this order.
    """

    uuid: str
    """UUID as NVML writes it, with the prefix GPU- or MIG-."""
    index: str
    """NVML index of the card; `card:instance`, such as 0:1, for a MIG instance."""
    busy_percent: float | None = None
    """Share of the last sampling period (at most a second) in which at least one kernel ran."""
    memory_busy_percent: float | None = None
    """Share of that period in which memory was read or written."""
    memory_used_gb: float | None = None
    memory_total_gb: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    """Reasons for lowered clocks, from THROTTLE_REASONS."""
    pcie_tx_mb_per_s: float | None = None
    """Data sent by the GPU, measured over 20 ms of the interval."""
    pcie_rx_mb_per_s: float | None = None
    """Data received by the GPU, measured in the same way."""
    nvlink_tx_mb_per_s: float | None = None
    """Data sent over all links since the last sample, without protocol overhead."""
    nvlink_rx_mb_per_s: float | None = None
    ecc_corrected: int | None = None
    """Corrected memory errors since the driver was loaded."""
    ecc_uncorrected: int | None = None
    processes: int | None = None
    """Number of compute processes on the GPU."""


def throttle_names(mask: int) -> tuple[str, ...]:
    """Translate NVML's mask of clock event reasons to short names; unknown bits become "other"."""
    known = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    rest = mask & ~(sum(THROTTLE_REASONS) | _IDLE)
    return (*known, "other") if rest else tuple(known)


_COUNTERS = tuple(field.name for field in fields(Sample) if field.name not in ("uuid", "index"))
COLUMNS = ("time", "uuid", "index", *_COUNTERS)
"""`time` is UTC in ISO 8601; the others are the fields of Sample. `throttle` has names joined by "+", or "none"."""


class GpuCsv:
    """gpu.csv, open for appending. Earlier rows stay, except an incomplete last line."""

    def __init__(self, path: Path) -> None:
        """Raises:
        UserError: the file has other columns, so new rows would not fit.
        OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ",".join(COLUMNS) + "\n"
        with path.open("a+b") as file:
            file.seek(0)
            first = file.readline(len(header))
            # Check the header before truncating: a wrong path may name a file of the user.
            if first != header.encode() and not (header.encode().startswith(first) and not first.endswith(b"\n")):
                raise UserError(
                    f"{path}: the file exists and is no gpu.csv with the columns of this version; move it away or give"
                    " another path"
                )
            end = _end_of_last_line(file)
            file.truncate(end)
        self._file = path.open("a", encoding="utf-8")
        if not end:
            self._file.write(header)
            self._file.flush()

    def write(self, samples: Sequence[Sample], time: datetime | None = None) -> None:
        """Append a row for each sample; the rows are in the file when this method returns.

        Args:
            samples: one of each GPU.
            time: time of the samples, with a time zone; None is now.
        """
        stamp = (time or datetime.now(UTC)).isoformat(timespec="milliseconds")
        lines = []
        for sample in samples:
            cells = [stamp, sample.uuid, sample.index, *(_cell(getattr(sample, name)) for name in _COUNTERS)]
            lines.append(",".join(cells) + "\n")
        self._file.write("".join(lines))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_gpu_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a gpu.csv.

    An incomplete last line, which a killed run leaves, is skipped.

    Yields:
        `time` as a datetime, `uuid` and `index` as str, `throttle` as a tuple of names, the counters as float; None for
        an empty cell.

    Raises:
        UserError: the file cannot be read, is no gpu.csv, or has an invalid value.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(line for line in file if line.endswith("\n"))
            header = next(reader, [])
            if not {"time", "uuid", "index"} <= set(header):
                raise UserError(f"{path}: is no gpu.csv: the first line lacks the columns time, uuid and index")
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
        raise UserError(f"{path}, line {line}: {error}; correct or remove the line") from None
    return row


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _end_of_last_line(file: IO[bytes]) -> int:
    """Offset of the end of the last complete line in bytes."""
    keep = file.seek(0, os.SEEK_END)
    while keep:
        start = max(0, keep - 4096)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        keep = start
    return 0
