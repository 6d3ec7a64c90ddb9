"""What a profile says, in numbers: steps, phases, operators, kernels, idle gaps, communication."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE, PHASE_NAMES, Attribution, seconds
from fusionseg.observability.profiles.device_summary import communication, idle_times, kernel_tables
from fusionseg.observability.profiles.timeline import STEP, DeviceWork, Timeline

_TOP_OF_PHASE = 5


def summarise(timeline: Timeline, top: int = 20) -> dict[str, Any]:
    """The summary as plain values for JSON; times in seconds.

    Host times of phases are the main thread's, each second counted once: a phase's is without that of the phases inside
    it, and all of them with what is outside make up the window. A kernel's time is its phase's in whose range it was
    launched, whenever it ran.

    Args:
        top: how many operators, kernels and finer ranges are listed.
    """
    of = Attribution(timeline)
    phases = phase_table(of)
    outside_s = of.window_s - sum(entry["host_s"] for entry in phases.values())
    loose = [work for work, phase in zip(of.device, of.device_phases, strict=True) if phase == OUTSIDE]
    return {
        "source": timeline.source,
        "tool": timeline.tool,
        "window_s": of.window_s,
        "steps": step_times(timeline),
        "phases": phases,
        "outside_phases": {"host_s": outside_s, "host_share": of.share(outside_s), **_device_times(loose)},
        "ranges": finer_ranges(of, top),
        "operators": operator_tables(of, top),
        "kernels": kernel_tables(of, top),
        "gpu": idle_times(of),
        "communication": communication(of, phases),
    }


def step_times(timeline: Timeline) -> dict[str, Any]:
    """Of the steps that the window holds whole."""
    spans = [span for span in timeline.ranges if span.name == STEP]
    whole = [span for span in spans if not span.cut]
    found: dict[str, Any] = {"count": len(whole), "cut": len(spans) - len(whole)}
    if whole:
        times = [seconds(span.end_ns - span.start_ns) for span in whole]
        slowest = whole[times.index(max(times))].payload
        found |= {"mean_s": fmean(times), "median_s": median(times), "max_s": max(times), "slowest": slowest}
    return found


def phase_table(of: Attribution) -> dict[str, dict[str, Any]]:
    """By phase, those of a training first and in their order there."""
    found = dict.fromkeys(phase for phase in of.range_phases if phase is not None)
    host: dict[str, int] = defaultdict(int)
    elsewhere: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for index, span in enumerate(of.ranges.spans):
        phase = of.phase(index)
        (host if span.thread == of.main else elsewhere)[phase] += of.ranges.self_ns[index]
        count[phase] += span.name == phase
    work: dict[str, list[DeviceWork]] = defaultdict(list)
    for one, phase in zip(of.device, of.device_phases, strict=True):
        work[phase].append(one)
    return {
        name: {
            "count": count[name],
            "host_s": seconds(host[name]),
            "host_share": of.share(seconds(host[name])),
            "other_threads_s": seconds(elsewhere[name]),
            **_device_times(work[name]),
        }
        for name in (*(name for name in PHASE_NAMES if name in found), *(n for n in found if n not in PHASE_NAMES))
    }


def finer_ranges(of: Attribution, top: int) -> list[dict[str, Any]]:
    """Ranges inside phases (parts of the network), those of the most time first.

    `total_s` and `gpu_s` include the ranges inside a range, `self_s` does not.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for index, span in enumerate(of.ranges.spans):
        phase = of.phase(index)
        if span.name in (phase, STEP):
            continue
        empty = {"name": span.name, "phase": phase, "count": 0, "total_s": 0.0, "self_s": 0.0, "gpu_s": 0.0}
        entry = entries.setdefault((span.name, phase), empty)
        entry["count"] += 1
        entry["total_s"] += seconds(span.end_ns - span.start_ns)
        entry["self_s"] += seconds(of.ranges.self_ns[index])
    for work, launched_in in zip(of.device, of.launched_in, strict=True):
        if work.kind == "kernel":
            around = {(of.ranges.spans[at].name, of.phase(at)) for at in of.ranges.around(launched_in)}
            for key in around & entries.keys():
                entries[key]["gpu_s"] += seconds(work.end_ns - work.start_ns)
    return sorted(entries.values(), key=lambda entry: -max(entry["total_s"], entry["gpu_s"]))[:top]


def operator_tables(of: Attribution, top: int) -> dict[str, Any]:
    """Operators by their own time on the CPU, and by that of the kernels that they themselves launched."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    keys = [(phase, span.name) for phase, span in zip(of.operator_phases, of.operators.spans, strict=True)]
    for key, self_ns in zip(keys, of.operators.self_ns, strict=True):
        rows[key][0] += 1
        rows[key][1] += self_ns
    for work in of.device:
        launcher = None if work.launch_ns is None else of.operators.innermost(work.thread, work.launch_ns)
        if launcher is not None and work.kind == "kernel":
            rows[keys[launcher]][2] += work.end_ns - work.start_ns
    overall: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    by_phase: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for (phase, name), row in rows.items():
        overall[name] = [a + b for a, b in zip(overall[name], row, strict=True)]
        by_phase[phase][name] = row
    return {
        **_ranked(overall, top),
        "by_phase": {phase: _ranked(found, _TOP_OF_PHASE) for phase, found in by_phase.items()},
    }


def _ranked(rows: Mapping[str, list[int]], top: int) -> dict[str, Any]:
    entries: list[dict[str, Any]] = [
        {"name": name, "count": count, "self_cpu_s": seconds(cpu), "gpu_s": seconds(gpu)}
        for name, (count, cpu, gpu) in rows.items()
    ]
    on_gpu = [entry for entry in entries if entry["gpu_s"]]
    return {
        "by_cpu": sorted(entries, key=lambda entry: -float(entry["self_cpu_s"]))[:top],
        "by_gpu": sorted(on_gpu, key=lambda entry: -float(entry["gpu_s"]))[:top],
    }


def _device_times(works: Sequence[DeviceWork]) -> dict[str, Any]:
    kernels = [work.end_ns - work.start_ns for work in works if work.kind == "kernel"]
    copies = [work.end_ns - work.start_ns for work in works if work.kind != "kernel"]
    return {
        "gpu_s": seconds(sum(kernels)),
        "kernels": len(kernels),
        "copy_s": seconds(sum(copies)),
        "copies": len(copies),
    }
