"""The readers: torch's traces and Nsight's exports come to the same form, and what is neither is refused."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from traces import AUTOGRAD, COMPUTE, MAIN, NCCL, PROCESS, ChromeTrace, NsysExport, two_steps

from fusionseg.observability.profiles.timeline import Timeline, read_torch_trace
from fusionseg.observability.ranges import annotate
from fusionseg.performance.nsys_export import read_nsys_export
from fusionseg.utils.errors import UserError

US = 1000


def test_a_trace_and_an_export_of_the_same_are_the_same(tmp_path: Path) -> None:
    torch_made, nsys_made = ChromeTrace(), NsysExport()
    two_steps(torch_made)
    two_steps(nsys_made)
    trace = read_torch_trace(torch_made.write(tmp_path / "trace.json.gz"))
    export = read_nsys_export(nsys_made.write(tmp_path / "nsys.sqlite"))
    assert (trace.source, trace.tool, export.source, export.tool) == ("trace.json.gz", "torch", "nsys.sqlite", "nsys")
    assert (trace.main_thread(), export.main_thread()) == (MAIN, (PROCESS << 24) + MAIN)
    assert len(trace.operators) == 14 and export.operators == []

    def plain(timeline: Timeline) -> tuple[list[object], list[object]]:
        start, _ = timeline.profile_range()
        ranges = [(r.name, r.start_ns - start, r.end_ns - start, int(r.thread) & 0xFFFFFF) for r in timeline.ranges]
        device = []
        for work in timeline.device_events:
            assert work.launch_ns is not None and work.thread is not None
            times = (work.start_ns - start, work.end_ns - start, work.launch_ns - start)
            name = work.name.partition(" (")[0]
            device.append((name, work.kind, *times, work.device, work.stream, int(work.thread) & 0xFFFFFF))
        return sorted(ranges), sorted(device)

    assert plain(trace) == plain(export)
    assert trace.profile_range()[1] - trace.profile_range()[0] == 2200 * US
    ranges, device = plain(trace)
    assert ("backward", 1340 * US, 1700 * US, MAIN) in ranges
    nccl = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
    assert (nccl, "kernel", 650 * US, 850 * US, 600 * US, 0, NCCL, AUTOGRAD) in device
    assert {span.payload for span in export.ranges if span.name == "step"} == {100, 101}


def test_the_window_reaches_to_the_end_of_the_last_kernel_launched(tmp_path: Path) -> None:
    made = ChromeTrace()
    made.range("step", 0, 100)
    made.work("kernel", "late", 90, 250, launch=80)
    made.work("kernel", "of another time", 300, 400, launch=290)
    start, end = read_torch_trace(made.write(tmp_path / "trace.json")).profile_range()
    assert end - start == 250 * US


def test_what_torch_itself_names_is_an_operator(tmp_path: Path) -> None:
    made = ChromeTrace()
    names = ("ProfilerStep#3", "Optimizer.step#AdamW.step", "DistributedDataParallel.forward", "nccl:all_reduce")
    for name in (*names, "optimizer", "swinViT.layers1"):
        made.range(name, 0, 100)
    timeline = read_torch_trace(made.write(tmp_path / "trace.json"))
    assert [span.name for span in timeline.ranges] == ["optimizer", "swinViT.layers1"]
    assert tuple(span.name for span in timeline.operators) == names


def test_ranges_that_the_end_of_the_profile_cuts_off(tmp_path: Path) -> None:
    """By the torch profiler itself: opened before its start, and still open at its end."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with torch.profiler.record_function("before"):
        profiler.start()
        with annotate("data"):
            torch.ones(3) + 1
        with annotate("step"):
            profiler.stop()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    timeline = read_torch_trace(tmp_path / "trace.json")
    assert [(span.name, span.truncated) for span in timeline.ranges] == [("data", False), ("step", True)]
    assert "aten::add" in {span.name for span in timeline.operators}


def test_an_open_range_of_an_export_ends_with_the_profile(tmp_path: Path) -> None:
    made = NsysExport()
    made.range("step", 0, None)
    made.range("forward", 10, 50)
    made.work("kernel", "gemm", 60, 90, launch=40)
    ranges = read_nsys_export(made.write(tmp_path / "nsys.sqlite")).ranges
    assert [(span.name, span.end_ns - span.start_ns, span.truncated) for span in ranges] == [
        ("step", 90 * US, True),
        ("forward", 40 * US, False),
    ]


