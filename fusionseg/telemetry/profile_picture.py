"""The picture of a profile: the time of each phase on host and GPU, and one step as it went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionseg.files import whole_file
from fusionseg.telemetry.attribution import OUTSIDE, Attribution
from fusionseg.telemetry.device_summary import GAP_NS
from fusionseg.telemetry.kernel_kinds import KINDS, kernel_kind
from fusionseg.telemetry.spans import Interval, gaps, merge
from fusionseg.telemetry.timeline import STEP, Timeline

_DEPTHS = 4
_LABEL_SHARE = 0.05
"""A range is named in the picture if it takes at least this share of the step."""


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
    for shift, key, hatch in ((-0.2, "host_s", ""), (0.2, "gpu_s", "///")):
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
    axis.set_xlabel("ms per step; plain: host, hatched: kernels launched there")


def _one_step(axis: Any, label: str, of: Attribution, palette: Any) -> None:
    number, window = step_of_median(of)
    first, last = window
    ticks: dict[float, str] = {}
    for at, span in enumerate(of.ranges.spans):
        depth = sum(of.ranges.spans[around].name != STEP for around in of.ranges.around(at)) - 1
        if span.thread != of.main or span.name == STEP or depth >= _DEPTHS or not _touches(span[1:3], window):
            continue
        start, end = max(span.start_ns, first), min(span.end_ns, last)
        color = palette.get(of.phase(at), "lightgrey")
        axis.broken_barh([(_ms(start - first), _ms(end - start))], (depth, 0.9), color=color, edgecolor="white")
        if end - start >= _LABEL_SHARE * (last - first):
            axis.text(_ms((start + end) / 2 - first), depth + 0.45, span.name, ha="center", va="center", fontsize=7)
        ticks[depth + 0.45] = "host" if depth == 0 else ""
    row = max(ticks, default=0.0) + 0.8
    kinds = [kernel_kind(work) for work in of.device]
    kind_colors = dict(zip(KINDS, ("red", "tan", "teal", "olive", "navy", "orange", "black"), strict=False))
    for place in sorted({(work.device, work.stream) for work in of.device}):
        for kind in KINDS:
            mine = [
                (_ms(max(work.start_ns, first) - first), _ms(min(work.end_ns, last) - max(work.start_ns, first)))
                for work, its in zip(of.device, kinds, strict=True)
                if its == kind and (work.device, work.stream) == place and _touches(work[2:4], window)
            ]
            if mine:
                axis.broken_barh(mine, (row, 0.9), color=kind_colors.get(kind, "black"), label=kind)
        ticks[row + 0.45] = f"GPU {place[0]}, stream {place[1]}"
        row += 1
    if of.device:
        busy = merge(((work.start_ns, work.end_ns) for work in of.device), window)
        idle = [(_ms(s - first), _ms(e - s)) for s, e in gaps(busy, window) if e - s > GAP_NS]
        axis.broken_barh(idle, (row, 0.9), color="silver", label="idle")
        ticks[row + 0.45] = "GPU idle"
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(handles.values(), handles.keys(), fontsize=7, ncols=len(handles), loc="upper right")
        row += 1
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.set_ylim(row + 0.2, -0.2)
    axis.set_xlim(0, max(_ms(last - first), 1e-6))
    axis.set_xlabel(f"ms of {number} ({label})")


def step_of_median(of: Attribution) -> tuple[str, Interval]:
    """A whole step of median length, its name and its range; the window if there is none."""
    steps = [span for span in of.ranges.spans if span.name == STEP and not span.cut]
    if not steps:
        return "the window", of.window
    at = sorted(range(len(steps)), key=lambda i: steps[i].end_ns - steps[i].start_ns)[(len(steps) - 1) // 2]
    span = steps[at]
    number = f"step {span.payload}" if span.payload is not None else f"step {at + 1} of {len(steps)}"
    return number, (span.start_ns, span.end_ns)


def _touches(interval: tuple[Any, ...], window: Interval) -> bool:
    return bool(interval[0] < window[1] and interval[1] > window[0])


def _ms(nanoseconds: float) -> float:
    return nanoseconds / 1e6
