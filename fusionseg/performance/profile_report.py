"""The report on one or several profiles of a run, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fusionseg.observability.profiles.attribution import OUTSIDE
from fusionseg.observability.progress import duration
from fusionseg.utils.tables import markdown_table

Summaries = Mapping[str, Mapping[str, Any]]
"""By label, such as `rank 0`."""

_NAME_LENGTH = 80
_LISTED = 12


def report_page(title: str, summaries: Summaries, account: Mapping[str, Any] | None, picture: str) -> str:
    """The page: the window, phases, communication and idle times of all; kernels and operators of the first.

    Args:
        account: the run's own, from `profile_files.own_account`; None without a run.
        picture: file name of the picture beside the page.
    """
    label, first = next(iter(summaries.items()))
    sources = ", ".join(f"{name}: `{summary['source']}`" for name, summary in summaries.items())
    parts = [f"# Where the time of {title} goes", sources, f"![]({picture})", "## The window", window(summaries)]
    parts += ["## Phases", phases(first) if len(summaries) == 1 else phases_by_rank(summaries)]
    others = f" ({label})" if len(summaries) > 1 else ""
    for heading, table in (
        ("Idle times of the GPU", gaps(first)),
        ("Kernels by kind", kernel_kinds(first)),
        ("Kernels", kernels(first)),
        ("Operators by time on the CPU", operators(first, "by_cpu")),
        ("Operators by time of their kernels", operators(first, "by_gpu")),
        ("Ranges inside the phases", finer_ranges(first)),
    ):
        if table:
            parts += [f"## {heading}{others}", table]
    if account is not None:
        parts += ["## The run's own account", own_account(account)]
    return "\n\n".join(parts) + "\n"


def per_step(summary: Mapping[str, Any]) -> int:
    """How many steps the window's times are shared out over; 1 without whole steps."""
    return int(summary["steps"]["count"]) or 1


def window(summaries: Summaries) -> str:
    """A row for each figure of the window, a column for each profile."""
    rows: list[tuple[str, Callable[[Mapping[str, Any]], float | None], Callable[[float], str]]] = [
        ("window", lambda s: s["window_s"], _ms),
        ("whole steps", lambda s: s["steps"]["count"], lambda value: f"{value:.0f}"),
        ("step, mean", lambda s: s["steps"].get("mean_s"), _ms),
        ("step, median", lambda s: s["steps"].get("median_s"), _ms),
        ("step, slowest", lambda s: s["steps"].get("max_s"), _ms),
        ("host outside all phases", lambda s: s["outside_phases"]["host_share"], _percent),
        ("GPU busy", lambda s: (s["gpu"] or {}).get("busy_share"), _percent),
        ("GPU idle, gaps over 5 us", lambda s: (s["gpu"] or {}).get("gaps_s"), _ms),
        ("number of these gaps", lambda s: (s["gpu"] or {}).get("gaps"), lambda value: f"{value:.0f}"),
        ("communication", lambda s: _talk(s, "total_s"), _ms),
        ("communication that nothing hides", lambda s: _talk(s, "exposed_s"), _ms),
        ("the same, of the window", lambda s: _talk(s, "exposed_share"), _percent),
    ]
    return _compared("", [(name, [of(s) for s in summaries.values()], form) for name, of, form in rows], summaries)


def phases(summary: Mapping[str, Any]) -> str:
    """A row for each phase of one profile, times per step."""
    steps = per_step(summary)
    rows = [("phase", "times", "host ms", "of the window", *_on_gpu(summary, "kernels ms", "kernels", "copies ms"))]
    outside = (OUTSIDE, {"count": None, **summary["outside_phases"]})
    for name, entry in (*summary["phases"].items(), outside):
        count = "" if entry["count"] is None else str(entry["count"])
        device = (
            _bare_ms(entry["gpu_s"] / steps),
            f"{entry['kernels'] / steps:.0f}",
            _bare_ms(entry["copy_s"] / steps),
        )
        host = (name, count, _bare_ms(entry["host_s"] / steps), _percent(entry["host_share"]))
        rows.append((*host, *_on_gpu(summary, *device)))
    note = "Per step; `times` in the whole window." if summary["steps"]["count"] else "In the window."
    return f"{markdown_table(rows)}\n\n{note}"


