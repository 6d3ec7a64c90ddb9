"""Synthetic profiles in the formats of the torch profiler and of Nsight Systems. All times are microseconds."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

MAIN, AUTOGRAD = 11, 12
PROCESS = 4242
COMPUTE, NCCL = 7, 20


class ChromeTrace:
    """Chrome trace, as torch.profiler writes it."""

    def __init__(self, origin: float = 4_415_278_335_000.0) -> None:
        self.origin = origin
        self.events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "ts": origin, "pid": PROCESS, "tid": 0, "args": {"name": "python"}},
            {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "PyTorch Profiler",
             "ts": origin - 90, "dur": 1e6, "args": {"Op count": 0}},
            {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": origin + 1e6},
        ]  # fmt: skip
        self._correlation = 0

    def add(self, category: str, name: str, start: float, end: float, tid: int, **args: Any) -> None:
        times = {"ts": self.origin + start, "dur": end - start}
        self.events.append(
            {"ph": "X", "cat": category, "name": name, "pid": PROCESS, "tid": tid, **times, "args": args}
        )

    def range(self, name: str, start: float, end: float, tid: int = MAIN, payload: int = 0, cut: bool = False) -> None:
        self.add("user_annotation", name, start, end, tid, **({"finished": False} if cut else {}))

    def operator(self, name: str, start: float, end: float, tid: int = MAIN) -> None:
        self.add("cpu_op", name, start, end, tid)

    def work(
        self,
        kind: str,
        name: str,
        start: float,
        end: float,
        launch: float | None,
        tid: int = MAIN,
        stream: int = COMPUTE,
    ) -> None:
        """Add work of the GPU.

        Args:
            kind: kernel, memcpy or memset.
            launch: time of the call of the CUDA runtime; None for no such call.
        """
        self._correlation += 1
        category = kind if kind == "kernel" else f"gpu_{kind}"
        place = {"device": 0, "stream": stream, "correlation": self._correlation}
        self.add(category, name, start, end, stream, **place)
        if launch is not None:
            self.add("cuda_runtime", "cudaLaunchKernel", launch, launch + 3, tid, correlation=self._correlation)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schemaVersion": 1, "traceEvents": self.events, "traceName": path.name})
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path


# Tables of `nsys export --type sqlite` (Nsight Systems 2024), without the columns of launch parameters.
NSYS_TABLES = {
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category INTEGER,"
    " color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER,"
    " uint64Value INTEGER, int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER,"
    " floatValue REAL, jsonTextId INTEGER, jsonText TEXT, binaryData TEXT",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,"
    " globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL,"
    " callchainId INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,"
    " contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,"
    " demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,"
    " contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,"
    " bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,"
    " contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,"
    " value INTEGER NOT NULL, bytes INTEGER NOT NULL",
}


class NsysExport:
    """SQLite export of Nsight Systems. As in real exports, only tables with rows exist."""

    def __init__(self, process: int = PROCESS, origin: float = 7_000_000.0) -> None:
        self.process = process
        self.origin = origin
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self._strings: dict[str, int] = {}
        self._correlation = 0
        # Domain 0 is the default domain; those of the program start at 1.
        self.domain("fusionseg", 2)

    def domain(self, name: str, number: int) -> None:
        self._insert("NVTX_EVENTS", start=0, eventType=75, text=name, globalTid=self._thread(MAIN), domainId=number)

    def range(
        self,
        name: str,
        start: float,
        end: float | None,
        tid: int = MAIN,
        payload: int = 0,
        domain: int = 2,
        event_type: int = 59,
        registered: bool = True,
    ) -> None:
        """Add an NVTX range.

        Args:
            end: None for a range that was open at the end of the capture.
            registered: the name is a registered string, as in the nvtx package; otherwise it is in the event itself.
        """
        text = {"textId": self._string(name)} if registered else {"text": name}
        stop = {} if end is None else {"end": self._ns(end)}
        times = {"start": self._ns(start), **stop, "globalTid": self._thread(tid)}
        self._insert("NVTX_EVENTS", **times, **text, eventType=event_type, domainId=domain, uint64Value=payload)

    def operator(self, name: str, start: float, end: float, tid: int = MAIN) -> None:
        """Do nothing: Nsight Systems has no operators."""

    def work(
        self,
        kind: str,
        name: str,
        start: float,
        end: float,
        launch: float | None,
        tid: int = MAIN,
        stream: int = COMPUTE,
    ) -> None:
        self._correlation += 1
        row: dict[str, Any] = {"start": self._ns(start), "end": self._ns(end), "deviceId": 0, "contextId": 1}
        row |= {"streamId": stream, "correlationId": self._correlation, "globalPid": self.process << 24}
        if kind == "kernel":
            row |= {"demangledName": self._string(name), "shortName": self._string(name.split("<")[0])}
        else:
            row |= {"bytes": 1024, **({"copyKind": 1} if kind == "memcpy" else {"value": 0})}
        self._insert(f"CUPTI_ACTIVITY_KIND_{kind.upper()}", **row)
        if launch is not None:
            call = {"eventClass": 0, "nameId": self._string("cudaLaunchKernel_v7000"), "returnValue": 0}
            times = {"start": self._ns(launch), "end": self._ns(launch + 3), "globalTid": self._thread(tid)}
            self._insert("CUPTI_ACTIVITY_KIND_RUNTIME", **times, **call, correlationId=self._correlation)

    def write(self, path: Path, without: tuple[str, ...] = ()) -> Path:
        """Write the export.

        Args:
            path: file to write.
            without: columns that this version of Nsight Systems does not have.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection, connection:
            for table in dict.fromkeys(["StringIds", *(table for table, _ in self.rows)]):
                columns = [c for c in NSYS_TABLES[table].split(", ") if c.split()[0] not in without]
                connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            connection.executemany("INSERT INTO StringIds VALUES (?, ?)", [(n, s) for s, n in self._strings.items()])
            for table, row in self.rows:
                kept = {name: value for name, value in row.items() if name not in without}
                names = ", ".join(f'"{name}"' for name in kept)
                marks = ", ".join("?" * len(kept))
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(kept.values()))
        return path

    def _insert(self, table: str, **row: Any) -> None:
        self.rows.append((table, row))

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings) + 1)

    def _thread(self, tid: int) -> int:
        return (self.process << 24) + tid

    def _ns(self, microseconds: float) -> int:
        return round((self.origin + microseconds) * 1000)


