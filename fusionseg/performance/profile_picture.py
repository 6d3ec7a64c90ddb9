"""Picture of a profile: time of each phase on host and GPU, and the timeline of one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE, Attribution
from fusionseg.observability.profiles.device_summary import GAP_NS
from fusionseg.observability.profiles.intervals import Interval, gaps, intervals_of, union
from fusionseg.observability.profiles.kernel_kinds import KINDS, kernel_kind
from fusionseg.observability.profiles.timeline import STEP, DeviceEvent, HostEvent, Timeline
from fusionseg.performance.profile_report import phase_s_per_step
from fusionseg.utils.files import whole_file

_DEPTHS = 4
_CHARACTER = 0.0056
"""Width of a character as a share of the timeline's width. An event gets a label if its name fits."""
_KIND_COLORS = dict(
    zip(KINDS, ("crimson", "tan", "teal", "darkkhaki", "royalblue", "darkorange", "dimgrey"), strict=True)
)


def draw_profile(path: Path, label: str, timeline: Timeline, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw bars of the phases of all profiles, and the timeline of a step of median length of one profile.

    Args:
        path: path of the PNG file.
        label: label of the profile whose step is drawn, such as "rank 0".
        timeline: the profile with this label.
        summaries: results of `summarise` by label.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    profile = Attribution(timeline)
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary["phases"]))
    palette = {name: plt.get_cmap("tab20")(index % 20) for index, name in enumerate(names)} | {OUTSIDE: "lightgrey"}
    figure, (bars, step) = plt.subplots(2, 1, figsize=(11, 7.5), height_ratios=(len(names) + 2, 7))
    _draw_phases(bars, [*names, OUTSIDE], summaries, palette)
    _draw_step(step, label, profile, palette)
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _draw_phases(axis: Any, names: list[str], summaries: Mapping[str, Mapping[str, Any]], palette: Any) -> None:
    """Draw a bar for each phase: the mean over the profiles, with a line from the minimum to the maximum."""
    on_gpu = any(summary["gpu"] for summary in summaries.values())
    sides = ((-0.2, "host_s", ""), (0.2, "gpu_s", "///")) if on_gpu else ((0.0, "host_s", ""),)
    for shift, key, hatch in sides:
        for row, name in enumerate(names):
            values = [1e3 * phase_s_per_step(summary, name, key) for summary in summaries.values()]
            mean = sum(values) / len(values)
            axis.barh(row + shift, mean, 0.38, color=palette[name], hatch=hatch, edgecolor="white")
            if len(values) > 1:
                axis.plot((min(values), max(values)), (row + shift,) * 2, color="black", linewidth=1)
            if mean:
                axis.text(max(values), row + shift, f" {mean:.2f}", va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("ms per step" + ("; plain: host, hatched: kernels launched in the phase" if on_gpu else ", host"))


def _draw_step(axis: Any, label: str, profile: Attribution, palette: Any) -> None:
    """Draw rows from top to bottom: ranges by depth, operators, events of each stream, idle times."""
    title, bounds = median_step(profile)
    rows = _draw_ranges(axis, profile, bounds, palette)
    if profile.operators.events:
        segments = list(profile.operators.overlapping(profile.main_thread, bounds))
        for parity, color in enumerate(("gainsboro", "silver")):  # alternate, so that neighbours can be told apart
            _draw_bars(axis, len(rows), bounds, [(start, end) for start, end, _ in segments[parity::2]], color, None)
        for start, end, index in segments:
            name = profile.operators.events[index].name.removeprefix("aten::")
            _draw_label(axis, len(rows), bounds, (start, end), name)
        rows.append("operators")
    drawn = [event for event in profile.device_events if _overlaps(event, bounds)]
    for device, stream in sorted({(event.device, event.stream) for event in drawn}):
        in_stream = [event for event in drawn if (event.device, event.stream) == (device, stream)]
        for kind, color in _KIND_COLORS.items():
            of_kind = intervals_of(event for event in in_stream if kernel_kind(event) == kind)
            _draw_bars(axis, len(rows), bounds, of_kind, color, kind)
        rows.append(f"GPU {device}, stream {stream}")
    if profile.device_events:
        busy = union(intervals_of(drawn), bounds)
        idle = [gap for gap in gaps(busy, bounds) if gap[1] - gap[0] > GAP_NS]
        _draw_bars(axis, len(rows), bounds, idle, "silver", "idle")
        rows.append("GPU idle")
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(
            handles.values(),
            handles.keys(),
            fontsize=7,
            ncols=len(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            frameon=False,
        )
    axis.set_yticks([row + 0.45 for row in range(len(rows))], rows)
    axis.set_ylim(max(len(rows), _DEPTHS) + 0.2, -0.2)
    axis.set_xlim(0, max(_ms(bounds[1] - bounds[0]), 1e-6))
    axis.set_xlabel(f"ms of {title} ({label})")


def _draw_ranges(axis: Any, profile: Attribution, bounds: Interval, palette: Any) -> list[str]:
    """Draw the ranges of the main thread, and return the names of the rows that they take."""
    deepest = -1
    ranges = profile.ranges
    for index, event in enumerate(ranges.events):
        depth = sum(ranges.events[outer].name != STEP for outer in ranges.with_ancestors(index)) - 1
        on_main = event.thread == profile.main_thread and event.name != STEP
        if on_main and depth < _DEPTHS and _overlaps(event, bounds):
            color = palette.get(profile.phase_of(index), "lightgrey")
            _draw_bars(axis, depth, bounds, intervals_of([event]), color, None, "white")
            _draw_label(axis, depth, bounds, (event.start_ns, event.end_ns), event.name)
            deepest = max(deepest, depth)
    return ["host", *[""] * deepest] if deepest >= 0 else []


def _draw_label(axis: Any, row: int, bounds: Interval, interval: Interval, name: str) -> None:
    start, end = max(interval[0], bounds[0]), min(interval[1], bounds[1])
    if end - start >= _CHARACTER * len(name) * (bounds[1] - bounds[0]):
        middle = _ms((start + end) / 2 - bounds[0])
        axis.text(middle, row + 0.45, name, ha="center", va="center", fontsize=7, clip_on=True)


def _draw_bars(
    axis: Any, row: int, bounds: Interval, intervals: list[Interval], color: Any, label: str | None, edge: str = "none"
) -> None:
    first, last = bounds
    inside = [(max(start, first), min(end, last)) for start, end in intervals]
    bars = [(_ms(start - first), _ms(end - start)) for start, end in inside]
    if bars:
        axis.broken_barh(bars, (row, 0.9), facecolor=color, edgecolor=edge, label=label)


def median_step(profile: Attribution) -> tuple[str, Interval]:
    """Title and interval of a complete step of median length; those of the profile range if there is no step."""
    steps = [event for event in profile.ranges.events if event.name == STEP and not event.truncated]
    if not steps:
        return "the profile range", profile.profile_range
    at = sorted(range(len(steps)), key=lambda i: steps[i].end_ns - steps[i].start_ns)[(len(steps) - 1) // 2]
    step = steps[at]
    name = f"step {step.payload}" if step.payload is not None else f"step {at + 1} of {len(steps)}"
    return name, (step.start_ns, step.end_ns)


def _overlaps(event: DeviceEvent | HostEvent, bounds: Interval) -> bool:
    return event.start_ns < bounds[1] and event.end_ns > bounds[0]


def _ms(nanoseconds: float) -> float:
    return nanoseconds / 1e6