def phases_by_rank(summaries: Summaries) -> str:
    """Host and kernel times of each phase per step, a column for each profile."""
    names = dict.fromkeys(name for summary in summaries.values() for name in summary["phases"])
    tables = []
    for what, key in (("host", "host_s"), ("kernels", "gpu_s")):
        rows = []
        for name in (*names, OUTSIDE):
            values = [
                {**s["phases"], OUTSIDE: s["outside_phases"]}.get(name, {}).get(key, 0.0) / per_step(s)
                for s in summaries.values()
            ]
            if key == "host_s" or any(values):
                rows.append((name, values, _ms))
        if rows:
            tables.append(_compared(f"{what}, per step", rows, summaries))
    return "\n\n".join(tables)


def gaps(summary: Mapping[str, Any]) -> str:
    """What the host did while the device was idle, and the longest gaps."""
    gpu = summary["gpu"]
    if gpu is None or not gpu["gaps"]:
        return ""
    rows = [("host in", "GPU idle ms")]
    rows += [(phase, _bare_ms(value)) for phase, value in gpu["gaps_by_phase_s"].items()]
    longest = [("at ms", "idle ms", "host in")]
    longest += [(_bare_ms(g["start_s"]), _bare_ms(g["duration_s"]), g["phase"]) for g in gpu["longest_gaps"]]
    return f"{markdown_table(rows)}\n\nThe longest:\n\n{markdown_table(longest)}"


def kernel_kinds(summary: Mapping[str, Any]) -> str:
    entries = summary["kernels"]["by_kind"].items()
    rows = [(k, str(e["count"]), _bare_ms(e["total_s"]), _percent(e["share"])) for k, e in entries]
    return _listed(("kind", "number", "ms", "of GPU work"), rows)


def kernels(summary: Mapping[str, Any]) -> str:
    rows = [
        (_name(e["name"]), e["kind"], str(e["count"]), _bare_ms(e["total_s"]), f"{1e6 * e['mean_s']:.1f}")
        for e in summary["kernels"]["top"][:_LISTED]
    ]
    return _listed(("kernel", "kind", "number", "ms", "mean us"), rows)


def operators(summary: Mapping[str, Any], by: str) -> str:
    rows = [
        (_name(e["name"]), str(e["count"]), _bare_ms(e["self_cpu_s"]), *_on_gpu(summary, _bare_ms(e["gpu_s"])))
        for e in summary["operators"][by][:_LISTED]
    ]
    return _listed(("operator", "number", "own CPU ms", *_on_gpu(summary, "kernels ms")), rows)


def finer_ranges(summary: Mapping[str, Any]) -> str:
    rows = []
    for e in summary["ranges"]:
        host, device = map(_bare_ms, (e["total_s"], e["self_s"])), _on_gpu(summary, _bare_ms(e["gpu_s"]))
        rows.append((_name(e["name"]), e["phase"], str(e["count"]), *host, *device))
    return _listed(("range", "in", "number", "host ms", "of it its own", *_on_gpu(summary, "kernels ms")), rows)


def own_account(account: Mapping[str, Any]) -> str:
    """The run's step and data times, and its phases from beginning to end."""
    lines = []
    if "step_s" in account:
        data = f", of it {_ms(account['data_s'])} data" if "data_s" in account else ""
        lines.append(f"Median of {account['records']} train records: {_ms(account['step_s'])} a step{data}.")
    if "phases_s" in account:
        total = account.get("total_s") or sum(account["phases_s"].values())
        ranked = sorted(account["phases_s"].items(), key=lambda item: -item[1])
        rows = [(name, _duration(value), _percent(value / total if total else 0.0)) for name, value in ranked]
        lines.append(f"The whole run, {_duration(total)}:\n\n{_listed(('phase', 'host', 'of the run'), rows)}")
    return "\n\n".join(lines) or "metrics.jsonl holds no times yet."


def _on_gpu(summary: Mapping[str, Any], *cells: str) -> tuple[str, ...]:
    """Columns that say nothing without a GPU."""
    return cells if summary["gpu"] is not None else ()


def _talk(summary: Mapping[str, Any], key: str) -> float | None:
    found = summary["communication"]
    return found[key] if found["source"] else None


def _compared(
    heading: str,
    rows: Iterable[tuple[str, Sequence[float | None], Callable[[float], str]]],
    summaries: Summaries,
) -> str:
    """A column for each profile; from two on, the spread between them. Rows that nobody knows are left out."""
    several = len(summaries) > 1
    table = [[heading, *summaries, *(["spread"] if several else [])]]
    for name, values, form in rows:
        known = [value for value in values if value is not None]
        if known:
            cells = ["-" if value is None else form(value) for value in values]
            table.append([name, *cells, *([form(max(known) - min(known))] if several else [])])
    return markdown_table(table)


def _listed(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
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
