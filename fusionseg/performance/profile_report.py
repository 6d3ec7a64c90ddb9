"""Markdown report on the profiles of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE
from fusionseg.observability.progress import duration
from fusionseg.runs.paths import METRICS
from fusionseg.utils.tables import markdown_table

Summaries = Mapping[str, Mapping[str, Any]]
"""Results of `summarise` by label, such as `rank 0`."""

_NAME_LENGTH = 80
_LISTED = 12


def report_page(title: str, summaries: Summaries, recorded: Mapping[str, Any] | None, picture: str) -> str:
    """Write the report: profile range and phases of all profiles; idle times, kernels and operators of the first.

    Args:
        title: name of the run or of the profiles.
        summaries: results of `summarise` by label.
        recorded: times that the run recorded, from `recorded_times`; None without a run.
        picture: file name of the picture beside the page.
    """
    label, first = next(iter(summaries.items()))
    sources = ", ".join(f"{name}: `{summary['source']}`" for name, summary in summaries.items())
    parts = [f"# Time profile of {title}", sources, f"![]({picture})", "## Profile range", profile_range(summaries)]
    parts += ["## Phases", phases(first) if len(summaries) == 1 else phases_by_rank(summaries)]
    others = f" ({label})" if len(summaries) > 1 else ""
    for heading, table in (
        ("GPU idle times", gaps(first)),
        ("Kernels by kind", kernel_kinds(first)),
        ("Kernels", kernels(first)),
        ("Operators by time on the CPU", operators(first, "by_cpu")),
        ("Operators by time of their kernels", operators(first, "by_gpu")),
        ("Ranges inside phases", detail_ranges(first)),
    ):
        if table:
            parts += [f"## {heading}{others}", table]
    if recorded is not None:
        parts += ["## Times recorded by the run", recorded_table(recorded)]
    return "\n\n".join(parts) + "\n"


def step_count(summary: Mapping[str, Any]) -> int:
    """Number of complete steps, by which times are divided; 1 without steps."""
    return int(summary["steps"]["count"]) or 1


def phase_s_per_step(summary: Mapping[str, Any], name: str, key: str) -> float:
    """Seconds of a phase per complete step; 0 if the profile does not have the phase.

    Args:
        summary: result of `summarise`.
        name: the phase, or OUTSIDE.
        key: the kind of time, "host_s" or "gpu_s".
    """
    rows = {**summary["phases"], OUTSIDE: summary["outside_phases"]}
    return float(rows.get(name, {}).get(key, 0.0)) / step_count(summary)


def profile_range(summaries: Summaries) -> str:
    """Table of the profile range, with a column for each profile."""
    rows: list[tuple[str, Callable[[Mapping[str, Any]], float | None], Callable[[float], str]]] = [
        ("profile range", lambda s: s["window_s"], _ms),
        ("complete steps", lambda s: s["steps"]["count"], lambda value: f"{value:.0f}"),
        ("step, mean", lambda s: s["steps"].get("mean_s"), _ms),
        ("step, median", lambda s: s["steps"].get("median_s"), _ms),
        ("step, maximum", lambda s: s["steps"].get("max_s"), _ms),
        ("host outside all phases", lambda s: s["outside_phases"]["host_share"], _percent),
        ("GPU busy", lambda s: (s["gpu"] or {}).get("busy_share"), _percent),
        ("GPU idle, gaps over 5 us", lambda s: (s["gpu"] or {}).get("gaps_s"), _ms),
        ("number of these gaps", lambda s: (s["gpu"] or {}).get("gaps"), lambda value: f"{value:.0f}"),
        ("communication", lambda s: _communication(s, "total_s"), _ms),
        ("exposed communication", lambda s: _communication(s, "exposed_s"), _ms),
        ("exposed communication, share of the range", lambda s: _communication(s, "exposed_share"), _percent),
    ]
    table = [(name, [value_of(s) for s in summaries.values()], form) for name, value_of, form in rows]
    return _comparison("", table, summaries)


def phases(summary: Mapping[str, Any]) -> str:
    """Table of the phases of one profile; times per step."""
    steps = step_count(summary)
    rows = [("phase", "count", "host ms", "share", *_on_gpu(summary, "kernels ms", "kernels", "copies ms"))]
    outside = (OUTSIDE, {"count": None, **summary["outside_phases"]})
    for name, phase in (*summary["phases"].items(), outside):
        count = "" if phase["count"] is None else str(phase["count"])
        device = (
            _bare_ms(phase["gpu_s"] / steps),
            f"{phase['kernels'] / steps:.0f}",
            _bare_ms(phase["copy_s"] / steps),
        )
        host = (name, count, _bare_ms(phase["host_s"] / steps), _percent(phase["host_share"]))
        rows.append((*host, *_on_gpu(summary, *device)))
    per_step = "Times and kernels are per step; `count` and `share` refer to the profile range."
    note = per_step if summary["steps"]["count"] else "All values refer to the profile range."
    return f"{markdown_table(rows)}\n\n{note}"


def phases_by_rank(summaries: Summaries) -> str:
    """Tables of host and kernel times of each phase per step, with a column for each profile."""
    names = dict.fromkeys(name for summary in summaries.values() for name in summary["phases"])
    tables = []
    for side, key in (("host", "host_s"), ("kernels", "gpu_s")):
        rows = []
        for name in (*names, OUTSIDE):
            values = [phase_s_per_step(summary, name, key) for summary in summaries.values()]
            if key == "host_s" or any(values):
                rows.append((name, values, _ms))
        if rows:
            tables.append(_comparison(f"{side}, per step", rows, summaries))
    return "\n\n".join(tables)


def gaps(summary: Mapping[str, Any]) -> str:
    """Tables of the phase of the host while the GPU is idle, and of the longest gaps; empty without gaps."""
    gpu = summary["gpu"]
    if gpu is None or not gpu["gaps"]:
        return ""
    rows = [("phase of the host", "GPU idle ms")]
    rows += [(phase, _bare_ms(value)) for phase, value in gpu["gaps_by_phase_s"].items()]
    longest = [("start ms", "idle ms", "phase of the host")]
    longest += [(_bare_ms(g["start_s"]), _bare_ms(g["duration_s"]), g["phase"]) for g in gpu["longest_gaps"]]
    return f"{markdown_table(rows)}\n\nLongest gaps:\n\n{markdown_table(longest)}"


def kernel_kinds(summary: Mapping[str, Any]) -> str:
    """Table of the kinds of kernels."""
    kinds = summary["kernels"]["by_kind"].items()
    rows = [(kind, str(k["count"]), _bare_ms(k["total_s"]), _percent(k["share"])) for kind, k in kinds]
    return _table(("kind", "count", "ms", "share of GPU time"), rows)


def kernels(summary: Mapping[str, Any]) -> str:
    """Table of the kernels with the most time."""
    rows = [
        (_name(k["name"]), k["kind"], str(k["count"]), _bare_ms(k["total_s"]), f"{1e6 * k['mean_s']:.1f}")
        for k in summary["kernels"]["top"][:_LISTED]
    ]
    return _table(("kernel", "kind", "count", "ms", "mean us"), rows)


def operators(summary: Mapping[str, Any], by: str) -> str:
    """Table of the operators with the most time.

    Args:
        summary: result of `summarise`.
        by: ranking, "by_cpu" or "by_gpu".
    """
    rows = [
        (_name(o["name"]), str(o["count"]), _bare_ms(o["self_cpu_s"]), *_on_gpu(summary, _bare_ms(o["gpu_s"])))
        for o in summary["operators"][by][:_LISTED]
    ]
    return _table(("operator", "count", "self CPU ms", *_on_gpu(summary, "kernels ms")), rows)


def detail_ranges(summary: Mapping[str, Any]) -> str:
    """Table of the ranges inside phases."""
    rows = []
    for r in summary["ranges"]:
        host, device = map(_bare_ms, (r["total_s"], r["self_s"])), _on_gpu(summary, _bare_ms(r["gpu_s"]))
        rows.append((_name(r["name"]), r["phase"], str(r["count"]), *host, *device))
    return _table(("range", "phase", "count", "host ms", "self ms", *_on_gpu(summary, "kernels ms")), rows)


def recorded_table(recorded: Mapping[str, Any]) -> str:
    """Step and data times of the run's records, and a table of the phases of the whole run."""
    lines = []
    if "step_s" in recorded:
        data = f", {_ms(recorded['data_s'])} of it for data" if "data_s" in recorded else ""
        lines.append(f"Median of {recorded['records']} train records: {_ms(recorded['step_s'])} per step{data}.")
    if "phases_s" in recorded:
        total = recorded.get("total_s") or sum(recorded["phases_s"].values())
        longest_first = sorted(recorded["phases_s"].items(), key=lambda item: -item[1])
        rows = [(name, _duration(value), _percent(value / total if total else 0.0)) for name, value in longest_first]
        lines.append(f"Whole run, {_duration(total)}:\n\n{_table(('phase', 'host', 'share of the run'), rows)}")
    return "\n\n".join(lines) or f"{METRICS} has no times yet."


def _on_gpu(summary: Mapping[str, Any], *cells: str) -> tuple[str, ...]:
    """Columns that are left out of a profile without a GPU."""
    return cells if summary["gpu"] is not None else ()


def _communication(summary: Mapping[str, Any], key: str) -> float | None:
    found = summary["communication"]
    return found[key] if found["source"] else None


def _comparison(
    heading: str,
    rows: Iterable[tuple[str, Sequence[float | None], Callable[[float], str]]],
    summaries: Summaries,
) -> str:
    """Table with a column for each profile and, for several, their spread. Rows without a value are left out."""
    several = len(summaries) > 1
    table = [[heading, *summaries, *(["spread"] if several else [])]]
    for name, values, form in rows:
        known = [value for value in values if value is not None]
        if known:
            cells = ["-" if value is None else form(value) for value in values]
            table.append([name, *cells, *([form(max(known) - min(known))] if several else [])])
    return markdown_table(table)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return markdown_table([header, *rows]) if rows else ""


def _duration(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.1f}s"


def _name(name: str) -> str:
    short = name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."
    return f"`{short}`".replace("|", "\\|")


def _bare_ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _ms(seconds: float) -> str:
    return f"{_bare_ms(seconds)} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
