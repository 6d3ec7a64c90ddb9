"""The figure of a fingerprint: a point for each case, so that a person sees the spread and the cases outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.fingerprint.case import Intensities
from fusionseg.data.fingerprint.fingerprint import Fingerprint

MOST_OUTPUTS = 40
MOST_CHANNELS = 6
MOST_ON_LINEAR_AXIS = 20
PLAIN, OUTLYING = "#3b6ea5", "#d1495b"
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "text.parse_math": False,  # names of data sets may have a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fusionseg",  # the same fingerprint gives the same bytes
}
_COLUMNS = 3
_ROW_INCHES = 2.5
_JITTER = 0.22


class Points:
    """Panels with a point for each case.

    Args:
        links: name of the case -> address that its points lead to in an SVG.
        outlying: names of the cases that are drawn in another colour.
    """

    def __init__(self, links: Mapping[str, str], outlying: set[str]) -> None:
        self._links = links
        self._outlying = outlying

    def rows(self, axes: Any, rows: Mapping[str, Mapping[str, float]], *, horizontal: bool = False) -> None:
        """Draw a row of points for each entry.

        Args:
            axes: of matplotlib.
            rows: label of the row -> name of the case -> value.
            horizontal: values along the horizontal axis.
        """
        for position, cases in enumerate(rows.values()):
            spread = position + _JITTER * _spread(len(cases))
            values = np.array(list(cases.values()), float)
            x, y = (values, spread) if horizontal else (spread, values)
            self.scatter(axes, x, y, list(cases))
            if len(values):
                ends = position - 0.32, position + 0.32
                line = axes.vlines if horizontal else axes.hlines
                line(np.median(values), *ends, color="black", linewidth=1.2)
        set_ticks, set_limits = (axes.set_yticks, axes.set_ylim) if horizontal else (axes.set_xticks, axes.set_xlim)
        set_ticks(range(len(rows)), list(rows))
        set_limits(*((len(rows) - 0.5, -0.5) if horizontal else (-0.5, len(rows) - 0.5)))

    def scatter(self, axes: Any, x: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> None:
        """Draw a point for each case.

        Args:
            axes: of matplotlib.
            x: (N,).
            y: (N,).
            names: of the N cases.
        """
        colors = [OUTLYING if name in self._outlying else PLAIN for name in names]
        points = axes.scatter(x, y, s=9, c=colors, alpha=0.7, linewidths=0, zorder=2)
        points.set_urls([self._links.get(name) for name in names])


def draw_figure(fingerprint: Fingerprint, outlying: set[str], links: Mapping[str, str]) -> Any:
    """Draw the figure of a fingerprint.

    Args:
        fingerprint: of a data set with at least one case.
        outlying: names of the cases that are drawn in another colour.
        links: name of the case -> address that its points lead to in an SVG.

    Returns:
        A figure of matplotlib. The caller draws within `matplotlib.rc_context(STYLE)`.
    """
    from matplotlib.figure import Figure  # slow to import

    points = Points(links, outlying)
    channels = list(enumerate(fingerprint.channels))[:MOST_CHANNELS]
    outputs = fingerprint.outputs[:MOST_OUTPUTS]
    panels = 2 + len(channels) + 2 * bool(outputs)
    rows = -(-panels // _COLUMNS)
    height = _ROW_INCHES * rows + 0.12 * max(0, len(outputs) - 10)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    ratios = [1.0] * (rows - 1) + [1 + 0.08 * max(0, len(outputs) - 10)]
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, height_ratios=ratios).flatten()
    for unused in axes[panels:]:
        unused.axis("off")
    free = iter(axes)
    cases = fingerprint.cases
    for title, values in (
        ("shape (voxels)", [case.shape for case in cases]),
        ("voxel size (mm)", [case.spacing_mm for case in cases]),
    ):
        panel = next(free)
        panel.set_title(title)
        names = [case.name for case in cases]
        points.rows(
            panel,
            {
                axis: dict(zip(names, column, strict=True))
                for axis, column in zip("xyz", zip(*values, strict=True), strict=True)
            },
        )
        panel.set_ylim(0, 1.08 * max(map(max, values)))
    for index, channel in channels:
        _draw_intensities(next(free), points, fingerprint, index, channel)
    if outputs:
        _draw_outputs(next(free), next(free), points, fingerprint, outputs)
    return figure


def _draw_intensities(axes: Any, points: Points, fingerprint: Fingerprint, index: int, channel: str) -> None:
    """Draw the range of the foreground intensities of each case, sorted by the median."""
    where = "foreground" if any(case.foreground[index] is not None for case in fingerprint.cases) else "volume"
    known: list[tuple[str, Intensities]] = []
    for case in fingerprint.cases:
        part = (case.foreground if where == "foreground" else case.whole)[index]
        if part is not None:
            known.append((case.name, part))
    known.sort(key=lambda pair: pair[1].median)
    parts = [part for _, part in known]
    position = np.arange(len(parts))
    for low, high, width in ((0.5, 99.5, 0.8), (5.0, 95.0, 2.2)):
        axes.vlines(
            position,
            [part.percentile(low) for part in parts],
            [part.percentile(high) for part in parts],
            color="#b7c9de",
            linewidth=width * min(1.0, 60 / max(1, len(parts))) + 0.3,
            zorder=1,
        )
    points.scatter(axes, position, np.array([part.median for part in parts]), [name for name, _ in known])
    medians = np.array([part.median for part in parts])
    if len(medians) and medians.min() > 0 and medians.max() > 20 * medians.min():
        _logarithmic(axes, "y")
    axes.set_title(f"{channel}: intensities of the {where}")
    axes.set_xlabel("cases by median; 5 to 95 %, 0.5 to 99.5 %")
    axes.set_xticks([])


def _draw_outputs(
    volumes: Any, components: Any, points: Points, fingerprint: Fingerprint, outputs: Sequence[str]
) -> None:
    """Draw volume and number of components of each output."""
    present = {
        name: [
            (case.name, case.outputs[name])
            for case in fingerprint.labelled
            if name in case.outputs and case.outputs[name].voxels
        ]
        for name in outputs
    }
    more = f", first {MOST_OUTPUTS}" if len(fingerprint.outputs) > MOST_OUTPUTS else ""
    points.rows(
        volumes,
        {name: {case: one.volume_mm3 / 1000 for case, one in found} for name, found in present.items()},
        horizontal=True,
    )
    _logarithmic(volumes, "x")
    volumes.set_title(f"volume (ml){more}")
    points.rows(
        components,
        {name: {case: one.components for case, one in found} for name, found in present.items()},
        horizontal=True,
    )
    most = max((one.components for found in present.values() for _, one in found), default=1)
    if most > MOST_ON_LINEAR_AXIS:
        _logarithmic(components, "x")
    else:
        components.set_xlim(0, most + 1)
        components.set_xticks(range(0, most + 2, 1 + most // 10))
    components.set_title(f"connected components{more}")


def _logarithmic(axes: Any, axis: str) -> None:
    """Make an axis logarithmic, with plain numbers as labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if axis == "x" else axes.set_yscale)("log", nonpositive="clip")
    one = axes.xaxis if axis == "x" else axes.yaxis
    low, high = one.get_view_interval()
    one.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    one.set_minor_formatter(NullFormatter())


def _spread(count: int) -> NDArray[Any]:
    """Positions from -1 to 1 that look random and are the same each time: multiples of the golden ratio."""
    spread: NDArray[Any] = 2 * ((np.arange(count) * 0.6180339887) % 1.0) - 1
    return spread
