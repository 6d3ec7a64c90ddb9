"""Small charts as inline SVG: curves, points, parts of a whole. They need no script and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10
from statistics import median, quantiles

from fusionseg.utils.tables import plain_number

# Okabe and Ito (2008): these are told apart with the common forms of colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
MARKED = "#d1495b"
WIDTH = 560
MAX_POINTS = 600
"""Points of a curve. More are averaged in blocks, because the chart has no more pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 38
_ROW = 34
_GRID, _TEXT = "#e1e6ec", "#3c4654"
_MOST_LEGEND = 10


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        name: for the legend.
        x: positions, in ascending order.
        y: values; None and values that are not finite interrupt the line.
        color: of the line; empty for the next one of `PALETTE`.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str = ""


@dataclass(frozen=True)
class Point:
    """A point in a row of points.

    Args:
        value: its position.
        title: the text that a browser shows at the point.
        link: the address that a click leads to; empty for none.
        is_marked: whether it has the colour of what to look at.
        color: another colour; empty for the common one.
    """

    value: float
    title: str
    link: str = ""
    is_marked: bool = False
    color: str = ""


def curve_chart(curves: Sequence[Curve], x_label: str, y_label: str, *, height: int = 240, log_y: bool = False) -> str:
    """Draw curves over a common axis.

    Args:
        curves: the curves, those without a finite value are left out.
        x_label: text below the horizontal axis.
        y_label: text beside the vertical axis.
        height: of the chart in pixels, at its natural width of `WIDTH` pixels.
        log_y: use a logarithmic vertical axis, if all values are above 0.

    Returns:
        The SVG element; empty if no curve has a finite value.
    """
    parts = [(curve, _averaged(_segments(curve))) for curve in curves]
    parts = [(curve, segments) for curve, segments in parts if segments]
    points = [point for _, segments in parts for segment in segments for point in segment]
    if not points:
        return ""
    log_y = log_y and min(y for _, y in points) > 0
    x_axis = _Axis.over([x for x, _ in points], _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis.over([y for _, y in points], height - _BOTTOM, _TOP, logarithmic=log_y)
    content = [_grid(x_axis, y_axis, height, x_label, y_label)]
    colors = [curve.color or PALETTE[index % len(PALETTE)] for index, (curve, _) in enumerate(parts)]
    for color, (_, segments) in zip(colors, parts, strict=True):
        for segment in segments:
            path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in segment)
            content.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            if len(segment) <= 40:
                content += [_dot(x_axis.at(x), y_axis.at(y), color, f"{x:g}: {plain_number(y)}") for x, y in segment]
    names = [curve.name for curve, _ in parts]
    return _svg(height, content) + (legend(names, colors) if len(parts) > 1 else "")


def row_chart(rows: Mapping[str, Sequence[Point]], x_label: str) -> str:
    """Draw a row of points for each name, with the box of their quartiles and a line at their median.

    Args:
        rows: name of the row -> its points; those without a finite value are left out.
        x_label: text below the axis.

    Returns:
        The SVG element; empty without any finite value.
    """
    known = {name: [point for point in points if isfinite(point.value)] for name, points in rows.items()}
    values = [point.value for points in known.values() for point in points]
    if not values:
        return ""
    left = min(200, max(_LEFT, 12 + round(6.6 * max(map(len, known)))))
    height = _TOP + _ROW * len(known) + _BOTTOM
    axis = _Axis.over(values, left, WIDTH - _RIGHT)
    content = [_ticks_below(axis, height, x_label)]
    for row, (name, points) in enumerate(known.items()):
        middle = _TOP + _ROW * (row + 0.5)
        shown = name if len(name) <= 28 else f"{name[:26]}..."
        content.append(_text(left - 8, middle + 4, shown, anchor="end"))
        if len(points) > 1:
            low, _, high = quantiles([point.value for point in points], n=4, method="inclusive")
            width = max(0.5, axis.at(high) - axis.at(low))
            box = f'x="{axis.at(low):.1f}" y="{middle - 11:.1f}" width="{width:.1f}" height="22"'
            content.append(f'<rect {box} fill="#dfe8f2"/>')
        if points:
            line = axis.at(median(point.value for point in points))
            content.append(_line(line, middle - 13, line, middle + 13, "#1d2733", 1.6))
        for index, point in enumerate(points):
            # Multiples of the golden ratio look random and are the same each time.
            spread = 18 * ((index * 0.6180339887) % 1.0) - 9
            content.append(_linked_dot(axis.at(point.value), middle + spread, point))
    return _svg(height, content)


def scatter_chart(points: Sequence[tuple[float, Point]], x_label: str, y_label: str, *, height: int = 260) -> str:
    """Draw points. The horizontal axis is logarithmic if its values are positive and span more than a factor of ten.

    Args:
        points: position along the horizontal axis, and the point, whose value is that along the vertical axis. Those
            without a finite position are left out.
        x_label: text below the horizontal axis.
        y_label: text beside the vertical axis.
        height: of the chart in pixels, at its natural width of `WIDTH` pixels.

    Returns:
        The SVG element; empty without any point.
    """
    known = [(x, point) for x, point in points if isfinite(x) and isfinite(point.value)]
    if not known:
        return ""
    places = [x for x, _ in known]
    wide = min(places) > 0 and max(places) > 10 * min(places)
    x_axis = _Axis.over(places, _LEFT, WIDTH - _RIGHT, logarithmic=wide)
    y_axis = _Axis.over([point.value for _, point in known], height - _BOTTOM, _TOP)
    content = [_grid(x_axis, y_axis, height, x_label, y_label)]
    content += [_linked_dot(x_axis.at(x), y_axis.at(point.value), point) for x, point in known]
    return _svg(height, content)


