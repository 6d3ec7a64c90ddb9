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
from fusionseg.data.loading.patch_boxes import patch_reach
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.spatial.displacement import LARGEST, displacement_of_axes
from fusionseg.data.loading.spatial.geometry import Matrix, turned
from fusionseg.data.loading.spatial.rules import SpatialRules


class BatchedPatches:
    """Cut and warp all patches of a micro-batch.

    A box of each volume is read by its positions in the cache. Where no patch is warped, the boxes are the patches,
    flipped and turned. Otherwise all boxes have the size of the largest one, and are interpolated. A patch that is not
    warped is then interpolated at the centres of its voxels, and keeps its values but for rounding.

    The host computes what depends on one or two axes, so that the device needs one operator for the positions and one
    for the grid.

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

    def arrays(
        self, plan: Samples, factor: NDArray[np.float32] | float = 1, offset: NDArray[np.float32] | float = 0
    ) -> dict[str, NDArray[Any]]:
        """Compute on the host what `make` needs on the device of the cache.

        Args:
            plan: the samples of a micro-batch.
            factor: multiplies the values of each channel, (B, C or 1).
            offset: is added to them then, (B, C or 1).
        """
        boxes = [self._box(plan, i) for i in range(len(plan.case_index))]
        size = np.max([box.size for box in boxes], axis=0)
        warped = bool(plan.warped.any())
        found = self._positions(plan, boxes, size)
        inside = found.pop("inside")
        found["inside"] = inside.astype(np.float32 if warped else np.int64)
        background = self.cache.background_values[plan.case_index]
        shape = (*background.shape, 1, 1, 1)
        factors, offsets = (np.broadcast_to(values, background.shape).reshape(shape) for values in (factor, offset))
        found["factor"] = np.where(inside, factors, 0).astype(np.float32)
        found["offset"] = np.where(inside, offsets, background.reshape(shape) * factors + offsets).astype(np.float32)
        if warped:
            found |= self._grid(boxes, size)
        if plan.elastic.any():
            assert self.elastic is not None
            moves = np.stack(
                [
                    displacement_of_axes(int(key), self.patch, self.elastic.spacing, self.rules.through_plane)
                    for key in plan.elastic_key
                ]
            )
            # A voxel, as grid_sample takes it.
            voxels = (plan.elastic[:, None] * (2 / size)[::-1]).reshape(-1, 3, 1, 1, 1)
            found["displacement"] = (moves * voxels).astype(np.float32)
            if np.abs(moves[plan.elastic != 0]).max() > LARGEST:  # else no value in between is larger
                found["largest"] = (LARGEST * voxels).astype(np.float32)
                found["smallest"] = -found["largest"]
        return found

    def _positions(self, plan: Samples, boxes: list[_Box], size: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The terms of the positions of voxels in the cache: `row` + `row_inside` * `line`.

        A row outside of the volume has the position of the background, and is not moved along the line. A voxel of the
        line outside of the volume has the position of another voxel; its values are replaced.
        """
        (x, x_inside), (y, y_inside), (line, inside) = (
            [np.stack(part) for part in zip(*(box.positions(axis, int(size[axis])) for box in boxes), strict=True)]
            for axis in range(3)
        )
        first = self.cache.first_voxels(plan.case_index).reshape(-1, 1, 1)
        row_inside = x_inside[:, :, None] & y_inside[:, None]
        row = np.where(row_inside, first + x[:, :, None] + y[:, None], plan.case_index.reshape(-1, 1, 1))
        return {
            "row": row[..., None],
            "row_inside": row_inside[..., None].astype(np.int64),
            "line": line[:, None, None],
            "inside": inside[:, None, None, None],
        }

    def _grid(self, boxes: list[_Box], size: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """The terms of the grid, last axis first: `grid_row` (B, X, Y, 1, 3) + `grid_line` (B, 1, 1, Z, 3)."""
        scale = 2 / size
        terms = []
        for axis, length in enumerate(self.patch):
            offset = np.arange(length) - (length - 1) / 2
            term = np.stack([offset[:, None] * (scale[:, None] * box.matrix)[::-1, axis] for box in boxes])
            # Each coordinate gets its centre from its own axis: without a warp, no other axis adds to it then, and it
            # is rounded once.
            own = 2 - axis
            term[:, :, own] += np.stack([scale[axis] * (box.centre[axis] + 0.5) - 1 for box in boxes])[:, None]
            terms.append(term)
        x, y, z = terms
        row = x[:, :, None] + y[:, None]
        return {"grid_row": row[:, :, :, None].astype(np.float32), "grid_line": z[:, None, None].astype(np.float32)}

    def make(self, sent: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Make the patches.

        Args:
            sent: `arrays` on the device of the cache.

        Returns:
            Image (B, C, X, Y, Z) float32, contiguous; label (B, 1, X, Y, Z) int64.
        """
        index = torch.addcmul(sent["row"], sent["row_inside"], sent["line"])
        flat, shape, count = index.view(-1), index.shape[1:], len(index)
        values = self.cache.image.index_select(1, flat).view(-1, count, *shape).transpose(0, 1)
        image = torch.empty(values.shape, device=values.device)
        torch.addcmul(sent["offset"], values, sent["factor"], out=image)
        label = self.cache.label.index_select(0, flat).view(count, 1, *shape) * sent["inside"]
        if "grid_row" not in sent:
            return image, label
        grid = sent["grid_row"] + sent["grid_line"]
        if "displacement" in sent:
            move = F.interpolate(sent["displacement"], self.patch, mode="trilinear", align_corners=True)
            if "largest" in sent:
                torch.clamp(move, sent["smallest"], sent["largest"], out=move)
            grid += move.movedim(1, -1)
        # The border of a box is background, or lies beyond what the patch can reach.
        warped, warped_label = (
            F.grid_sample(box, grid, mode=mode, padding_mode="border", align_corners=False)
            for box, mode in ((image, "bilinear"), (label, "nearest"))
        )
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
        reach = patch_reach(plan, i, record, self.patch)
        # One voxel outside of the volume is enough: beyond the box, grid_sample takes the values of its border.
        low = np.clip(reach.low, -1, shape).astype(int)
        high = np.clip(reach.high, low + 1, shape + 1).astype(int)
        size = np.maximum(high - low, patch)  # as long as a patch, so that the batch may hold plain patches
        return _Box(low, np.ones(3, int), size, shape, strides, reach.matrix, reach.centre - low)


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

    def positions(self, axis: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The terms (count,) of an axis in the positions of voxels in the cache, from the first voxel of the case.

        Returns:
            The terms, 0 outside of the volume, and True for those inside of it.
        """
        voxel = self.first[axis] + self.signs[axis] * np.arange(count)
        inside = (voxel >= 0) & (voxel < self.shape[axis])
        return np.where(inside, voxel * self.strides[axis], 0), inside
