"""The plan of the spatial augmentations: flips, turns, rotation, zoom, shear and deformation of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.data.spatial import AXES
from fusionseg.data.loading.counter_random import uniform
from fusionseg.data.loading.purposes import Purpose
from fusionseg.data.loading.spatial.rules import SpatialRules

SHEARS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
"""The order of the six shears: the axis that is displaced, and the axis along which the displacement grows."""


@dataclass(frozen=True, kw_only=True)
class SpatialChanges:
    """The spatial changes of B samples."""

    flip: NDArray[np.bool_]
    """(B, 3), True for an axis that is flipped."""
    quarter_turns: NDArray[np.int64]
    """(B, 3), turns by 90 degrees about each axis, 0 to 3. At most one axis has any."""
    angles: NDArray[np.float64]
    """(B, 3) angles of rotation about the axes in radians."""
    zoom: NDArray[np.float64]
    """(B, 3) factor along each axis; above 1 things look larger."""
    shear: NDArray[np.float64]
    """(B, 6) tangents of the angles of shear, in the order of `SHEARS`."""
    elastic: NDArray[np.float64]
    """(B,) standard deviation of the displacements at the coarse grid's points, in voxels."""
    elastic_key: NDArray[np.int64]
    """(B,) 32-bit keys of the displacements."""

    @property
    def warped(self) -> NDArray[np.bool_]:
        """(B,) True for a patch that is interpolated instead of cut out."""
        moved = (self.angles != 0).any(axis=1) | (self.zoom != 1).any(axis=1) | (self.shear != 0).any(axis=1)
        warped: NDArray[np.bool_] = moved | (self.elastic != 0)
        return warped


class SpatialPlan:
    """Draws the spatial changes of samples.

    Args:
        augment: the section `augment`.
        rules: the axes that may be changed.
        seed: of the run.
    """

    def __init__(self, augment: AugmentConfig, rules: SpatialRules, seed: int) -> None:
        self.augment = augment
        self.rules = rules
        self.seed = seed
        flips = augment.flips
        self._flip_prob = np.array([flips.prob if axis in flips.axes else 0.0 for axis in AXES])
        self._moved = rules.moved
        # A rotation about one axis moves the other two. A shear displaces one axis, and grows along another.
        about = ~self._moved if rules.through_plane is not None else np.ones(3, np.bool_)
        limits = (0.0, 0.0, 0.0) if augment.rotate is None else augment.rotate.limits
        self._angle_limits = np.where(about, np.deg2rad(limits), 0.0)
        self._sheared = np.array([self._moved[first] and self._moved[second] for first, second in SHEARS])

    def draw(self, step: int, indices: Sequence[int]) -> SpatialChanges:
        """Draw the changes of samples of a step.

        Args:
            step: of the optimizer.
            indices: of the samples within the global batch.
        """
        augment, seed, count = self.augment, self.seed, len(indices)
        angles, zoom, shear = np.zeros((count, 3)), np.ones((count, 3)), np.zeros((count, 6))
        flip, turns = np.zeros((count, 3), np.bool_), np.zeros((count, 3), np.int64)
        elastic, elastic_key = np.zeros(count), np.zeros(count, np.int64)
        for i, k in enumerate(indices):
            if self._flip_prob.any():
                flip[i] = uniform(seed, step, k, Purpose.FLIP, 3) < self._flip_prob
            if augment.rotate90 is not None:
                hit, plane, turn = uniform(seed, step, k, Purpose.ROTATE90, 3)
                if hit < augment.rotate90.prob:
                    turns[i, self.rules.turn_axes[int(plane * len(self.rules.turn_axes))]] = 1 + int(turn * 3)
            if augment.rotate is not None:
                draw = uniform(seed, step, k, Purpose.ROTATE, 4)
                if draw[0] < augment.rotate.prob:
                    angles[i] = self._angle_limits * (2 * draw[1:] - 1)
            if augment.scale is not None:
                draw = uniform(seed, step, k, Purpose.ZOOM, 4)
                if draw[0] < augment.scale.prob:
                    middle, half = augment.scale.span
                    values = draw[1:] if augment.scale.per_axis else draw[1:2]
                    zoom[i] = np.where(self._moved, middle + half * (2 * values - 1), 1.0)
            if augment.shear is not None:
                draw = uniform(seed, step, k, Purpose.SHEAR, 7)
                if draw[0] < augment.shear.prob:
                    shear[i] = np.tan(np.deg2rad(augment.shear.degrees) * (2 * draw[1:] - 1)) * self._sheared
            if augment.elastic is not None:
                hit, key = uniform(seed, step, k, Purpose.ELASTIC, 2)
                elastic[i] = augment.elastic.magnitude if hit < augment.elastic.prob else 0.0
                elastic_key[i] = int(key * 2**32)
        return SpatialChanges(
            flip=flip,
            quarter_turns=turns,
            angles=angles,
            zoom=zoom,
            shear=shear,
            elastic=elastic,
            elastic_key=elastic_key,
        )
