"""What a profile says of the device: kernels, idle gaps, communication."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fusionseg.telemetry.attribution import ALLREDUCE, Attribution, seconds
from fusionseg.telemetry.kernel_kinds import COMMUNICATION, KINDS, kernel_kind
from fusionseg.telemetry.spans import Interval, common, gaps, length, merge
from fusionseg.telemetry.timeline import DeviceWork

GAP_NS = 5_000
"""Idle times of the device up to this are the price of a launch, and no gap."""
_TOP_GAPS = 10


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
    """Time of NCCL's kernels, and how much of it no other kernel hid; without any, the range `allreduce`.

    Args:
        phases: the table of the phases.
    """
    source: str | None
    talk = [work for work in of.device if kernel_kind(work) == COMMUNICATION]
    if talk:
        own = merge(_intervals(talk), of.window)
        others = [work for work in of.device if work.kind == "kernel" and kernel_kind(work) != COMMUNICATION]
        total_s = seconds(length(_intervals(talk)))
        exposed_s = seconds(length(own) - common(own, merge(_intervals(others), of.window)))
        source = "kernels"
    else:
        total_s = exposed_s = phases.get(ALLREDUCE, {}).get("host_s", 0.0)
        source = "range" if ALLREDUCE in phases else None
    return {"source": source, "total_s": total_s, "exposed_s": exposed_s, "exposed_share": of.share(exposed_s)}


def _intervals(works: Iterable[DeviceWork]) -> list[Interval]:
    return [(work.start_ns, work.end_ns) for work in works]