def test_only_the_domain_of_the_program_counts(tmp_path: Path) -> None:
    made = NsysExport()
    made.domain("cuDNN", 1)
    made.range("forward", 0, 100)
    made.range("in the event itself", 10, 20, registered=False)
    made.range("started and ended", 20, 30, event_type=60)
    made.range("a mark", 30, 30, event_type=34)
    made.range("forward", 0, 100, domain=1)
    made.range("default domain", 0, 100, domain=0)
    ranges = read_nsys_export(made.write(tmp_path / "nsys.sqlite")).ranges
    assert [span.name for span in ranges] == ["forward", "in the event itself", "started and ended"]


def test_a_domain_without_its_name_is_known_by_its_phases(tmp_path: Path) -> None:
    made = NsysExport()
    made.rows.clear()
    for name, domain in (("forward", 3), ("encoder", 3), ("forward", 0), ("kernel selection", 4)):
        made.range(name, 0, 100, domain=domain)
    ranges = read_nsys_export(made.write(tmp_path / "nsys.sqlite")).ranges
    assert [span.name for span in ranges] == ["forward", "encoder"]


def test_an_export_without_gpu_work_and_one_of_an_old_version(tmp_path: Path) -> None:
    made = NsysExport()
    made.range("step", 0, 100)
    timeline = read_nsys_export(made.write(tmp_path / "host.sqlite"))
    assert (len(timeline.ranges), timeline.device_events) == (1, [])
    made.work("kernel", "gemm<float>", 10, 20, launch=5)
    made.work("memset", "", 20, 30, launch=6)
    old = read_nsys_export(made.write(tmp_path / "old.sqlite", without=("globalPid", "uint64Value", "graphNodeId")))
    assert [(w.name, w.stream, w.thread) for w in old.device_events] == [
        ("gemm<float>", COMPUTE, (PROCESS << 24) + MAIN),
        ("Memset", COMPUTE, (PROCESS << 24) + MAIN),
    ]
    assert old.ranges[0].payload is None


def test_equal_correlations_of_other_processes_are_kept_apart(tmp_path: Path) -> None:
    made, other = NsysExport(), NsysExport(process=77)
    made.range("step", 0, 100)
    made.work("kernel", "ours", 10, 20, launch=5)
    other.work("kernel", "ours", 30, 40, launch=25)  # as from a program of its own on the same GPU
    made.rows += [row for row in other.rows if row[0] != "NVTX_EVENTS"]
    timeline = read_nsys_export(made.write(tmp_path / "nsys.sqlite"))
    start, _ = timeline.profile_range()
    assert [(w.start_ns - start, (w.launch_ns or 0) - start) for w in timeline.device_events] == [(10 * US, 5 * US)]


def test_an_export_of_two_ranks_is_refused(tmp_path: Path) -> None:
    made, other = NsysExport(), NsysExport(process=77)
    made.range("step", 0, 100)
    other.range("step", 0, 100)
    made.rows += other.rows
    with pytest.raises(UserError, match=r"2 processes.*profiling/nsys.sh"):
        read_nsys_export(made.write(tmp_path / "nsys.sqlite"))


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _cut_off(path: Path) -> None:
    whole = gzip.compress(json.dumps({"traceEvents": [{"name": str(n)} for n in range(9999)]}).encode())
    path.write_bytes(whole[: len(whole) // 2])


BROKEN_EVENT = {"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::add", "tid": 1}]}


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.json", lambda path: None, "No such file.*"),
        ("trace.json.gz", _cut_off, "incomplete.*profile again"),
        ("trace.json.gz", _text("no gzip"), "cannot be read"),
        ("trace.json", _text('{"traceEvents": [{"ph": "X"'), "incomplete.*profile again"),
        ("trace.json", _text("[1, 2]"), "no traceEvents.*export_chrome_trace"),
        ("trace.json", _text('{"traceEvents": [{"ph": "B", "cat": "x"}]}'), "no events of torch.profiler"),
        ("trace.json", _text(json.dumps(BROKEN_EVENT)), "differs.*ts"),
        ("trace.json", _text('{"traceEvents": [1]}'), "differs"),
    ],
)
def test_no_trace_of_torch(tmp_path: Path, name: str, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: .*{said}") as error:
        read_torch_trace(tmp_path / name)
    assert len(error.value.problems) == 1


def test_no_export_of_nsight(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_nsys_export(tmp_path / "missing.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database" * 100)
    with pytest.raises(
        UserError, match=r"text.sqlite: cannot be read as an SQLite database.*nsys export --type sqlite"
    ):
        read_nsys_export(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "other.sqlite").executescript("CREATE TABLE cases (name TEXT)").close()
    with pytest.raises(UserError, match="no export of Nsight Systems"):
        read_nsys_export(tmp_path / "other.sqlite")
