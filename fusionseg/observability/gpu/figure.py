"""Plot of a gpu.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.observability.gpu.samples import read_gpu_csv
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file

PANELS = (
    ("busy_percent", "busy %"),
    ("memory_used_gb", "memory GB"),
    ("power_w", "power W"),
    ("temperature_c", "temperature °C"),
)
MAX_POINTS = 2000
"""Points of a line, more than the plot has pixels. Longer series are averaged."""
GAP = 5.0
"""Distance of two samples, in median intervals, from which the line is interrupted: the run was stopped meanwhile."""


def plot_gpu_csv(csv: Path, png: Path) -> None:
    """Plot utilisation, memory, power and temperature over time, with a line for each GPU.

    Args:
        csv: path of a gpu.csv.
        png: path of the picture.

    Raises:
        UserError: the file cannot be read, or has no samples.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[float, ...]]] = {}
    labels: dict[str, str] = {}
    for row in read_gpu_csv(csv):
        values = (row["time"].timestamp(), *(np.nan if row[name] is None else row[name] for name, _ in PANELS))
        lines.setdefault(row["uuid"], []).append(values)
        labels[row["uuid"]] = f"GPU {row['index']}"
    if not lines:
        raise UserError(f"{csv}: there are no samples yet; try again when the monitor has written some")
    begin = min(points[0][0] for points in lines.values())
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for uuid, points in lines.items():
        table = downsample(np.array(points))
        for column, axis in enumerate(axes, start=1):
            axis.plot((table[:, 0] - begin) / 60, table[:, column], linewidth=1, label=labels[uuid])
    for axis, (_, title) in zip(axes, PANELS, strict=True):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
    axes[0].set_ylim(0, 105)
    axes[-1].set_xlabel("minutes")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(8, len(lines)), frameon=False
    )
    with whole_file(png) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def downsample(table: NDArray[Any]) -> NDArray[np.float64]:
    """Average neighbouring rows to at most about MAX_POINTS rows, and mark each gap by a row of NaN.

    Args:
        table: time in seconds and values, (N, 1 + values).
    """
    table = np.asarray(table, dtype=np.float64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    steps = np.diff(table[:, 0])
    gaps = np.flatnonzero(steps > GAP * max(float(np.median(steps)), 1e-3)) + 1 if len(steps) else np.array([], int)
    size = -(-len(table) // MAX_POINTS)
    parts = []
    for segment in np.split(table, gaps):
        parts += [_block_means(segment, size), np.full((1, table.shape[1]), np.nan)]
        parts[-1][0, 0] = segment[-1, 0]
    return np.concatenate(parts[:-1])


def _block_means(table: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Means of blocks of `size` rows; NaN values are ignored."""
    if size == 1:
        return table
    starts = np.arange(0, len(table), size)
    known = ~np.isnan(table)
    counts = np.add.reduceat(known, starts, axis=0, dtype=np.float64)
    sums = np.add.reduceat(np.where(known, table, 0.0), starts, axis=0)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
