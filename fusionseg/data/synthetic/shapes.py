"""Shapes of synthetic anatomy: tubes, and the distance functions of ellipses and ellipsoids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Axes = tuple[Array, Array, Array]
"""Positions of the voxel centres along x, y, z, in mm."""
Triple = tuple[float, float, float] | Array


@dataclass(slots=True)
class Segment:
    """A straight tapered tube with round ends.

    Args:
        start: (3,) mm.
        end: (3,) mm.
        start_radius: mm.
        end_radius: mm; at a bifurcation its cube is the sum of the cubes of the children's `start_radius`.
        parent: index into the tree's list; -1 for a root.
    """

    start: Array
    end: Array
    start_radius: float
    end_radius: float
    parent: int = -1


def superellipse(x: Array, y: Array, a: float, b: float, power: float) -> Array:
    """Relative radius: 0 at the centre, 1 on the outline with half-axes a and b."""
    return ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power) ** (1 / power)


def ellipsoid(x: Array, y: Array, z: Array, centre: Triple, half_axes: Triple) -> Array:
    """Positive inside; close to mm near the surface along the shortest axis."""
    parts = [((p - c) / h) ** 2 for p, c, h in zip((x, y, z), centre, half_axes, strict=True)]
    return (1 - np.sqrt(parts[0] + parts[1] + parts[2])) * min(half_axes)


def polyline(points: Array, radius: float) -> list[Segment]:
    """Join points (n, 3) by tubes of one radius, all in mm."""
    return [Segment(a, b, radius, radius) for a, b in pairwise(points)]


def draw_tubes(segments: Iterable[Segment], axes: Axes, voxel: float, wall: float = 0) -> Array:
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
