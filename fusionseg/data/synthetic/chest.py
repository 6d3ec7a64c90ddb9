"""One synthetic chest: an image of anatomy, tissue and noise, and a label of the pulmonary arteries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionseg.data.synthetic import anatomy
from fusionseg.data.synthetic.anatomy import Segment

Array = NDArray[Any]

FIELD_OF_VIEW_MM = 340.0
ARTERY_LABEL = 1
# A tube of this radius (voxels) covers a voxel centre wherever it runs (half a face diagonal is 0.71), so the
# label of a thin branch has no gaps. Veins and airways stop earlier: the thinnest branches are arteries.
MIN_ARTERY_RADIUS = 0.72
MIN_VEIN_RADIUS = 0.9
MIN_AIRWAY_RADIUS = 0.9
# Orientations of the arrays, taken in turn. Even a small data set mixes them, so a program that ignores the affine
# fails on it.
ORIENTATIONS = ("RAS", "LPS", "LAS")


@dataclass(frozen=True, slots=True)
class SynthCase:
    """One volume.

    Args:
        image: int16 XYZ, HU.
        label: uint8 XYZ, 1 in pulmonary arteries.
        affine: (4, 4), voxel index to RAS+ mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


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
    axes: tuple[Array, Array, Array]
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

    affine = np.diag([parts.spacing] * 3 + [1.0])
    affine[:3, 3] = anatomy_rng.uniform(-40, 40, 3) - parts.spacing * (size - 1) / 2
    orientations: Any = nib.orientations
    orientation = orientations.axcodes2ornt(ORIENTATIONS[index % len(ORIENTATIONS)])
    affine = affine @ orientations.inv_ornt_aff(orientation, image.shape)
    image, label = (orientations.apply_orientation(array, orientation) for array in (image, label))
    return SynthCase(np.ascontiguousarray(image), np.ascontiguousarray(label), affine)


def _draw_parts(size: int, rng: np.random.Generator) -> _Parts:
    spacing = FIELD_OF_VIEW_MM / size * rng.uniform(0.97, 1.03)
    voxel = spacing / rng.uniform(0.97, 1.05)  # patients differ in size: this scales the atlas, not the voxel
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * voxel
    x, y, z = (axis + shift for shift in rng.uniform(-5, 5, 3))
    chest = anatomy.Chest.draw(rng)
    arteries = anatomy.pulmonary_arteries(chest, MIN_ARTERY_RADIUS * voxel, rng)
    coverage = _draw_tubes(arteries, (x, y, z), voxel)
    occupied = ndimage.binary_dilation(coverage > 0, iterations=2)
    corner = np.array([x[0], y[0], z[0]])

    def blocked(points: Array) -> Array:
        i, j, k = np.moveaxis(np.clip(np.rint((points - corner) / voxel), 0, size - 1).astype(int), -1, 0)
        inside: Array = occupied[i, j, k]
        return inside

    veins = anatomy.pulmonary_veins(chest, MIN_VEIN_RADIUS * voxel, rng, blocked)
    airways = anatomy.airways(chest, MIN_AIRWAY_RADIUS * voxel, rng, blocked)
    return _Parts(chest, (x, y, z), voxel, spacing, arteries, veins, airways, coverage)


def _draw_tubes(segments: Iterable[Segment], axes: tuple[Array, Array, Array], voxel: float, wall: float = 0) -> Array:
    """Share of each voxel that tubes cover: float32 XYZ in [0, 1], half on the surface, linear over a voxel.

    Args:
        axes: positions of the voxel centres along x, y, z, mm.
        voxel: mm.
        wall: added to every radius, mm.
    """
    coverage = np.zeros([len(axis) for axis in axes], np.float32)
    for segment in segments:
        first, last = segment.start, segment.end
        reach = max(segment.start_radius, segment.end_radius) + wall + voxel
        box = tuple(
            slice(*np.searchsorted(axis, (min(a, b) - reach, max(a, b) + reach)))
            for axis, a, b in zip(axes, first, last, strict=True)
        )
        offsets = [
            (axis[part] - a).reshape([-1 if n == dim else 1 for n in range(3)])
            for dim, (axis, part, a) in enumerate(zip(axes, box, first, strict=True))
        ]
        if any(offset.size == 0 for offset in offsets):
            continue  # outside the field of view
        along = (last - first).astype(np.float32)
        t = sum(o * v for o, v in zip(offsets, along, strict=True)) / max(float(along @ along), 1e-6)
        t = np.clip(t, 0, 1)
        squared = sum((o - t * v) ** 2 for o, v in zip(offsets, along, strict=True))
        radius = segment.start_radius + wall + (segment.end_radius - segment.start_radius) * t
        np.maximum(coverage[box], np.clip(0.5 + (radius - np.sqrt(squared)) / voxel, 0, 1), out=coverage[box])
    return coverage


def _render(parts: _Parts, rng: np.random.Generator) -> NDArray[np.int16]:
    """Tissue in HU from outside to inside, each with a soft edge one voxel wide; then blur and noise."""
    chest, voxel = parts.chest, parts.voxel
    x, y, z = np.ix_(*parts.axes)
    shape = tuple(len(axis) for axis in parts.axes)
    image = np.full(shape, -1000, np.float32)

    def texture(sigma: float) -> Array:
        """Unit-variance noise with a grain of `sigma` voxels."""
        field: Array = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma, truncate=3)
        field /= field.std()
        return field

    def paint(coverage: Array, value: float | Array) -> None:
        nonlocal image
        image += coverage * (value - image)

    def fill(distance: Array, value: float | Array) -> None:
        paint(np.clip(0.5 + distance / voxel, 0, 1), value)

    def tubes(segments: Iterable[Segment], value: float | Array, wall: float = 0) -> None:
        paint(_draw_tubes(segments, parts.axes, voxel, wall), value)

    grain = texture(1.2)
    body = chest.body(x, y, z)
    fill(body, -100 + 8 * grain)  # fat under the skin
    fill(body - 13, 40 + 10 * grain)
    fill(np.minimum(chest.abdomen(x, y, z), body - 22), np.where(x > -15, 95, 60) + 10 * grain)
    # The lungs are denser towards the back: in a lying patient, the blood sinks there.
    fill(chest.lungs(x, y, z), rng.uniform(-875, -835) - 0.35 * y + 28 * grain)

    heart = np.minimum(chest.heart(x, y, z), body - 20)
    fill(heart, 45 + 10 * grain)
    venous = rng.uniform(150, 205)
    fill(anatomy.ellipsoid(x, y, z, (-38, 16, -54), (19, 17, 25)), venous - 10)  # left ventricle
    fill(anatomy.ellipsoid(x, y, z, (-14, 38, -46), (25, 16, 25)), rng.uniform(220, 260))  # right ventricle
    fill(anatomy.ellipsoid(x, y, z, (-3, -22, -18), (28, 17, 17)), venous)  # left atrium
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
    paint(parts.artery_coverage, rng.uniform(330, 400))

    image = ndimage.gaussian_filter(image, 0.4, truncate=3)
    image += rng.uniform(12, 22) * texture(0.5)
    hounsfield: NDArray[np.int16] = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    return hounsfield
