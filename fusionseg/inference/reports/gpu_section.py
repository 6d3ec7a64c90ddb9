"""The GPUs on the page of a run: means of the counters, and their curves."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from fusionseg.observability.gpu.figure import PANELS, downsample
from fusionseg.observability.gpu.samples import read_gpu_csv
from fusionseg.runs.json_files import is_number
from fusionseg.runs.paths import GPU_TABLE
from fusionseg.runs.records import Record
from fusionseg.utils.charts import Curve, curve_chart
from fusionseg.utils.errors import UserError
from fusionseg.utils.html_page import figure, heading, table
from fusionseg.utils.tables import plain_number


def gpu_section(run: Path, last_end: Record | None) -> list[str]:
    """Make the section about the GPUs; empty without any measurement.

    Args:
        run: the run folder.
        last_end: the end record of its last start; None if that left none.
    """
    summaries = [one for one in ((last_end or {}).get("gpu") or {}).get("gpus", ()) if isinstance(one, Mapping)]
    charts = _gpu_charts(run)
    if not summaries and not charts:
        return []
    names = {
        "busy_percent": "busy %",
        "memory_used_gb": "memory, most (GB)",
        "memory_total_gb": "of (GB)",
        "power_w": "power (W)",
        "temperature_c": "temperature, most (°C)",
        "sm_clock_mhz": "clock (MHz)",
    }
    rows = [
        [
            escape(f"{one.get('index')}: {one.get('name')}"),
            *(plain_number(float(one[key])) if is_number(one.get(key)) else "" for key in names),
        ]
        for one in summaries
    ]
    parts = [heading("GPUs", "Means over the run, and highest values where the column says so.")]
    parts += [table(["GPU", *(escape(name) for name in names.values())], rows)] if rows else []
    return [*parts, f"<div class='charts'>{''.join(charts)}</div>"]


def _gpu_charts(run: Path) -> list[str]:
    path = run / GPU_TABLE
    if not path.is_file():
        return []
    try:
        samples = list(read_gpu_csv(path))
    except UserError:
        return []
    by_gpu: dict[str, list[tuple[float, ...]]] = {}
    for row in samples:
        values = [np.nan if row[name] is None else float(row[name]) for name, _ in PANELS]
        by_gpu.setdefault(f"GPU {row['index']}", []).append((row["time"].timestamp(), *values))
    if not by_gpu:
        return []
    begin = min(points[0][0] for points in by_gpu.values())
    tables = {name: downsample(np.array(points)) for name, points in by_gpu.items()}
    charts = []
    for column, (_, title) in enumerate(PANELS, start=1):
        curves = [
            Curve(name, ((one[:, 0] - begin) / 60).tolist(), one[:, column].tolist()) for name, one in tables.items()
        ]
        if chart := curve_chart(curves, "minutes", title):
            charts.append(figure(chart, title))
    return charts
