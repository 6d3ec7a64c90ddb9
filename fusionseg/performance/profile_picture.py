"""The picture of a profile: the time of each phase on host and GPU, and one step as it went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE, Attribution
from fusionseg.observability.profiles.device_summary import GAP_NS
from fusionseg.observability.profiles.intervals import Interval, gaps, merge
from fusionseg.observability.profiles.kernel_kinds import KINDS, kernel_kind
from fusionseg.observability.profiles.timeline import STEP, Timeline
from fusionseg.utils.files import whole_file

_DEPTHS = 4
_CHARACTER = 0.0056
"""Width of a letter, of the timeline's: a span is named if its name fits in."""
_KIND_COLORS = dict(
    zip(KINDS, ("crimson", "tan", "teal", "darkkhaki", "royalblue", "darkorange", "dimgrey"), strict=True)
)


def draw(path: Path, label: str, timeline: Timeline, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the picture: bars of all profiles, and of one a step of median length.

    Args:
        label: of the profile whose step is shown.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    of = Attribution(timeline)
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary["phases"]))
    palette = {name: plt.get_cmap("tab20")(number % 20) for number, name in enumerate(names)} | {OUTSIDE: "lightgrey"}
    figure, (bars, step) = plt.subplots(2, 1, figsize=(11, 7.5), height_ratios=(len(names) + 2, 7))
    _phase_bars(bars, [*names, OUTSIDE], summaries, palette)
    _one_step(step, label, of, palette)
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _phase_bars(axis: Any, names: list[str], summaries: Mapping[str, Mapping[str, Any]], palette: Any) -> None:
    """Mean over the profiles, with a line from the least to the most."""
    on_gpu = any(summary["gpu"] for summary in summaries.values())
    sides = ((-0.2, "host_s", ""), (0.2, "gpu_s", "///")) if on_gpu else ((0.0, "host_s", ""),)
    for shift, key, hatch in sides:
        for row, name in enumerate(names):
            values = [
                1e3
                * {**s["phases"], OUTSIDE: s["outside_phases"]}.get(name, {}).get(key, 0.0)
                / (s["steps"]["count"] or 1)
                for s in summaries.values()
            ]
            mean = sum(values) / len(values)
            axis.barh(row + shift, mean, 0.38, color=palette[name], hatch=hatch, edgecolor="white")
            if len(values) > 1:
                axis.plot((min(values), max(values)), (row + shift,) * 2, color="black", linewidth=1)
            if mean:
                axis.text(max(values), row + shift, f" {mean:.2f}", va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("ms per step" + ("; plain: host, hatched: kernels launched there" if on_gpu else " on the host"))


def _one_step(axis: Any, label: str, of: Attribution, palette: Any) -> None:
    """Rows from top to bottom: the ranges by depth, operators, each stream's work, idle times."""
    title, window = step_of_median(of)
    rows = _range_rows(axis, of, window, palette)
    if of.operators.spans:
        segments = list(of.operators.overlapping(of.main, window))
        for turn, color in enumerate(("gainsboro", "silver")):
            _bars(axis, len(rows), window, [(start, end) for start, end, _ in segments[turn::2]], color, None)
        for start, end, index in segments:
            _label(axis, len(rows), window, (start, end), of.operators.spans[index].name.removeprefix("aten::"))
        rows.append("operators")
    kinds = [kernel_kind(work) for work in of.device]
    shown = [(w, kind) for w, kind in zip(of.device, kinds, strict=True) if _touches(w[2:4], window)]
    for device, stream in sorted({(work.device, work.stream) for work, _ in shown}):
        for kind, color in _KIND_COLORS.items():
            mine = [w[2:4] for w, its in shown if its == kind and (w.device, w.stream) == (device, stream)]
            _bars(axis, len(rows), window, mine, color, kind)
        rows.append(f"GPU {device}, stream {stream}")
    if of.device:
        busy = merge((work[2:4] for work, _ in shown), window)
        _bars(axis, len(rows), window, [g for g in gaps(busy, window) if g[1] - g[0] > GAP_NS], "silver", "idle")
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
    axis.set_xlim(0, max(_ms(window[1] - window[0]), 1e-6))
    axis.set_xlabel(f"ms of {title} ({label})")


def _range_rows(axis: Any, of: Attribution, window: Interval, palette: Any) -> list[str]:
    """Draw the main thread's ranges; the names of the rows they take."""
    deepest = -1
    for at, span in enumerate(of.ranges.spans):
        depth = sum(of.ranges.spans[around].name != STEP for around in of.ranges.around(at)) - 1
        if span.thread == of.main and span.name != STEP and depth < _DEPTHS and _touches(span[1:3], window):
            _bars(axis, depth, window, [span[1:3]], palette.get(of.phase(at), "lightgrey"), None, "white")
            _label(axis, depth, window, span[1:3], span.name)
            deepest = max(deepest, depth)
    return ["host", *[""] * deepest] if deepest >= 0 else []


def _label(axis: Any, row: int, window: Interval, interval: Interval, name: str) -> None:
    start, end = max(interval[0], window[0]), min(interval[1], window[1])
    if end - start >= _CHARACTER * len(name) * (window[1] - window[0]):
        middle = _ms((start + end) / 2 - window[0])
        axis.text(middle, row + 0.45, name, ha="center", va="center", fontsize=7, clip_on=True)


def _bars(
    axis: Any, row: int, window: Interval, intervals: list[Interval], color: Any, label: str | None, edge: str = "none"
) -> None:
    first, last = window
    inside = [(max(start, first), min(end, last)) for start, end in intervals]
    bars = [(_ms(start - first), _ms(end - start)) for start, end in inside]
    if bars:
        axis.broken_barh(bars, (row, 0.9), facecolor=color, edgecolor=edge, label=label)


def step_of_median(of: Attribution) -> tuple[str, Interval]:
    """A whole step of median length, its name and its range; the window if there is none."""
    steps = [span for span in of.ranges.spans if span.name == STEP and not span.cut]
    if not steps:
        return "the window", of.window
    at = sorted(range(len(steps)), key=lambda i: steps[i].end_ns - steps[i].start_ns)[(len(steps) - 1) // 2]
    span = steps[at]
    name = f"step {span.payload}" if span.payload is not None else f"step {at + 1} of {len(steps)}"
    return name, (span.start_ns, span.end_ns)


def _touches(interval: Interval, window: Interval) -> bool:
    return interval[0] < window[1] and interval[1] > window[0]


def _ms(nanoseconds: float) -> float:
    return nanoseconds / 1e6
