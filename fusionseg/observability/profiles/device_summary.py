"""Summary of the device in a profile: kernels, idle gaps, communication."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fusionseg.observability.profiles.attribution import ALLREDUCE, Attribution, seconds
from fusionseg.observability.profiles.intervals import Interval, gaps, intervals_of, overlap_length, total_length, union
from fusionseg.observability.profiles.kernel_kinds import COMMUNICATION, KINDS, kernel_kind

GAP_NS = 5_000
"""Longest idle time in ns that is not a gap: the launch of a kernel takes about as long."""
_TOP_GAPS = 10
_HOST_COMMUNICATION = re.compile("(gloo|mpi|ucc):")


def kernel_tables(profile: Attribution, top: int) -> dict[str, Any]:
    """Summarise kernels by name and by kind; memory copies and fills count as copies.

    Args:
        top: kernels listed by name, those with the most time first.
    """
    by_kind: dict[str, dict[str, Any]] = {kind: {"count": 0, "total_s": 0.0} for kind in KINDS}
    by_name: dict[str, dict[str, Any]] = {}
    for event in profile.device_events:
        kind, duration_s = kernel_kind(event), seconds(event.end_ns - event.start_ns)
        row = by_name.setdefault(event.name, {"name": event.name, "kind": kind, "count": 0, "total_s": 0.0})
        for sums in (row, by_kind[kind]):
            sums["count"] += 1
            sums["total_s"] += duration_s
    total = sum(row["total_s"] for row in by_name.values())
    longest = sorted(by_name.values(), key=lambda row: -float(row["total_s"]))[:top]
    return {
        "count": len(profile.device_events),
        "total_s": total,
        "top": [row | {"mean_s": row["total_s"] / row["count"]} for row in longest],
        "by_kind": {
            kind: sums | {"share": sums["total_s"] / total if total else 0.0}
            for kind, sums in by_kind.items()
            if sums["count"]
        },
    }


def idle_times(profile: Attribution) -> dict[str, Any] | None:
    """Summarise busy and idle times of the device, and the phase of the host during idle times; None without a GPU."""
    if not profile.device_events:
        return None
    busy = union(intervals_of(profile.device_events), profile.profile_range)
    all_gaps = gaps(busy, profile.profile_range)
    idle = [(gap, profile.host_phases(gap)) for gap in all_gaps if gap[1] - gap[0] > GAP_NS]
    by_phase: dict[str, int] = defaultdict(int)
    for _, phases in idle:
        for phase, duration_ns in phases.items():
            by_phase[phase] += duration_ns
    longest = sorted(idle, key=lambda item: item[0][0] - item[0][1])[:_TOP_GAPS]
    busy_s = seconds(total_length(busy))
    return {
        "busy_s": busy_s,
        "busy_share": profile.share(busy_s),
        "gaps": len(idle),
        "gaps_s": seconds(total_length(gap for gap, _ in idle)),
        "gaps_by_phase_s": {phase: seconds(ns) for phase, ns in sorted(by_phase.items(), key=lambda item: -item[1])},
        "longest_gaps": [
            {
                "start_s": seconds(gap[0] - profile.profile_range[0]),
                "duration_s": seconds(gap[1] - gap[0]),
                "phase": max(phases, key=lambda phase: phases[phase]),
            }
            for gap, phases in longest
        ],
    }


def communication(profile: Attribution, phases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the communication between ranks: total time, and the exposed time, which nothing overlaps.

    The time comes from the first of these sources that the profile has:

    - NCCL kernels; other kernels overlap them.
    - The range `allreduce`; nothing overlaps it.
    - gloo's operators on their own threads; operators of the main thread overlap them.

    Args:
        phases: the table of `phase_table`.
    """
    collectives = [event for event in profile.device_events if kernel_kind(event) == COMMUNICATION]
    gloo = [event for event in profile.operators.events if _HOST_COMMUNICATION.match(event.name)]
    source: str | None = None
    total_s = exposed_s = 0.0
    if collectives:
        own = union(intervals_of(collectives), profile.profile_range)
        compute = [e for e in profile.device_events if e.kind == "kernel" and kernel_kind(e) != COMMUNICATION]
        total_s = seconds(total_length(intervals_of(collectives)))
        exposed_s = _exposed_s(profile, own, intervals_of(compute))
        source = "kernels"
    elif ALLREDUCE in phases:
        total_s = exposed_s = phases[ALLREDUCE]["host_s"] + phases[ALLREDUCE]["other_threads_s"]
        source = "range"
    elif gloo:
        own = union(intervals_of(gloo), profile.profile_range)
        main = (event for event in profile.operators.events if event.thread == profile.main_thread)
        compute_intervals = intervals_of(event for event in main if not event.name.startswith("c10d::"))
        total_s, exposed_s = seconds(total_length(own)), _exposed_s(profile, own, compute_intervals)
        source = "operators"
    return {"source": source, "total_s": total_s, "exposed_s": exposed_s, "exposed_share": profile.share(exposed_s)}


def _exposed_s(profile: Attribution, communication: list[Interval], compute: list[Interval]) -> float:
    """Seconds of communication (disjoint intervals) that no computation overlaps."""
    overlapped = overlap_length(communication, union(compute, profile.profile_range))
    return seconds(total_length(communication) - overlapped)