def two_steps(made: ChromeTrace | NsysExport, slower: float = 0) -> None:
    """Add two steps of 1000 and 1200 us on a GPU with a stream for NCCL; the tests rely on the sums.

    Args:
        slower: us that the optimizer takes longer; the time outside of the phases gets shorter.
    """
    for number, (start, length) in enumerate(((0, 1000), (1000, 1200))):
        made.range("step", start, start + length, payload=100 + number)
        phases = (("data", 0, 100), ("augment", 40, 90), ("forward", 100, 300), ("encoder", 120, 260),
                  ("encoder.block", 130, 200), ("loss", 300, 340), ("backward", 340, 700),
                  ("optimizer", 700, 780 + slower))  # fmt: skip
        for name, first, last in phases:
            made.range(name, start + first, start + last)
        for name, first, last, tid in (
            ("aten::copy_", 45, 55, MAIN), ("aten::conv3d", 125, 240, MAIN), ("aten::convolution", 130, 230, MAIN),
            ("aten::cudnn_convolution", 140, 160, MAIN), ("ConvolutionBackward0", 480, 620, AUTOGRAD),
            ("aten::convolution_backward", 490, 560, AUTOGRAD), ("aten::_foreach_add_", 740, 770, MAIN),
        ):  # fmt: skip
            made.operator(name, start + first, start + last, tid)
        for kind, name, first, last, launch, tid, stream in (
            ("memcpy", "Memcpy HtoD (Pinned -> Device)", 60, 80, 50, MAIN, COMPUTE),
            ("kernel", "sm80_xmma_fprop_implicit_gemm<float>", 200, 400, 150, MAIN, COMPUTE),
            ("kernel", "void at::native::vectorized_elementwise_kernel<4>", 400, 450, 250, MAIN, COMPUTE),
            ("kernel", "sm80_xmma_wgrad_implicit_gemm<float>", 520, 720, 500, AUTOGRAD, COMPUTE),
            ("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 650, 850, 600, AUTOGRAD, NCCL),
            ("kernel", "void at::native::multi_tensor_apply_kernel<4>", 850, 900, 750, MAIN, COMPUTE),
        ):  # fmt: skip
            made.work(kind, name, start + first, start + last, start + launch, tid, stream)
