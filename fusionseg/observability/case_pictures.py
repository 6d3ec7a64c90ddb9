"""Pictures of a case for people: three planes, with reference and prediction, their differences, and renderings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.observability.canvas import BACKGROUND, GAP, WIDTH, Color, Legend, Panel, Rectangle, compose
from fusionseg.observability.pictures import COLORS
from fusionseg.observability.planes import (
    Box,
    Plane,
    Position,
    Spacing,
    foreground_box,
    planes_of,
    position_of_interest,
    row_scale,
)
from fusionseg.observability.rendering import SIDES, VIEWS, Renderer

IGNORED = 255
"""Value of a label for voxels that are not annotated."""
AGREES, FALSE_POSITIVE, FALSE_NEGATIVE, OTHER_CLASS, NOT_ANNOTATED = 1, 2, 3, 4, 5
"""Kinds of voxels in the row of differences."""
# These colours are told apart with the common forms of colour blindness (Okabe and Ito, 2008).
DIFFERENCES: Mapping[int, tuple[str, Color]] = {
    AGREES: ("agrees", (0, 158, 115)),
    FALSE_POSITIVE: ("false positive", (235, 125, 0)),
    FALSE_NEGATIVE: ("false negative", (70, 150, 255)),
    OTHER_CLASS: ("another class", (214, 95, 200)),
    NOT_ANNOTATED: ("not annotated", (120, 120, 120)),
}
MOST_NAMES = 16
"""Number of classes in a legend."""
ROW_HEIGHT = 420
"""Height of the highest plane of a row, in pixels."""
_RENDERING_WIDTH, _RENDERING_HEIGHT = 280, 320
_LINE_PX = 2


@dataclass(frozen=True)
class _Case:
    """The volumes of a case, (X, Y, Z) each, and the position of the planes."""

    image: NDArray[Any]
    label: NDArray[Any] | None
    """Without ignored voxels."""
    prediction: NDArray[Any]
    kinds: NDArray[np.uint8] | None
    spacing_mm: Spacing
    at: Position
    planes: Sequence[Plane]


def draw_case(
    image: NDArray[Any],
    label: NDArray[Any] | None,
    prediction: NDArray[Any],
    spacing_mm: Spacing,
    names: Sequence[str],
    title: str,
    *,
    renderings: bool = False,
) -> NDArray[np.uint8]:
    """Draw a case: a row of whole planes, a row of the part with the masks, and a row of renderings.

    The planes go through the place where prediction and reference differ most, and through most of the foreground if
    they do not differ. The patient's right is on the left of axial and coronal planes. All pixels of a row have the
    same size in mm. The same volumes give the same picture.

    Args:
        image: intensities, (X, Y, Z), with the axes in the order left to right, back to front, feet to head (RAS).
        label: the number of the class of each voxel in the reference, from 1; 0 is background, `IGNORED` is not
            annotated. None without a reference.
        prediction: the same for the prediction, or for a mask without a reference; it has no ignored voxels.
        spacing_mm: size of a voxel along each axis.
        names: names of the classes 1, 2, ...
        title: text above the picture.
        renderings: whether there is a row of renderings.

    Returns:
        RGB, (H, `WIDTH`, 3).
    """
    kinds = None if label is None else difference(prediction, label)
    truth = None if label is None else np.where(label == IGNORED, 0, label)
    drawn = prediction > 0 if truth is None else (prediction > 0) | (truth > 0)
    wrong = None if kinds is None else (kinds >= FALSE_POSITIVE) & (kinds <= OTHER_CLASS)
    at = position_of_interest(drawn, wrong, spacing_mm)
    case = _Case(image, truth, prediction, kinds, spacing_mm, at, planes_of(image.shape))
    whole, part = Box.whole(image.shape), foreground_box(drawn, spacing_mm)
    rows = [_planes(case, whole, None if part == whole else part)]
    if kinds is not None or part != whole:
        rows.append(_planes(case, part, None, differences=kinds is not None))
    if renderings and drawn.any():
        rows.append(_renderings(case, part))
    return compose(title, rows, _legends(case, names))


def difference(prediction: NDArray[Any], label: NDArray[Any]) -> NDArray[np.uint8]:
    """Compare a prediction with its reference, voxel by voxel.

    Args:
        prediction: numbers of classes, 0 is background.
        label: the same, with `IGNORED` where the reference is not annotated.

    Returns:
        The kind of each voxel, a key of `DIFFERENCES`; 0 where both are background.
    """
    kinds = np.zeros(label.shape, np.uint8)
    kinds[(prediction > 0) & (label == prediction)] = AGREES
    kinds[(prediction > 0) & (label == 0)] = FALSE_POSITIVE
    kinds[(prediction == 0) & (label > 0)] = FALSE_NEGATIVE
    kinds[(prediction > 0) & (label > 0) & (label != prediction)] = OTHER_CLASS
    kinds[label == IGNORED] = NOT_ANNOTATED
    return kinds


def color_of(number: int) -> Color:
    """The colour of a class.

    Args:
        number: of the class, from 1.
    """
    red, green, blue = (COLORS[(number - 1) % len(COLORS)] * 255).round().astype(int).tolist()
    return red, green, blue


def _planes(case: _Case, box: Box, framed: Box | None, *, differences: bool = False) -> list[Panel]:
    """A row with the planes of a part of a case.

    Args:
        case: the case.
        box: the part.
        framed: a smaller part that is framed.
        differences: draw the kinds of the voxels, instead of prediction and reference.
    """
    width = WIDTH - GAP * (len(case.planes) + 1)
    scale = row_scale(case.planes, box, case.spacing_mm, width, ROW_HEIGHT)
    cuts = [plane.cut(case.image, case.at, box) for plane in case.planes]
    low, high = np.percentile(np.concatenate([cut.ravel() for cut in cuts]).astype(np.float32), (0.5, 99.5))
    panels = []
    for plane, cut in zip(case.planes, cuts, strict=True):
        size = plane.size_px(box, case.spacing_mm, scale)
        grey = np.clip((_resized(cut.astype(np.float32), size) - low) / max(high - low, 1e-6), 0, 1)
        rgb = np.repeat(grey[..., None] * 255, 3, axis=2)
        if differences:
            assert case.kinds is not None
            palette = np.array([(0, 0, 0), *(color for _, color in DIFFERENCES.values())])
            _fill(rgb, _resized(plane.cut(case.kinds, case.at, box), size), palette, 0.6)
        else:
            _draw_masks(rgb, case, plane, box, size)
        position = f"{plane.name}, {'xyz'[plane.normal]} = {case.at[plane.normal]}"
        frame = None if framed is None else _frame(plane, framed, case, scale)
        panels.append(Panel(rgb.round().astype(np.uint8), position, plane.sides, frame, scale))
    return panels


def _draw_masks(rgb: NDArray[Any], case: _Case, plane: Plane, box: Box, size: tuple[int, int]) -> None:
    """Draw the prediction as an area, and the reference, or the border of a mask without a reference, as a line."""
    shown = _resized(plane.cut(case.prediction, case.at, box).astype(np.uint8), size)
    line = shown if case.label is None else _resized(plane.cut(case.label, case.at, box).astype(np.uint8), size)
    palette = np.array([(0, 0, 0), *(color_of(k) for k in range(1, int(max(shown.max(), line.max())) + 1))])
    _fill(rgb, shown, palette, 0.4)
    border = _border(line)
    rgb[border] = 0.6 * palette[line[border]] + 0.4 * 255  # lighter than the area, so that it is seen upon it


def _fill(rgb: NDArray[Any], numbers: NDArray[np.uint8], palette: NDArray[Any], opacity: float) -> None:
    """Mix the colours of numbers above 0 into a picture, in place."""
    inside = numbers > 0
    rgb[inside] = (1 - opacity) * rgb[inside] + opacity * palette[numbers[inside]]


def _border(numbers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels of classes that have another class within `_LINE_PX` pixels."""
    border = np.zeros(numbers.shape, np.bool_)
    for axis in (0, 1):
        for step in range(1, _LINE_PX + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            differs = numbers[tuple(ahead)] != numbers[tuple(behind)]
            border[tuple(ahead)] |= differs
            border[tuple(behind)] |= differs
    return border & (numbers > 0)


def _resized(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize a plane (H, W) to (width, height): float32 by interpolation, uint8 to the nearest pixel."""
    from PIL import Image  # slow to import

    way = Image.Resampling.BILINEAR if plane.dtype == np.float32 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, way))


def _frame(plane: Plane, box: Box, case: _Case, scale: float) -> Rectangle:
    """The rectangle of a part of the volume in the panel of the whole plane."""
    left, right = (
        (case.image.shape[plane.across] - end[plane.across]) * case.spacing_mm[plane.across] * scale
        for end in (box.high, box.low)
    )
    top, bottom = (
        (case.image.shape[plane.up] - end[plane.up]) * case.spacing_mm[plane.up] * scale for end in (box.high, box.low)
    )
    return round(left), round(top), round(right), round(bottom)


def _renderings(case: _Case, box: Box) -> list[Panel]:
    """A row of renderings: reference and prediction from the front, and from the left."""
    from PIL import Image

    masks = [("mask", case.prediction)] if case.label is None else [("reference", case.label)]
    masks += [] if case.label is None else [("prediction", case.prediction)]
    renderers = [(name, Renderer(mask[box.slices], case.spacing_mm)) for name, mask in masks]
    panels = []
    for view in VIEWS:
        for name, renderer in renderers:
            rgb = renderer.view(view, color_of, BACKGROUND)
            height, width = rgb.shape[:2]
            # All renderings of a row have one size in mm: that of the longest axis of the grid.
            enlarged = min(_RENDERING_WIDTH, _RENDERING_HEIGHT) / max(renderer.shape)
            size = max(1, round(width * enlarged)), max(1, round(height * enlarged))
            picture = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
            panels.append(Panel(picture, f"{name}, from the {view}", SIDES[view], scale=enlarged / renderer.voxel_mm))
    return panels


def _legends(case: _Case, names: Sequence[str]) -> list[Legend]:
    shown = set(np.unique(case.prediction).tolist())
    if case.label is not None:
        shown |= set(np.unique(case.label).tolist())
    present = sorted(shown - {0})
    entries: list[tuple[str, Color | None]] = [
        (names[number - 1] if number <= len(names) else f"class {number}", color_of(number))
        for number in present[:MOST_NAMES]
    ]
    if len(present) > MOST_NAMES:
        entries.append((f"and {len(present) - MOST_NAMES} more", None))
    if case.kinds is None:
        return [Legend("colours:", entries)] if entries else []
    kinds = set(np.unique(case.kinds).tolist()) | {AGREES, FALSE_POSITIVE, FALSE_NEGATIVE}
    return [
        Legend("first row: prediction as area, reference as line:", entries),
        Legend("second row:", [entry for kind, entry in DIFFERENCES.items() if kind in kinds]),
    ]
