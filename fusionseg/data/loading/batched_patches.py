"""Cutting and warping of all patches of a micro-batch at once, by a number of operators that no draw changes.

On a GPU each operator costs the host more time than a small patch costs the device, so all samples go through the same
operators. On a CPU an operator costs little, and only the samples that are warped are interpolated (`patch_augmenter`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.spatial import ElasticConfig
from fusionseg.data.loading.caches.flat_cache import FlatCache
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.spatial.displacement import LARGEST, displacement_of_axes
from fusionseg.data.loading.spatial.geometry import Matrix, patch_to_volume, turned
from fusionseg.data.loading.spatial.rules import SpatialRules

_OUTSIDE = -(2**58)
"""Term of a position outside of the volume along an axis: the sum with any other terms is negative."""


class BatchedPatches:
    """Cut and warp all patches of a micro-batch.

    A box of each volume is read by its positions in the cache. Where no patch is warped, the boxes are the patches,
    flipped and turned. Otherwise all boxes have the size of the largest one, and are interpolated; a patch that is not
    warped is then the beginning of its box, to the last bit.

    Args:
        cache: the prepared cases.
        patch: size in voxels.
        rules: the axes that spatial augmentations may change, as the plan has them.
        elastic: the section `augment.elastic`.
    """

    def __init__(
        self, cache: FlatCache, patch: tuple[int, int, int], rules: SpatialRules, elastic: ElasticConfig | None
    ) -> None:
        self.cache = cache
        self.patch = patch
        self.rules = rules
        self.elastic = elastic

    def arrays(self, plan: Samples) -> dict[str, NDArray[Any]]:
        """Compute on the host what `make` needs on the device of the cache.

        Args:
            plan: the samples of a micro-batch.
        """
        boxes = [self._box(plan, i) for i in range(len(plan.case_index))]
        size = np.max([box.size for box in boxes], axis=0)
        first_voxel = self.cache.first_voxels(plan.case_index)
        found: dict[str, NDArray[Any]] = {"background": plan.case_index.reshape(-1, 1, 1, 1)}
        for axis in range(3):
            terms = np.stack([box.positions(axis, int(size[axis])) for box in boxes])
            found[f"position_{axis}"] = terms + (first_voxel[:, None] if axis == 0 else 0)
        if not plan.warped.any():
            return found
        scale = 2 / size
        for axis, length in enumerate(self.patch):
            offset = np.arange(length) - (length - 1) / 2
            # grid_sample takes the last axis first.
            terms = np.stack([offset[:, None] * (scale[:, None] * box.matrix)[::-1, axis] for box in boxes])
            if axis == 0:
                terms += np.stack([(scale * (box.centre + 0.5) - 1)[::-1] for box in boxes])[:, None]
            found[f"grid_{axis}"] = terms.astype(np.float32)
        if not plan.warped.all():
            found["warped"] = plan.warped.reshape(-1, 1, 1, 1, 1)
        if plan.elastic.any():
            assert self.elastic is not None
            moves = [
                displacement_of_axes(int(key), self.patch, self.elastic.spacing, self.rules.through_plane)
                for key in plan.elastic_key
            ]
            voxels = (plan.elastic[:, None] * scale[::-1]).reshape(-1, 3, 1, 1, 1)  # a voxel, as grid_sample takes it
            found["displacement"] = (np.stack(moves) * voxels).astype(np.float32)
            found["largest"] = (LARGEST * voxels).astype(np.float32)
            found["smallest"] = -found["largest"]
        return found

    def make(self, sent: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Make the patches.

        Args:
            sent: `arrays` on the device of the cache.

        Returns:
            Image (B, C, X, Y, Z) float32, contiguous; label (B, 1, X, Y, Z) int64.
        """
        index = _sum_of_axes([sent[f"position_{axis}"] for axis in range(3)])
        torch.maximum(index, sent["background"], out=index)
        flat, shape, count = index.view(-1), index.shape[1:], len(index)
        image = self.cache.image.index_select(1, flat).view(-1, count, *shape).transpose(0, 1)
        image = image.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
        label = self.cache.label.index_select(0, flat).view(count, 1, *shape)
        if "grid_0" not in sent:
            return image, label.long()
        grid = _sum_of_axes([sent[f"grid_{axis}"] for axis in range(3)])
        if "displacement" in sent:
            move = F.interpolate(sent["displacement"], self.patch, mode="trilinear", align_corners=True)
            torch.clamp(move, sent["smallest"], sent["largest"], out=move)
            grid += move.movedim(1, -1)
        # The border of a box is background, or lies beyond what the patch can reach.
        warped, warped_label = (
            F.grid_sample(box, grid, mode=mode, padding_mode="border", align_corners=False)
            for box, mode in ((image, "bilinear"), (label.float(), "nearest"))
        )
        if "warped" in sent:
            x, y, z = self.patch
            torch.where(sent["warped"], warped, image[:, :, :x, :y, :z], out=warped)
        return warped, warped_label.long()

    def _box(self, plan: Samples, i: int) -> _Box:
        """The part of the volume that is read for a sample."""
        case_index = int(plan.case_index[i])
        record = self.cache.records[case_index]
        patch, shape = np.array(self.patch), np.array(record.shape)
        strides = np.array([shape[1] * shape[2], shape[2], 1])
        if not plan.warped[i]:
            order = turned(plan.flip[i], plan.quarter_turns[i])
            axes = np.abs(order).argmax(axis=0)  # of the volume, for each axis of the patch
            signs = order.sum(axis=0).astype(int)
            first = np.where(signs > 0, plan.origin[i][axes], plan.origin[i][axes] + patch - 1)
            return _Box(first, signs, patch, shape[axes], strides[axes], np.eye(3), (patch - 1) / 2)
        matrix = patch_to_volume(
            plan.angles[i],
            plan.zoom[i],
            plan.flip[i],
            np.array(record.spacing),
            shear=plan.shear[i],
            quarter_turns=plan.quarter_turns[i],
        )
        centre = plan.origin[i] + (patch - 1) / 2
        reach = np.abs(matrix) @ (patch / 2) + LARGEST * plan.elastic[i] + 2
        # One voxel outside of the volume is enough: beyond the box, grid_sample takes the values of its border.
        low = np.clip(np.floor(centre - reach), -1, shape).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, low + 1, shape + 1).astype(int)
        size = np.maximum(high - low, patch)  # as long as a patch, so that the batch may hold plain patches
        return _Box(low, np.ones(3, int), size, shape, strides, matrix, centre - low)