def share_chart(parts: Mapping[str, float], unit: str) -> str:
    """Draw the parts of a whole as one bar, with a legend that has their values and shares.

    Args:
        parts: name -> value of at least 0.
        unit: of the values.

    Returns:
        HTML; empty if the whole is 0.
    """
    whole = sum(parts.values())
    if whole <= 0:
        return ""
    left, content, names = 0.0, [], []
    for index, (name, value) in enumerate(parts.items()):
        width = WIDTH * value / whole
        text = f"{name} {plain_number(value)} {unit} ({value / whole:.1%})"
        content.append(
            f'<rect x="{left:.2f}" y="2" width="{width:.2f}" height="26" fill="{PALETTE[index % len(PALETTE)]}">'
            f"<title>{escape(text)}</title></rect>"
        )
        left += width
        names.append(text)
    return _svg(30, content) + legend(names)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""
    logarithmic: bool

    @staticmethod
    def over(values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> _Axis:
        """An axis that holds all values, with some space at both ends."""
        low, high = min(values), max(values)
        if logarithmic:
            low, high = log10(low), log10(high)
        space = 0.04 * (high - low) or 0.5 * (abs(high) or 1.0) * (0.1 if logarithmic else 1)
        return _Axis(low - space, high + space, start, end, logarithmic)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        place = log10(value) if self.logarithmic else value
        return self.start + (self.end - self.start) * (place - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.logarithmic:
            decades = range(floor(self.low), ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 2 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in values if self.low <= log10(value) <= self.high]
            if len(inside) > 1:
                return inside[:: ceil(len(inside) / 7)]
        low, high = (10**self.low, 10**self.high) if self.logarithmic else (self.low, self.high)
        rough = (high - low) / 5
        power = 10.0 ** floor(log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [round(index * step, 12) for index in range(ceil(low / step), floor(high / step) + 1)]


def _segments(curve: Curve) -> list[list[tuple[float, float]]]:
    """The uninterrupted parts of a curve."""
    segments: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is None or not isfinite(y):
            segments.append([])
        else:
            segments[-1].append((x, y))
    return [segment for segment in segments if segment]


def _averaged(segments: list[list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    block = ceil(sum(map(len, segments)) / MAX_POINTS)
    if block <= 1:
        return segments
    return [
        [
            (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
            for part in (segment[start : start + block] for start in range(0, len(segment), block))
        ]
        for segment in segments
    ]


def _grid(x_axis: _Axis, y_axis: _Axis, height: int, x_label: str, y_label: str) -> str:
    parts = [_ticks_below(x_axis, height, x_label)]
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(_line(_LEFT, y, WIDTH - _RIGHT, y, _GRID))
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    middle = (height - _BOTTOM + _TOP) / 2
    turned = f'<g transform="translate(12 {middle:.0f}) rotate(-90)">{_text(0, 0, y_label, anchor="middle")}</g>'
    return "".join([*parts, turned])


def _ticks_below(axis: _Axis, height: int, label: str) -> str:
    parts = []
    for value in axis.ticks():
        x = axis.at(value)
        parts.append(_line(x, _TOP, x, height - _BOTTOM, _GRID))
        parts.append(_text(x, height - _BOTTOM + 14, f"{value:g}", anchor="middle"))
    parts.append(_text((axis.start + axis.end) / 2, height - 6, label, anchor="middle"))
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="{_TEXT}">{escape(text)}</text>'


def _dot(x: float, y: float, color: str, title: str, radius: int = 3) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle {place} fill="{color}" fill-opacity="0.75"><title>{escape(title)}</title></circle>'


def _linked_dot(x: float, y: float, point: Point) -> str:
    # A point with a colour of its own is one of a few.
    radius = 5 if point.color else 3
    dot = _dot(x, y, MARKED if point.is_marked else point.color or PALETTE[0], point.title, radius)
    return f'<a href="{escape(point.link)}">{dot}</a>' if point.link else dot


def _svg(height: float, content: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" font-family="sans-serif">{"".join(content)}</svg>'


def legend(names: Sequence[str], colors: Sequence[str] = ()) -> str:
    """Name the colours of a chart, below it.

    Args:
        names: at most ten of them are shown.
        colors: as many; empty for those of `PALETTE`.

    Returns:
        HTML.
    """
    chosen = colors or [PALETTE[index % len(PALETTE)] for index in range(len(names))]
    entries = [
        f"<span style='white-space:nowrap'><span style='color:{color}'>&#9632;</span> {escape(name)}</span>"
        for color, name in zip(chosen[:_MOST_LEGEND], names[:_MOST_LEGEND], strict=True)
    ]
    more = [f"and {len(names) - _MOST_LEGEND} more"] if len(names) > _MOST_LEGEND else []
    return f"<p class='note'>{' &ensp; '.join([*entries, *more])}</p>"
