"""One synthetic abdomen: a portal venous CT with thick slices, and a label of several organs and a tumour.

Positions are in millimetres of one atlas: origin in the middle of the abdomen, x to the patient's right, y to the
front, z to the head. Liver, spleen and muscle have nearly the same HU, and stomach and bowel lie between the organs
without a label, so a threshold does not separate the classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.synthetic.canvas import Canvas, to_int16
from fusionseg.data.synthetic.case import SynthCase, place_case
from fusionseg.data.synthetic.shapes import Array, Axes, Segment, draw_tubes, ellipsoid, polyline, superellipse

LABELS = ("background", "spleen", "liver", "right_kidney", "left_kidney", "pancreas", "cancer")
WIDTH_MM = 375.0
HEIGHT_MM = (240.0, 280.0)
SLICES = (0.3, 0.45)
"""Number of slices as a share of the voxels in a row: slices are about twice as thick as a voxel is wide, and the
volumes of a data set have different shapes."""

# Name of the class, mean HU in the portal venous phase, centre and half-axes in mm.
_ORGANS = (
    ("liver", 108.0, (68.0, 12.0, 52.0), (82.0, 72.0, 62.0)),
    ("spleen", 122.0, (-92.0, -38.0, 48.0), (30.0, 40.0, 50.0)),
    ("right_kidney", 178.0, (60.0, -52.0, -48.0), (26.0, 24.0, 54.0)),
    ("left_kidney", 178.0, (-62.0, -52.0, -36.0), (26.0, 24.0, 54.0)),
)
_PANCREAS = ((36.0, 12.0, -34.0), (30.0, 20.0, -8.0), (2.0, 12.0, 2.0), (-34.0, -2.0, 10.0), (-62.0, -20.0, 18.0))


def make_case(size: int, seed: int, index: int) -> SynthCase:
    """Draw one case, about 375 mm wide and 260 mm high.

    Args:
        size: voxels in a row and in a column of a slice.
        seed: of the data set.
        index: of the case.
    """
    streams = np.random.SeedSequence([seed, index]).spawn(2)
    anatomy_rng, image_rng = (np.random.default_rng(stream) for stream in streams)
    slices = max(8, round(size * anatomy_rng.uniform(*SLICES)))
    edge = WIDTH_MM / size * anatomy_rng.uniform(0.95, 1.05)
    thickness = anatomy_rng.uniform(*HEIGHT_MM) / slices
    scale = anatomy_rng.uniform(0.94, 1.06)  # patients differ in size: this scales the atlas, not the voxel
    shifts = anatomy_rng.uniform(-6, 6, 3)
    x, y, z = (
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(step / scale) + np.float32(shift)
        for n, step, shift in zip((size, size, slices), (edge, edge, thickness), shifts, strict=True)
    )
    image, label = _draw((x, y, z), edge / scale, thickness / scale, anatomy_rng, image_rng)
    return place_case(image, label, (edge, edge, thickness), index, anatomy_rng)


def _draw(
    axes: Axes,
    edge: float,
    thickness: float,
    anatomy_rng: np.random.Generator,
    image_rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Paint the tissue from outside to inside, and label the organs.

    Args:
        axes: positions of the voxel centres, mm.
        edge: of a voxel in the slice, mm.
        thickness: distance of the slices, mm.
        anatomy_rng: for the shapes.
        image_rng: for intensities and noise.
    """
    x, y, z = np.ix_(*axes)
    canvas = Canvas(axes, edge, -1000, image_rng)
    label = np.zeros(canvas.image.shape, np.uint8)
    grain = canvas.texture(1.2)

    def organ(name: str, distance: Array, hounsfield: float) -> None:
        canvas.fill(distance, hounsfield + image_rng.normal(0, 6) + 8 * grain)
        label[np.broadcast_to(distance >= 0, label.shape)] = LABELS.index(name)

    body = (1 - superellipse(x, y, 168, 122, 2.3)) * 122 + 0 * z
    canvas.fill(body, -100 + 10 * grain)  # fat
    canvas.fill(np.minimum(body - 16, 10 - np.abs(body - 26)), 58 + 10 * grain)  # muscle of the wall
    lungs = np.minimum(z - 102 + 0.002 * (x**2 + y**2), body - 24)
    canvas.fill(lungs, -830 + 25 * grain)
    canvas.fill(20 - np.hypot(x, y + 62) + 0 * z, np.where(np.mod(z, 30) < 7, 90, 330) + 40 * grain)  # vertebrae
    for side in (+1, -1):
        canvas.fill(ellipsoid(x, y, z, (side * 44, -74, -40), (28, 20, 120)), 62 + 10 * grain)  # muscle of the back
    canvas.tubes(polyline(np.array([(-12.0, -30, 200), (-12, -34, -200)]), 10), image_rng.uniform(140, 170))  # aorta
    canvas.tubes(polyline(np.array([(16.0, -28, 200), (16, -32, -200)]), 11), image_rng.uniform(130, 160))  # vena cava
    canvas.fill(ellipsoid(x, y, z, (-58, 38, 52), (38, 32, 42)), 30 + 12 * grain)  # stomach
    canvas.fill(np.minimum(ellipsoid(x, y, z, (-58, 38, 52), (34, 28, 38)), y - 50), -900)  # its air
    for loop in anatomy_rng.uniform((-90, 0, -115), (90, 75, -40), (14, 3)):
        canvas.fill(ellipsoid(x, y, z, loop, (20, 20, 20)), image_rng.uniform(20, 110) + 10 * grain)  # bowel

    for name, hounsfield, centre, half_axes in _ORGANS:
        moved = np.array(centre) + anatomy_rng.normal(0, 4, 3)
        sizes = np.array(half_axes) * anatomy_rng.uniform(0.88, 1.12, 3)
        distance = np.minimum(ellipsoid(x, y, z, moved, sizes), body - 20)
        organ(name, _bent(distance, (x, y, z), anatomy_rng), hounsfield)
    # A tube or a ball of half the diagonal of a voxel holds a voxel centre wherever it lies: no class is empty.
    reach = 0.5 * float(np.sqrt(2 * edge**2 + thickness**2))
    course = np.array(_PANCREAS) + anatomy_rng.normal(0, 3, 3)
    tubes = polyline(course, max(anatomy_rng.uniform(10, 14), reach))
    organ("pancreas", _inside(tubes, axes, edge), 92)
    centre = course[1] + (course[2] - course[1]) * anatomy_rng.uniform(0, 1)
    radius = max(anatomy_rng.uniform(7, 14), reach)
    organ("cancer", radius - np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2), 58)
    return to_int16(canvas.finished(image_rng.uniform(10, 18)), -1024, 3071), label


def _bent(distance: Array, position: tuple[Array, Array, Array], rng: np.random.Generator) -> Array:
    """Move a surface in and out by a few mm, in waves of some cm: organs are not ellipsoids."""
    waves = sum(
        rng.uniform(1, 2.5) * np.sin(along / rng.uniform(14, 24) + rng.uniform(0, 2 * np.pi)) for along in position
    )
    return distance + waves


def _inside(tubes: list[Segment], axes: Axes, voxel: float) -> Array:
    """Distance inside tubes near their surface, mm."""
    return (draw_tubes(tubes, axes, voxel) - 0.5) * voxel
