"""What a profile says of the device: kernels, idle gaps, communication."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fusionseg.observability.profiles.attribution import ALLREDUCE, Attribution, seconds
from fusionseg.observability.profiles.intervals import Interval, common, gaps, length, merge
from fusionseg.observability.profiles.kernel_kinds import COMMUNICATION, KINDS, kernel_kind
from fusionseg.observability.profiles.timeline import DeviceWork

GAP_NS = 5_000
"""Idle times of the device up to this are the price of a launch, and no gap."""
_TOP_GAPS = 10
_HOST_COMMUNICATION = re.compile("(gloo|mpi|ucc):")


def kernel_tables(of: Attribution, top: int) -> dict[str, Any]:
    """Kernels by their time, and by what they compute; copies and fills of memory count as copies."""
    by_kind: dict[str, dict[str, Any]] = {kind: {"count": 0, "total_s": 0.0} for kind in KINDS}
    names: dict[str, dict[str, Any]] = {}
    for work in of.device:
        kind, duration_s = kernel_kind(work), seconds(work.end_ns - work.start_ns)
        entry = names.setdefault(work.name, {"name": work.name, "kind": kind, "count": 0, "total_s": 0.0})
        for one in (entry, by_kind[kind]):
            one["count"] += 1
            one["total_s"] += duration_s
    total = sum(entry["total_s"] for entry in names.values())
    ranked = sorted(names.values(), key=lambda entry: -float(entry["total_s"]))[:top]
    return {
        "count": len(of.device),
        "total_s": total,
        "top": [entry | {"mean_s": entry["total_s"] / entry["count"]} for entry in ranked],
        "by_kind": {
            kind: entry | {"share": entry["total_s"] / total if total else 0.0}
            for kind, entry in by_kind.items()
            if entry["count"]
        },
    }


def idle_times(of: Attribution) -> dict[str, Any] | None:
    """How busy the device was, and in which phase the host was while it was not; None without a device."""
    if not of.device:
        return None
    busy = merge(_intervals(of.device), of.window)
    idle = [(gap, of.host_phases(gap)) for gap in gaps(busy, of.window) if gap[1] - gap[0] > GAP_NS]
    by_phase: dict[str, int] = defaultdict(int)
    for _, phases in idle:
        for phase, duration_ns in phases.items():
            by_phase[phase] += duration_ns
    longest = sorted(idle, key=lambda entry: entry[0][0] - entry[0][1])[:_TOP_GAPS]
    busy_s = seconds(length(busy))
    return {
        "busy_s": busy_s,
        "busy_share": of.share(busy_s),
        "gaps": len(idle),
        "gaps_s": seconds(length(gap for gap, _ in idle)),
        "gaps_by_phase_s": {phase: seconds(ns) for phase, ns in sorted(by_phase.items(), key=lambda item: -item[1])},
        "longest_gaps": [
            {
                "start_s": seconds(gap[0] - of.window[0]),
                "duration_s": seconds(gap[1] - gap[0]),
                "phase": max(phases, key=lambda phase: phases[phase]),
            }
            for gap, phases in longest
        ],
    }


def communication(of: Attribution, phases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the ranks say to each other, and how much of it nothing hides.

    By NCCL's kernels, which other kernels hide; without any, by the range `allreduce`, which nothing does; without
    that, by gloo's operators on threads of their own, which the main thread's operators hide.

    Args:
        phases: the table of the phases.
    """
    talk = [work for work in of.device if kernel_kind(work) == COMMUNICATION]
    gloo = [span for span in of.operators.spans if _HOST_COMMUNICATION.match(span.name)]
    source: str | None = None
    total_s = exposed_s = 0.0
    if talk:
        own = merge(_intervals(talk), of.window)
        others = [work for work in of.device if work.kind == "kernel" and kernel_kind(work) != COMMUNICATION]
        total_s, exposed_s = seconds(length(_intervals(talk))), _exposed(of, own, _intervals(others))
        source = "kernels"
    elif ALLREDUCE in phases:
        total_s = exposed_s = phases[ALLREDUCE]["host_s"] + phases[ALLREDUCE]["other_threads_s"]
        source = "range"
    elif gloo:
        own = merge([span[1:3] for span in gloo], of.window)
        work = [s[1:3] for s in of.operators.spans if s.thread == of.main and not s.name.startswith("c10d::")]
        total_s, exposed_s = seconds(length(own)), _exposed(of, own, work)
        source = "operators"
    return {"source": source, "total_s": total_s, "exposed_s": exposed_s, "exposed_share": of.share(exposed_s)}


def _exposed(of: Attribution, own: list[Interval], others: list[Interval]) -> float:
    """Seconds of merged intervals that no other covers."""
    return seconds(length(own) - common(own, merge(others, of.window)))


def _intervals(works: Iterable[DeviceWork]) -> list[Interval]:
    return [(work.start_ns, work.end_ns) for work in works]