class _Box:
    """The part of a volume that is read for a sample, with the axes of the volume or of a turned patch.

    Args:
        first: (3,) voxel of the volume at the first position along each axis.
        signs: (3,) direction in the volume, 1 or -1.
        size: (3,) voxels that are needed.
        shape: (3,) of the volume, along these axes.
        strides: (3,) distance of neighbours in the cache.
        matrix: (3, 3) from an offset in the patch to the offset in the box.
        centre: (3,) of the patch, in voxels of the box.
    """

    def __init__(
        self,
        first: NDArray[np.int64],
        signs: NDArray[np.int64],
        size: NDArray[np.int64],
        shape: NDArray[np.int64],
        strides: NDArray[np.int64],
        matrix: Matrix,
        centre: NDArray[np.float64],
    ) -> None:
        self.first = first
        self.signs = signs
        self.size = size
        self.shape = shape
        self.strides = strides
        self.matrix = matrix
        self.centre = centre

    def positions(self, axis: int, count: int) -> NDArray[np.int64]:
        """The terms (count,) of an axis in the positions of voxels in the cache, from the first voxel of the case."""
        voxel = self.first[axis] + self.signs[axis] * np.arange(count)
        inside = (voxel >= 0) & (voxel < self.shape[axis])
        return np.where(inside, voxel * self.strides[axis], _OUTSIDE)


def _sum_of_axes(terms: list[Tensor]) -> Tensor:
    """The sum of one term for each axis: (B, X, ...), (B, Y, ...) and (B, Z, ...) give (B, X, Y, Z, ...)."""
    x, y, z = terms
    return (x[:, :, None] + y[:, None])[:, :, :, None] + z[:, None, None]
