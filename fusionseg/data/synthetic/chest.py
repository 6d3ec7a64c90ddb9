"""One synthetic chest: an image of anatomy, tissue and noise, and a label of the pulmonary arteries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionseg.data.synthetic import anatomy
from fusionseg.data.synthetic.canvas import Canvas, to_int16
from fusionseg.data.synthetic.case import SynthCase, place_case
from fusionseg.data.synthetic.shapes import Array, Axes, Segment, draw_tubes, ellipsoid

FIELD_OF_VIEW_MM = 340.0
ARTERY_LABEL = 1
# A tube of this radius (voxels) covers a voxel centre wherever it runs (half a face diagonal is 0.71), so the
# label of a thin branch has no gaps. Veins and airways stop earlier: the thinnest branches are arteries.
MIN_ARTERY_RADIUS = 0.72
MIN_VEIN_RADIUS = 0.9
MIN_AIRWAY_RADIUS = 0.9


@dataclass(frozen=True, slots=True)
class _Parts:
    """The anatomy of a case, in mm of the atlas except `spacing`.

    Args:
        axes: positions of the voxel centres along x, y, z.
        voxel: edge of a voxel.
        spacing: edge of a voxel in mm of the patient, who is larger or smaller than the atlas.
        artery_coverage: float32 XYZ in [0, 1].
    """

    chest: anatomy.Chest
    axes: Axes
    voxel: float
    spacing: float
    arteries: list[Segment]
    veins: list[Segment]
    airways: list[Segment]
    artery_coverage: Array


def make_case(size: int, seed: int, index: int) -> SynthCase:
    """Draw one case: a cube about 340 mm wide.

    Args:
        size: voxels per axis.
        seed: of the data set.
        index: of the case.
    """
    streams = np.random.SeedSequence([seed, index]).spawn(2)
    anatomy_rng, image_rng = (np.random.default_rng(stream) for stream in streams)
    parts = _draw_parts(size, anatomy_rng)
    image = _render(parts, image_rng)
    label = (parts.artery_coverage >= 0.5).astype(np.uint8) * np.uint8(ARTERY_LABEL)
    return place_case(image, label, (parts.spacing,) * 3, index, anatomy_rng)


def _draw_parts(size: int, rng: np.random.Generator) -> _Parts:
    spacing = FIELD_OF_VIEW_MM / size * rng.uniform(0.97, 1.03)
    voxel = spacing / rng.uniform(0.97, 1.05)  # patients differ in size: this scales the atlas, not the voxel
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * voxel
    x, y, z = (axis + shift for shift in rng.uniform(-5, 5, 3))
    chest = anatomy.Chest.draw(rng)
    arteries = anatomy.pulmonary_arteries(chest, MIN_ARTERY_RADIUS * voxel, rng)
    coverage = draw_tubes(arteries, (x, y, z), voxel)
    occupied = ndimage.binary_dilation(coverage > 0, iterations=2)
    corner = np.array([x[0], y[0], z[0]])

    def blocked(points: Array) -> Array:
        i, j, k = np.moveaxis(np.clip(np.rint((points - corner) / voxel), 0, size - 1).astype(int), -1, 0)
        inside: Array = occupied[i, j, k]
        return inside

    veins = anatomy.pulmonary_veins(chest, MIN_VEIN_RADIUS * voxel, rng, blocked)
    airways = anatomy.airways(chest, MIN_AIRWAY_RADIUS * voxel, rng, blocked)
    return _Parts(chest, (x, y, z), voxel, spacing, arteries, veins, airways, coverage)


def _render(parts: _Parts, rng: np.random.Generator) -> NDArray[np.int16]:
    """Tissue in HU from outside to inside; then blur and noise."""
    chest, voxel = parts.chest, parts.voxel
    x, y, z = np.ix_(*parts.axes)
    canvas = Canvas(parts.axes, voxel, -1000, rng)
    fill, tubes = canvas.fill, canvas.tubes

    grain = canvas.texture(1.2)
    body = chest.body(x, y, z)
    fill(body, -100 + 8 * grain)  # fat under the skin
    fill(body - 13, 40 + 10 * grain)
    fill(np.minimum(chest.abdomen(x, y, z), body - 22), np.where(x > -15, 95, 60) + 10 * grain)
    # The lungs are denser towards the back: in a lying patient, the blood sinks there.
    fill(chest.lungs(x, y, z), rng.uniform(-875, -835) - 0.35 * y + 28 * grain)

    heart = np.minimum(chest.heart(x, y, z), body - 20)
    fill(heart, 45 + 10 * grain)
    venous = rng.uniform(150, 205)
    fill(ellipsoid(x, y, z, (-38, 16, -54), (19, 17, 25)), venous - 10)  # left ventricle
    fill(ellipsoid(x, y, z, (-14, 38, -46), (25, 16, 25)), rng.uniform(220, 260))  # right ventricle
    fill(ellipsoid(x, y, z, (-3, -22, -18), (28, 17, 17)), venous)  # left atrium
    tubes(anatomy.aorta(rng), venous + 10)
    tubes(anatomy.superior_vena_cava(rng), rng.uniform(480, 600))  # carries the contrast medium

    bone = rng.uniform(450, 600)
    tubes(anatomy.ribs_and_sternum(chest), bone + 50 * grain)
    vertebrae_and_discs = np.where(np.mod(z, 28) < 6, 90, bone - 50)
    fill(17 - np.hypot(x, y + 74), vertebrae_and_discs + 50 * grain)
    fill(13 - np.hypot(x, y + 99), bone + 50 * grain)
    fill(8 - np.hypot(x, y + 99), 30)  # spinal canal

    tubes(parts.veins, venous)
    tubes(parts.airways, 20, wall=max(1.5, 0.6 * voxel))
    tubes(parts.airways, -1000)
    canvas.paint(parts.artery_coverage, rng.uniform(330, 400))

    return to_int16(canvas.finished(rng.uniform(12, 22)), -1024, 3071)
