"""Composition of a picture with text: a title, rows of panels, and legends, below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]

WIDTH = 1200
"""Width of a picture in pixels."""
GAP = 12
"""Space between two panels, in pixels."""
BACKGROUND: Color = (16, 20, 26)
_TEXT: Color = (232, 236, 241)
_FRAME: Color = (255, 214, 90)
_SIZE, _TITLE_SIZE = 15, 19
_LINE = 24
_SWATCH = 12


@dataclass(frozen=True)
class Panel:
    """A picture in a row.

    Args:
        rgb: (H, W, 3).
        caption: text above it.
        sides: letters at its left, right, top and bottom; empty for none.
        frame: left, top, right and bottom of a rectangle in it, in pixels; None for none.
        scale: pixels for each mm, for a scale bar; None for no bar.
    """

    rgb: NDArray[np.uint8]
    caption: str
    sides: str = ""
    frame: Rectangle | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Legend:
    """A line of coloured names.

    Args:
        title: text before the names.
        entries: each name with its colour; None for a name without one.
    """

    title: str
    entries: Sequence[tuple[str, Color | None]] = field(default_factory=list)


def compose(title: str, rows: Sequence[Sequence[Panel]], legends: Sequence[Legend] = ()) -> NDArray[np.uint8]:
    """Compose a picture.

    Args:
        title: text at the top. A long text takes several lines.
        rows: the panels, row by row. The panels of a row together are narrower than `WIDTH` by at least a `GAP` for
            each.
        legends: at the bottom.

    Returns:
        RGB, (H, `WIDTH`, 3).
    """
    parts = [_text_lines(title), *map(_draw_row, rows), *map(_draw_legend, legends)]
    return np.concatenate(parts, axis=0)


def _blank(height: int) -> tuple[Any, Any]:
    """A new image of `WIDTH`, and the object that draws on it."""
    from PIL import Image, ImageDraw  # slow to import

    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    return image, ImageDraw.Draw(image)


def _font(size: int = _SIZE) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text_lines(text: str) -> NDArray[np.uint8]:
    font, lines = _font(_TITLE_SIZE), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > WIDTH - 2 * GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    image, draw = _blank(GAP + (_LINE + 3) * len(lines))
    for index, line in enumerate(lines):
        draw.text((GAP, GAP + (_LINE + 3) * index), line, fill=_TEXT, font=font)
    return np.asarray(image)


def _draw_row(panels: Sequence[Panel]) -> NDArray[np.uint8]:
    from PIL import Image

    height = max(panel.rgb.shape[0] for panel in panels)
    image, draw = _blank(_LINE + height + GAP)
    free = WIDTH - sum(panel.rgb.shape[1] for panel in panels)
    space, left = free / (len(panels) + 1), 0.0
    for panel in panels:
        left += space
        x, y = round(left), _LINE + (height - panel.rgb.shape[0]) // 2
        left += panel.rgb.shape[1]
        image.paste(Image.fromarray(panel.rgb), (x, y))
        draw.text((x, y - _LINE + 3), panel.caption, fill=_TEXT, font=_font())
        _annotate(draw, panel, x, y)
    return np.asarray(image)


def _annotate(draw: Any, panel: Panel, x: int, y: int) -> None:
    """Draw letters, frame and scale bar of a panel whose upper left corner is at (x, y)."""
    height, width = panel.rgb.shape[:2]
    style = {"font": _font(), "fill": _TEXT, "stroke_width": 1, "stroke_fill": BACKGROUND}
    corners = [(x + 4, y + height // 2, "lm"), (x + width - 4, y + height // 2, "rm")]
    corners += [(x + width // 2, y + 3, "ma"), (x + width // 2, y + height - 3, "md")]
    if min(height, width) > 5 * _SIZE:
        for letter, (at_x, at_y, anchor) in zip(panel.sides, corners, strict=False):
            draw.text((at_x, at_y), letter, anchor=anchor, **style)
    if panel.frame is not None:
        left, top, right, bottom = panel.frame
        draw.rectangle((x + left, y + top, x + right - 1, y + bottom - 1), outline=_FRAME)
    if panel.scale is not None and height > 3 * _SIZE:
        length = round_length(0.3 * width / panel.scale)
        end = x + 8 + round(length * panel.scale)
        draw.rectangle((x + 7, y + height - 10, end + 1, y + height - 6), fill=_TEXT, outline=BACKGROUND)
        draw.text((x + 8, y + height - 12), f"{length:g} mm", anchor="ld", **style)


def _draw_legend(legend: Legend) -> NDArray[np.uint8]:
    font = _font()
    # The first pass finds the positions, so that the image is made with the right number of lines.
    x, line = GAP + round(font.getlength(legend.title)) + 2 * GAP, 0
    places: list[tuple[int, int]] = []
    for name, color in legend.entries:
        needed = round(font.getlength(name)) + (0 if color is None else _SWATCH + 6)
        if x + needed > WIDTH - GAP and places:
            x, line = 3 * GAP, line + 1
        places.append((x, line))
        x += needed + 2 * GAP
    image, draw = _blank(_LINE * (line + 1))
    draw.text((GAP, 3), legend.title, fill=_TEXT, font=font)
    for (name, color), (left, row) in zip(legend.entries, places, strict=True):
        top = _LINE * row
        if color is not None:
            draw.rectangle((left, top + 6, left + _SWATCH, top + 6 + _SWATCH), fill=color)
            left += _SWATCH + 6
        draw.text((left, top + 3), name, fill=_TEXT, font=font)
    return np.asarray(image)


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most a length.

    Args:
        most: above 0.
    """
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(factor for factor in (1, 2, 5) if factor * power <= most * (1 + 1e-9)))
