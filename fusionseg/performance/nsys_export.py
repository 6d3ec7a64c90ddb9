"""Reader of Nsight Systems reports in the form of SQLite exports (`nsys export --type sqlite`).

The schema is NVIDIA's: "SQLite Export Schema Reference" in the documentation of Nsight Systems. An export has a table
only if there are rows for it, and columns differ between versions. Missing tables and columns count as empty.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fusionseg.observability.profiles.timeline import DeviceEvent, HostEvent, Kind, Timeline
from fusionseg.observability.ranges import PHASES
from fusionseg.utils.errors import UserError

DOMAIN = "fusionseg"
PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75
KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
COPIES = "CUPTI_ACTIVITY_KIND_MEMCPY"
FILLS = "CUPTI_ACTIVITY_KIND_MEMSET"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
_COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}  # CUpti_ActivityMemcpyKind
_PAYLOADS = ("uint64Value", "int64Value", "uint32Value", "int32Value")

Row = dict[str, Any]


def read_nsys_export(path: Path) -> Timeline:
    """Read the timeline of one training process; only NVTX ranges of the domain `fusionseg` become ranges.

    Raises:
        UserError: the file is no such export, or has several training processes.
    """
    if not path.is_file():
        raise UserError(f"{path}: the file does not exist")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            return _read(_Tables(connection), path)
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: cannot be read as an SQLite database ({error}); export the report again:"
            f" nsys export --type sqlite --force-overwrite true --output {path} REPORT.nsys-rep"
        ) from None


class _Tables:
    """Tables of the export. A missing table has no rows, a missing column is None."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def rows(self, table: str, *columns: str) -> Iterator[Row]:
        if table not in self.names:
            return
        there = {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
        wanted = ", ".join(f'"{name}"' if name in there else "NULL" for name in columns)
        for row in self._connection.execute(f"SELECT {wanted} FROM {table}"):
            yield dict(zip(columns, row, strict=True))

    def last_ns(self) -> int:
        """End of the last event in ns."""
        there = [table for table in ("NVTX_EVENTS", RUNTIME, KERNELS, COPIES, FILLS) if table in self.names]
        found = [self._connection.execute(f'SELECT MAX(MAX(start, COALESCE("end", 0))) FROM {t}') for t in there]
        return max((row[0] or 0 for cursor in found for row in cursor), default=0)


def _read(tables: _Tables, path: Path) -> Timeline:
    if not tables.names & {"NVTX_EVENTS", "StringIds", KERNELS, RUNTIME}:
        raise UserError(
            f"{path}: the file is an SQLite database but no export of Nsight Systems; make one by"
            " nsys export --type sqlite"
        )
    strings = {row["id"]: row["value"] for row in tables.rows("StringIds", "id", "value")}
    ranges = _ranges(tables, strings)
    processes = {_process(event.thread) for event in ranges}
    if len(processes) > 1:
        raise UserError(
            f"{path}: the report has ranges of {len(processes)} processes (expected 1); record a report for each rank,"
            " as profiling/nsys.sh does under torchrun and srun"
        )
    timeline = Timeline(path.name, "nsys", ranges)
    launches = {
        (_process(row["globalTid"]), row["correlationId"]): (row["start"], row["globalTid"])
        for row in tables.rows(RUNTIME, "start", "globalTid", "correlationId")
    }
    for event, process, correlation in _device_events(tables, strings):
        if process is None or not processes or process in processes:
            # Old exports lack the process of a kernel. It is then the only training process.
            owner = process if process is not None else next(iter(processes), None)
            start, thread = launches.get((owner, correlation), (None, None))
            timeline.device_events.append(event._replace(launch_ns=start, thread=thread))
    return timeline


def _ranges(tables: _Tables, strings: dict[int, str]) -> list[HostEvent]:
    """Ranges of the domain `fusionseg`; those still open at the end of the profile are truncated there."""
    names: dict[tuple[int | None, int], str] = {}
    found: list[tuple[tuple[int | None, int], str, Row]] = []
    columns = ("start", "end", "eventType", "text", "textId", "domainId", "globalTid", *_PAYLOADS)
    for row in tables.rows("NVTX_EVENTS", *columns):
        domain = (_process(row["globalTid"]), row["domainId"] or 0)
        text = row["text"] or strings.get(row["textId"], "")
        if row["eventType"] == DOMAIN_CREATE:
            names[domain] = text
        elif row["eventType"] in (PUSH_POP, START_END):
            found.append((domain, text, row))
    ours = {domain for domain, name in names.items() if name == DOMAIN}
    if not ours:
        # A capture that began after the domain was created may lack its name. Recognise the domain by the phases then.
        phases = set(PHASES)
        ours = {domain for domain, text, _ in found if text in phases and domain[1] and domain not in names}
    end = tables.last_ns()
    return [_range(text, row, end) for domain, text, row in found if domain in ours]


def _range(name: str, row: Row, end: int) -> HostEvent:
    truncated = row["end"] is None or row["end"] < row["start"]
    payload = next((row[column] for column in _PAYLOADS if row[column] is not None), None)
    return HostEvent(name, row["start"], end if truncated else row["end"], row["globalTid"], payload, truncated)


def _device_events(tables: _Tables, strings: dict[int, str]) -> Iterator[tuple[DeviceEvent, int | None, int]]:
    """Yield each device event, its process, and the correlation number that it shares with its launch."""
    columns = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
    for row in tables.rows(KERNELS, *columns, "demangledName", "shortName"):
        name = strings.get(row["demangledName"]) or strings.get(row["shortName"]) or "kernel"
        yield _device_event(name, "kernel", row)
    for row in tables.rows(COPIES, *columns, "copyKind"):
        yield _device_event(f"Memcpy {_COPY_KINDS.get(row['copyKind'], '')}".strip(), "memcpy", row)
    for row in tables.rows(FILLS, *columns):
        yield _device_event("Memset", "memset", row)


def _device_event(name: str, kind: Kind, row: Row) -> tuple[DeviceEvent, int | None, int]:
    event = DeviceEvent(name, kind, row["start"], row["end"], row["deviceId"] or 0, row["streamId"] or 0)
    return event, _process(row["globalPid"]), row["correlationId"]


def _process(serialized: Any) -> int | None:
    """Process part of a globalTid or globalPid: the bits above the lowest 24, which are the thread."""
    return None if serialized is None else int(serialized) >> 24
