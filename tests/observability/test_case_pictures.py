"""Pictures of cases: size, aspect, orientation, colours, and the place that they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusionseg.observability.canvas import BACKGROUND, WIDTH, Legend, Panel, compose, round_length
from fusionseg.observability.case_pictures import (
    AGREES,
    DIFFERENCES,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    IGNORED,
    NOT_ANNOTATED,
    OTHER_CLASS,
    difference,
    draw_case,
)
from fusionseg.observability.planes import (
    PLANES,
    Box,
    bounding_box,
    foreground_box,
    planes_of,
    position_of_interest,
    row_scale,
)
from fusionseg.observability.rendering import Renderer


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    grid = np.indices(shape) - np.array(centre).reshape(3, 1, 1, 1)
    inside: NDArray[np.bool_] = (grid**2).sum(axis=0) < radius**2
    return inside


def near(picture: NDArray[np.uint8], color: tuple[int, int, int], most: int = 40) -> int:
    """Number of pixels that nearly have a colour."""
    return int((np.abs(picture.astype(int) - color).max(axis=2) < most).sum())


@pytest.fixture
def case() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    shape = (40, 48, 20)
    image = np.random.default_rng(0).normal(100, 5, shape).astype(np.float32)
    label = ball(shape, (16, 24, 10), 8).astype(np.uint8)
    prediction = ball(shape, (20, 24, 10), 8).astype(np.uint8)
    label[ball(shape, (32, 40, 10), 3)] = 2
    return image, label, prediction


@pytest.mark.parametrize("renderings", [False, True])
def test_a_picture_is_wide_and_always_the_same(case: tuple[Any, ...], renderings: bool) -> None:
    image, label, prediction = case
    copies = (image.copy(), label.copy(), prediction.copy())
    picture = draw_case(image, label, prediction, (1.0, 1.0, 2.0), ["ball", "dot"], "case", renderings=renderings)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (WIDTH, 3) and WIDTH >= 900
    again = draw_case(image, label, prediction, (1.0, 1.0, 2.0), ["ball", "dot"], "case", renderings=renderings)
    assert np.array_equal(picture, again)
    assert all(np.array_equal(now, then) for now, then in zip((image, label, prediction), copies, strict=True))


def test_all_kinds_of_differences_are_drawn(case: tuple[Any, ...]) -> None:
    image, label, prediction = case
    image[:] = 0  # black, so that a colour is the colour of its kind alone
    image[0, 0, 0] = 1
    picture = draw_case(image, label, prediction, (1.0, 1.0, 2.0), ["ball", "dot"], "case")
    for kind in (AGREES, FALSE_POSITIVE, FALSE_NEGATIVE):
        red, green, blue = DIFFERENCES[kind][1]
        assert near(picture, (int(0.6 * red), int(0.6 * green), int(0.6 * blue)), 12) > 500, DIFFERENCES[kind][0]


def test_differences() -> None:
    label = np.array([0, 1, 1, 1, 0, 2, IGNORED, IGNORED])
    prediction = np.array([0, 1, 0, 2, 2, 2, 0, 1])
    expected = [0, AGREES, FALSE_NEGATIVE, OTHER_CLASS, FALSE_POSITIVE, AGREES, NOT_ANNOTATED, NOT_ANNOTATED]
    assert difference(prediction, label).tolist() == expected


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 0.5, 1.2)])
def test_the_aspect_is_that_of_the_body(spacing_mm: tuple[float, float, float]) -> None:
    box = Box.whole((60, 50, 12))
    scale = row_scale(PLANES, box, spacing_mm, 1100, 420)
    sizes = [plane.size_px(box, spacing_mm, scale) for plane in PLANES]
    for plane, (width, height) in zip(PLANES, sizes, strict=True):
        extent = box.extent_mm(spacing_mm)
        assert abs(width - extent[plane.across] * scale) <= 0.5 and abs(height - extent[plane.up] * scale) <= 0.5
    assert sum(width for width, _ in sizes) <= 1102 and max(height for _, height in sizes) <= 421
    # The planes fill the row in one direction at least.
    assert sum(width for width, _ in sizes) >= 1098 or max(height for _, height in sizes) >= 419


def test_the_right_of_the_patient_is_on_the_left() -> None:
    volume = np.zeros((4, 5, 6))
    volume[3, :, :] += 1  # right
    volume[:, 4, :] += 10  # anterior
    volume[:, :, 5] += 100  # superior
    axial, coronal, sagittal = (plane.cut(volume, (1, 1, 1), Box.whole(volume.shape)) for plane in PLANES)
    assert axial.shape == (5, 4) and axial[1:, 0].tolist() == [1] * 4 and axial[0, 1:].tolist() == [10] * 3
    assert coronal.shape == (6, 4) and coronal[1:, 0].tolist() == [1] * 5 and coronal[0, 1:].tolist() == [100] * 3
    assert sagittal.shape == (6, 5) and sagittal[1:, 0].tolist() == [10] * 5 and sagittal[0, 1:].tolist() == [100] * 4
    assert [plane.sides for plane in PLANES] == ["RLAP", "RLSI", "APSI"]


def test_the_planes_go_through_the_place_of_most_error() -> None:
    wrong = np.zeros((40, 40, 40), bool)
    wrong[5, 5, 5] = wrong[5, 5, 9] = True
    wrong[28:33, 20:25, 10:15] = True
    assert position_of_interest(wrong, wrong, (1.0, 1.0, 1.0)) == (30, 22, 12)
    mask = np.zeros((40, 40, 40), bool)
    mask[3:6, 10, 20:23] = mask[4, 10:14, 21] = True
    assert position_of_interest(mask, np.zeros_like(mask), (1.0, 1.0, 1.0)) == (4, 10, 21)
    assert position_of_interest(np.zeros_like(mask), None, (1.0, 1.0, 1.0)) == (20, 20, 20)


def test_the_part_with_the_masks_has_a_margin_in_mm() -> None:
    mask = np.zeros((100, 100, 100), bool)
    mask[40:60, 40:60, 0:10] = True
    assert bounding_box(mask) == Box((40, 40, 0), (60, 60, 10))
    assert foreground_box(mask, (1.0, 0.5, 5.0)) == Box((35, 30, 0), (65, 70, 11))
    assert foreground_box(~mask, (1.0, 1.0, 1.0)) == Box.whole(mask.shape)
    assert foreground_box(np.zeros_like(mask), (1.0, 1.0, 1.0)) == Box.whole(mask.shape)


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((30, 30, 1), "dot"),
        ((1, 30, 30), "dot"),
        ((24, 20, 18), "empty label"),
        ((24, 20, 18), "empty prediction"),
        ((24, 20, 18), "both empty"),
        ((24, 20, 18), "all ignored"),
        ((24, 20, 18), "no label"),
        ((24, 20, 18), "constant image"),
        ((24, 20, 18), "one voxel at the border"),
        ((24, 20, 18), "254 classes"),
        ((200, 4, 4), "dot"),
    ],
)
def test_odd_cases_are_drawn(shape: tuple[int, int, int], change: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    label: NDArray[Any] | None = ball(shape, tuple(size / 2 for size in shape), 4).astype(np.uint8)  # type: ignore[arg-type]
    prediction = np.roll(label, 1, axis=1) if label is not None else None
    assert label is not None and prediction is not None
    if change == "empty label":
        label[:] = 0
    if change in ("empty prediction", "both empty"):
        prediction[:] = 0
    if change == "both empty":
        label[:] = 0
    if change == "all ignored":
        label[:] = IGNORED
    if change == "no label":
        label = None
    if change == "constant image":
        image[:] = 3
    if change == "one voxel at the border":
        label[:], prediction[:] = 0, 0
        label[0, 0, 0] = prediction[-1, -1, -1] = 1
    if change == "254 classes":
        prediction = rng.integers(0, 255, shape).astype(np.uint8)
    picture = draw_case(image, label, prediction, (1.0, 0.8, 3.0), ["ball"], f"{change} " * 30, renderings=True)
    assert picture.shape[1] == WIDTH and picture.std() > 5


def test_planes_of_flat_volumes() -> None:
    assert [plane.name for plane in planes_of((30, 20, 1))] == ["axial"]
    assert [plane.name for plane in planes_of((1, 20, 30))] == ["sagittal"]
    assert [plane.name for plane in planes_of((1, 20, 1))] == ["axial"]


def test_a_rendering_is_seen_from_the_front_and_from_the_left() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[30:38, 30:38, 30:38] = 1  # right, anterior, superior
    mask[2:10, 2:10, 2:10] = 2  # left, posterior, inferior

    def color(number: int) -> tuple[int, int, int]:
        return (255, 0, 0) if number == 1 else (0, 0, 255)

    renderer = Renderer(mask, (1.0, 1.0, 1.0))
    for view in ("front", "left"):
        picture = renderer.view(view, color, BACKGROUND)  # type: ignore[arg-type]
        height, width = picture.shape[:2]
        red = np.argwhere(picture[..., 0] > picture[..., 2] + 40)
        blue = np.argwhere(picture[..., 2] > picture[..., 0] + 40)
        # The first cube is at the upper left from the front (right, superior) and from the left (anterior, superior).
        assert (red.mean(axis=0) < (height / 2, width / 2)).all() and (
            blue.mean(axis=0) > (height / 2, width / 2)
        ).all()
        side = 8 / 42 * max(picture.shape)
        assert len(red) == pytest.approx(side**2, rel=0.25) and len(blue) == pytest.approx(side**2, rel=0.25)


def test_a_rendering_has_the_nearest_surface_and_thin_structures() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[18:22, 30:34, 18:22] = 1
    mask[10:30, 5:9, 10:30] = 2  # behind it
    mask[5, :, 36] = mask[36, 20, :] = 3  # lines of one voxel

    def color(number: int) -> tuple[int, int, int]:
        return ((255, 0, 0), (0, 255, 0), (0, 0, 255))[number - 1]

    picture = Renderer(mask, (1.0, 1.0, 1.0)).view("front", color, BACKGROUND)
    height, width = picture.shape[:2]
    assert picture[height // 2, width // 2].argmax() == 0, "the cube in front"
    assert picture[height // 2, width // 2 - round(8 / 42 * width)].argmax() == 1
    line = picture[:, width - 1 - round((36 + 1.5) / 42 * width)]
    assert (line.argmax(axis=1) == 2).mean() > 0.8 and (line.max(axis=1) > 40).mean() > 0.8


def test_a_composition_has_its_panels_and_legends() -> None:
    panel = Panel(np.full((60, 90, 3), 200, np.uint8), "grey", "RLAP", (10, 10, 30, 30), 3.0)
    picture = compose("title", [[panel, panel]], [Legend("colours:", [("a", (250, 10, 10)), ("b", None)])])
    assert near(picture, (250, 10, 10), 4) >= 12 * 12
    assert near(picture, (255, 214, 90), 4) == 2 * 4 * 19
    assert near(picture, (200, 200, 200), 2) > 2 * 60 * 90 * 0.6
    many = compose("title", [[panel]], [Legend("colours:", [(f"a long name {k}", (9, 9, 250)) for k in range(30)])])
    assert near(many, (9, 9, 250), 4) >= 30 * 12 * 12, "a long legend takes several lines"


@pytest.mark.parametrize(("most", "length"), [(10.0, 10.0), (9.99, 5.0), (0.3, 0.2), (70.0, 50.0), (199.0, 100.0)])
def test_lengths_of_scale_bars_are_round(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)
