"""The axes that the spatial augmentations of a run may change: a function of configuration and voxel sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.data.spatial import AXES
from fusionseg.utils.errors import UserError

ANISOTROPY = 3
"""A ratio of voxel sizes or patch sides above this one makes an axis the through-plane axis (nnU-Net's threshold)."""
EQUAL = 0.01
"""Relative difference of voxel sizes up to which a quarter turn keeps the shape of structures."""


@dataclass(frozen=True)
class SpatialRules:
    """The axes that spatial augmentations may change."""

    through_plane: int | None = None
    """The axis that rotation, zoom, shear and deformation leave alone; None: they change all axes."""
    turn_axes: tuple[int, ...] = (0, 1, 2)
    """The axes about which a patch can be turned by 90 degrees."""

    @property
    def moved(self) -> NDArray[np.bool_]:
        """(3,), True for an axis that may be changed."""
        return np.arange(3) != (-1 if self.through_plane is None else self.through_plane)

    def describe(self, augment: AugmentConfig) -> list[str]:
        """List the restrictions that follow from the data, for the log.

        Args:
            augment: the section `augment`.
        """
        lines = []
        if self.through_plane is not None and augment.axes in ("auto", "in_plane"):
            lines.append(f"augment.axes: {augment.axes} leaves the {AXES[self.through_plane]} axis alone")
        if augment.rotate90 is not None and len(self.turn_axes) < 3:
            about = ", ".join(AXES[axis] for axis in self.turn_axes)
            lines.append(f"augment.rotate90: turns about {about} only; other planes are excluded or have unequal sides")
        return lines


ALL_AXES = SpatialRules()


def spatial_rules(
    augment: AugmentConfig,
    patch: Sequence[int],
    spacings: Sequence[Sequence[float]],
    stack_axis: int | None = None,
) -> SpatialRules:
    """Decide which axes the spatial augmentations may change.

    Args:
        augment: the section `augment`.
        patch: size in voxels.
        spacings: voxel sizes in mm of the training cases, as far as they are known.
        stack_axis: the axis along which a 2D network stacks its slices; None for a 3D network.

    Raises:
        UserError: there is no through-plane axis, or no plane for turns by 90 degrees.
    """
    sizes = np.median(np.array(spacings, float).reshape(-1, 3), axis=0) if len(spacings) else np.ones(3)
    shown = f"patch {'x'.join(map(str, patch))}, voxels {' x '.join(f'{size:.3g}' for size in sizes)} mm"
    through_plane = None
    if isinstance(augment.axes, tuple):
        through_plane = next(axis for axis, name in enumerate(AXES) if name not in augment.axes)
    elif augment.axes != "all":
        least = ANISOTROPY if augment.axes == "auto" else 1 + EQUAL
        through_plane = _through_plane(patch, sizes, stack_axis, least)
        if through_plane is None and augment.axes == "in_plane" and len(spacings):
            raise UserError(
                f"augment.axes: in_plane, but no axis is the through-plane axis ({shown}); state the plane: [x, y]"
            )
    if augment.rotate90 is None:
        return SpatialRules(through_plane)
    allowed = range(3) if through_plane is None else [through_plane]
    turn_axes = tuple(axis for axis in allowed if _can_turn(axis, patch, spacings))
    if not turn_axes:
        raise UserError(
            f"augment.rotate90: no plane that it may turn in has equal patch sides and equal voxel sizes ({shown});"
            " change data.patch or data.spacing, or remove it"
        )
    return SpatialRules(through_plane, turn_axes)


def _through_plane(
    patch: Sequence[int], sizes: NDArray[np.float64], stack_axis: int | None, least: float
) -> int | None:
    """The axis of a stack of slices; None if no axis stands out by a ratio of more than `least`."""
    if stack_axis is not None:
        return stack_axis
    thin = [axis for axis in range(3) if patch[axis] == 1]
    if len(thin) == 1:
        return thin[0]
    for values in (sizes, 1 / np.array(patch, float)):
        order = np.argsort(values)
        if values[order[2]] > least * values[order[1]]:
            return int(order[2])
    return None


def _can_turn(axis: int, patch: Sequence[int], spacings: Sequence[Sequence[float]]) -> bool:
    a, b = (other for other in range(3) if other != axis)
    return patch[a] == patch[b] and all(abs(one[a] - one[b]) <= EQUAL * one[a] for one in spacings)
