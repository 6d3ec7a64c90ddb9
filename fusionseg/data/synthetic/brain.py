"""One synthetic brain: four MRI sequences in one file, and a tumour of nested parts.

Positions are in millimetres of one atlas: origin in the middle of the brain, x to the patient's right, y to the front,
z to the head. Sequences and labels are those of MSD Task01 (BraTS): no sequence shows all parts of the tumour, and
ventricles and vessels look like parts of it in one sequence each. Outside the brain all channels are 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionseg.data.synthetic.canvas import Canvas, coverage_of, to_int16
from fusionseg.data.synthetic.case import SynthCase, place_case
from fusionseg.data.synthetic.shapes import Array, Axes, draw_tubes, ellipsoid, polyline

CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
LABELS = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
WIDTH_MM = 200.0
HEIGHT_SHARE = 0.76
"""Height of the volume, as a share of its width."""

# Relative intensity of each tissue in the four channels.
_GREY, _WHITE, _FLUID = (0.55, 0.5, 0.5, 0.55), (0.45, 0.7, 0.7, 0.4), (0.12, 0.15, 0.15, 0.95)
_VESSEL = (0.3, 0.35, 1.05, 0.2)
_EDEMA, _NON_ENHANCING, _ENHANCING = (0.9, 0.4, 0.42, 0.8), (0.62, 0.28, 0.25, 0.85), (0.75, 0.42, 1.1, 0.65)


def make_case(size: int, seed: int, index: int) -> SynthCase:
    """Draw one case with voxels that are cubes, about 200 mm wide.

    Args:
        size: voxels from left to right and from back to front.
        seed: of the data set.
        index: of the case.
    """
    streams = np.random.SeedSequence([seed, index]).spawn(2)
    anatomy_rng, image_rng = (np.random.default_rng(stream) for stream in streams)
    edge = WIDTH_MM / size * anatomy_rng.uniform(0.98, 1.02)
    voxel = edge / anatomy_rng.uniform(0.95, 1.05)  # patients differ in size: this scales the atlas, not the voxel
    x, y, z = (
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(voxel) + np.float32(shift)
        for n, shift in zip((size, size, round(HEIGHT_SHARE * size)), anatomy_rng.uniform(-3, 3, 3), strict=True)
    )
    image, label = _draw((x, y, z), voxel, anatomy_rng, image_rng)
    return place_case(image, label, (edge,) * 3, index, anatomy_rng)


def _draw(
    axes: Axes, voxel: float, anatomy_rng: np.random.Generator, image_rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Paint the tissue into the four channels, and label the parts of the tumour.

    Args:
        axes: positions of the voxel centres, mm.
        voxel: edge, mm.
        anatomy_rng: for the shapes.
        image_rng: for intensities and noise.
    """
    x, y, z = np.ix_(*axes)
    brain = ellipsoid(x, y, z, (0, 0, 0), (70, 86, 66))
    ventricles = np.maximum(*(ellipsoid(x, y, z, (side * 14, 4, 6), (8, 30, 12)) for side in (+1, -1)))
    vessels = [
        *polyline(np.array([(0.0, -80, 30), (0, -30, 62), (0, 60, 40)]), max(2.5, 0.6 * voxel)),
        *polyline(np.array([(-60.0, 0, -10), (0, 20, -30), (60, 0, -10)]), max(2.5, 0.6 * voxel)),
    ]
    # The lobes of the tumour have a grain of a few mm; its core is off its centre.
    grain = Canvas(axes, voxel, 0, anatomy_rng).texture(max(1.0, 8 / voxel))
    side = anatomy_rng.choice((-1, 1))
    centre = np.array([side * 34, 0, 6]) + anatomy_rng.uniform((-8, -36, -22), (8, 36, 22))
    radii = np.array([1.0, 0.62, 0.36]) * max(anatomy_rng.uniform(22, 34), 4.5 * voxel)
    shift = anatomy_rng.uniform(-0.15, 0.15, 3) * radii[0]
    whole, core, necrosis = (
        radius - np.sqrt(sum((p - c) ** 2 for p, c in zip((x, y, z), place, strict=True))) + 0.08 * radius * grain
        for radius, place in zip(radii, (centre, centre + shift, centre + shift), strict=True)
    )
    whole = np.minimum(whole, brain - 2)
    core = np.minimum(core, whole - 0.08 * radii[0])
    label = np.zeros(grain.shape, np.uint8)
    for name, distance in (
        ("edema", whole),
        ("enhancing tumour", core),
        ("non-enhancing tumor", np.minimum(necrosis, core)),
    ):
        label[distance >= 0] = LABELS.index(name)

    channels = []
    for channel in range(len(CHANNELS)):
        canvas = Canvas(axes, voxel, 0, image_rng)
        tissue = 0.04 * canvas.texture(1.2)
        canvas.fill(brain, _GREY[channel] + tissue)
        canvas.fill(brain - 12, _WHITE[channel] + tissue)
        canvas.fill(ventricles, _FLUID[channel])
        canvas.paint(draw_tubes(vessels, axes, voxel), _VESSEL[channel])
        canvas.fill(whole, _EDEMA[channel] + tissue)
        canvas.fill(core, _ENHANCING[channel] + tissue)
        canvas.fill(np.minimum(necrosis, core), _NON_ENHANCING[channel] + tissue)
        # MRI has no unit: every scan has a scale of its own, and is brighter near the coil.
        bias = 1 + 0.12 * _smooth_field(image_rng, grain.shape)
        scale = image_rng.uniform(250, 1500)
        image = np.maximum(canvas.finished(0.05) * bias, 0.01) * scale * (coverage_of(brain, voxel) >= 0.5)
        channels.append(to_int16(image, 0, 32767))
    return np.stack(channels, axis=-1), label


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A field from -1 to 1 that changes over the whole volume."""
    field: Array = ndimage.zoom(rng.uniform(-1, 1, (3, 3, 3)), np.array(shape) / 3, order=1)
    return field.astype(np.float32)
