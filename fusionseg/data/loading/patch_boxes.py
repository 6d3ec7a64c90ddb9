"""The part of a volume that a patch is made from, as a pure function of the planned sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.spatial.displacement import LARGEST
from fusionseg.data.loading.spatial.geometry import Matrix, patch_to_volume
from fusionseg.data.preprocessing.record import PreparedCase


@dataclass(frozen=True)
class PatchBox:
    """The voxels that a patch can reach."""

    low: NDArray[np.int64]
    """(3,), the first voxel."""
    high: NDArray[np.int64]
    """(3,), the last voxel plus one."""
    matrix: Matrix | None
    """(3, 3) from an offset in the patch to the offset in the volume; None for a patch that is copied."""

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of a volume (X, Y, Z)."""
        x, y, z = (slice(int(a), int(b)) for a, b in zip(self.low, self.high, strict=True))
        return x, y, z


@dataclass(frozen=True)
class PatchReach:
    """The voxels that an interpolated patch can reach. They may lie outside of the volume."""

    low: NDArray[np.float64]
    """(3,), the first voxel, a whole number."""
    high: NDArray[np.float64]
    """(3,), the last voxel plus one, a whole number."""
    matrix: Matrix
    """(3, 3) from an offset in the patch to the offset in the volume."""
    centre: NDArray[np.float64]
    """(3,) of the patch, in voxels of the volume."""


def patch_reach(plan: Samples, i: int, record: PreparedCase, patch: tuple[int, int, int]) -> PatchReach:
    """The reach of a sample that is rotated, zoomed, sheared, flipped or deformed.

    Args:
        plan: the samples of a micro-batch.
        i: index of the sample among them.
        record: of its case.
        patch: size in voxels.
    """
    matrix = patch_to_volume(
        plan.angles[i],
        plan.zoom[i],
        plan.flip[i],
        np.array(record.spacing),
        shear=plan.shear[i],
        quarter_turns=plan.quarter_turns[i],
    )
    size = np.array(patch)
    centre = plan.origin[i] + (size - 1) / 2
    reach = np.abs(matrix) @ (size / 2) + LARGEST * plan.elastic[i] + 2
    return PatchReach(np.floor(centre - reach), np.ceil(centre + reach) + 1, matrix, centre)


def patch_box(
    plan: Samples,
    i: int,
    record: PreparedCase,
    patch: tuple[int, int, int],
    through_plane: int | None,
    *,
    warped: bool,
) -> PatchBox:
    """The box of a sample.

    Args:
        plan: the samples of a micro-batch.
        i: index of the sample among them.
        record: of its case.
        patch: size in voxels.
        through_plane: the axis along which a warped patch is copied; None if there is none.
        warped: whether the patch is interpolated; otherwise it is copied.
    """
    shape = np.array(record.shape)
    start, stop = np.maximum(plan.origin[i], 0), np.minimum(plan.origin[i] + patch, shape)
    if not warped:
        return PatchBox(start, stop, None)
    reach = patch_reach(plan, i, record, patch)
    low = np.clip(reach.low, 0, shape - 1).astype(int)
    high = np.clip(reach.high, low + 1, shape).astype(int)
    if through_plane is not None:
        low[through_plane], high[through_plane] = start[through_plane], stop[through_plane]
    return PatchBox(low, high, reach.matrix)
