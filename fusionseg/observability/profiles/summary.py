"""Summary of a profile: steps, phases, operators, kernels, idle gaps, communication."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE, PHASE_NAMES, Attribution, seconds
from fusionseg.observability.profiles.device_summary import communication, idle_times, kernel_tables
from fusionseg.observability.profiles.timeline import STEP, DeviceEvent, Timeline

_TOP_OF_PHASE = 5


def summarise(timeline: Timeline, top: int = 20) -> dict[str, Any]:
    """Summarise a profile as JSON values; all times are in seconds.

    Host times of the phases are those of the main thread. Each second is counted once: the time of a phase excludes the
    phases nested in it, and all phases together with `outside_phases` make up the profile range. The time of a kernel
    counts for the phase in which it was launched, whenever it ran.

    Args:
        timeline: the profile.
        top: operators, kernels and detail ranges that are listed.
    """
    profile = Attribution(timeline)
    phases = phase_table(profile)
    outside_s = profile.duration_s - sum(row["host_s"] for row in phases.values())
    events = zip(profile.device_events, profile.device_phases, strict=True)
    outside = [event for event, phase in events if phase == OUTSIDE]
    return {
        "source": timeline.source,
        "tool": timeline.tool,
        "window_s": profile.duration_s,
        "steps": step_times(timeline),
        "phases": phases,
        "outside_phases": {"host_s": outside_s, "host_share": profile.share(outside_s), **_device_times(outside)},
        "ranges": detail_ranges(profile, top),
        "operators": operator_tables(profile, top),
        "kernels": kernel_tables(profile, top),
        "gpu": idle_times(profile),
        "communication": communication(profile, phases),
    }


def step_times(timeline: Timeline) -> dict[str, Any]:
    """Summarise the times of the complete steps; `cut` counts those that the end of the profile truncated."""
    steps = [event for event in timeline.ranges if event.name == STEP]
    complete = [event for event in steps if not event.truncated]
    found: dict[str, Any] = {"count": len(complete), "cut": len(steps) - len(complete)}
    if complete:
        times = [seconds(event.end_ns - event.start_ns) for event in complete]
        slowest = complete[times.index(max(times))].payload
        found |= {"mean_s": fmean(times), "median_s": median(times), "max_s": max(times), "slowest": slowest}
    return found


def phase_table(profile: Attribution) -> dict[str, dict[str, Any]]:
    """Summarise each phase: first those of PHASES in their order, then ranges that are phases of their own."""
    found = dict.fromkeys(phase for phase in profile.range_phases if phase is not None)
    host: dict[str, int] = defaultdict(int)
    other_threads: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for index, event in enumerate(profile.ranges.events):
        phase = profile.phase_of(index)
        (host if event.thread == profile.main_thread else other_threads)[phase] += profile.ranges.self_ns[index]
        count[phase] += event.name == phase
    device: dict[str, list[DeviceEvent]] = defaultdict(list)
    for launched, phase in zip(profile.device_events, profile.device_phases, strict=True):
        device[phase].append(launched)
    return {
        name: {
            "count": count[name],
            "host_s": seconds(host[name]),
            "host_share": profile.share(seconds(host[name])),
            "other_threads_s": seconds(other_threads[name]),
            **_device_times(device[name]),
        }
        for name in (*(name for name in PHASE_NAMES if name in found), *(n for n in found if n not in PHASE_NAMES))
    }


def detail_ranges(profile: Attribution, top: int) -> list[dict[str, Any]]:
    """Summarise the ranges inside phases, such as the modules of the network, those with the most time first.

    `total_s` and `gpu_s` include the ranges nested in a range, `self_s` does not.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for index, event in enumerate(profile.ranges.events):
        phase = profile.phase_of(index)
        if event.name in (phase, STEP):
            continue
        empty = {"name": event.name, "phase": phase, "count": 0, "total_s": 0.0, "self_s": 0.0, "gpu_s": 0.0}
        row = rows.setdefault((event.name, phase), empty)
        row["count"] += 1
        row["total_s"] += seconds(event.end_ns - event.start_ns)
        row["self_s"] += seconds(profile.ranges.self_ns[index])
    for launched, launch_range in zip(profile.device_events, profile.launch_ranges, strict=True):
        if launched.kind == "kernel":
            ancestors = profile.ranges.with_ancestors(launch_range)
            keys = {(profile.ranges.events[index].name, profile.phase_of(index)) for index in ancestors}
            for key in keys & rows.keys():
                rows[key]["gpu_s"] += seconds(launched.end_ns - launched.start_ns)
    return sorted(rows.values(), key=lambda row: -max(row["total_s"], row["gpu_s"]))[:top]


def operator_tables(profile: Attribution, top: int) -> dict[str, Any]:
    """Rank operators by their self time on the CPU, and by the time of the kernels that they launched themselves."""
    # By phase and name: count, ns on the CPU, ns on the GPU.
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    keys = [(phase, e.name) for phase, e in zip(profile.operator_phases, profile.operators.events, strict=True)]
    for key, self_ns in zip(keys, profile.operators.self_ns, strict=True):
        rows[key][0] += 1
        rows[key][1] += self_ns
    for event in profile.device_events:
        launcher = None if event.launch_ns is None else profile.operators.innermost(event.thread, event.launch_ns)
        if launcher is not None and event.kind == "kernel":
            rows[keys[launcher]][2] += event.end_ns - event.start_ns
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
    operators: list[dict[str, Any]] = [
        {"name": name, "count": count, "self_cpu_s": seconds(cpu), "gpu_s": seconds(gpu)}
        for name, (count, cpu, gpu) in rows.items()
    ]
    on_gpu = [operator for operator in operators if operator["gpu_s"]]
    return {
        "by_cpu": sorted(operators, key=lambda operator: -float(operator["self_cpu_s"]))[:top],
        "by_gpu": sorted(on_gpu, key=lambda operator: -float(operator["gpu_s"]))[:top],
    }


def _device_times(events: Sequence[DeviceEvent]) -> dict[str, Any]:
    kernels = [event.end_ns - event.start_ns for event in events if event.kind == "kernel"]
    copies = [event.end_ns - event.start_ns for event in events if event.kind != "kernel"]
    return {
        "gpu_s": seconds(sum(kernels)),
        "kernels": len(kernels),
        "copy_s": seconds(sum(copies)),
        "copies": len(copies),
    }
