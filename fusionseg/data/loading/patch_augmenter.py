"""Crops and augmentation on the device: from planned samples and the cache to a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.data.labels.mirroring import LEFT_RIGHT
from fusionseg.data.loading.augmentations import open_augmentations
from fusionseg.data.loading.counter_random import counter_normal
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.intensity.section import ImageLayout
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.spatial.geometry import Matrix, patch_to_volume, turned
from fusionseg.data.loading.spatial.rules import ALL_AXES, SpatialRules
from fusionseg.data.loading.spatial.slices import warp_slices
from fusionseg.data.loading.transfer import send
from fusionseg.observability.ranges import annotate


class PatchAugmenter:
    """Cut planned samples out of the cache and augment them.

    A plain patch is a strided copy from the volume, also if it is flipped or turned by 90 degrees. Its position comes
    from the plan, which lies in host memory, so nothing is indexed on the device. A rotated, zoomed, sheared or
    deformed patch is interpolated once, from the volume and not from a crop of it, so its corners show the image
    wherever the volume continues. Then the other augmentations change the batch on the training device.

    Args:
        cache: the prepared cases.
        augment: the section `augment`.
        patch: size in voxels.
        device: the training device.
        rules: the axes that spatial augmentations may change, as the plan has them.
        mirrored: for each class, the class that it becomes by a left-right flip; empty if none changes.

    Raises:
        UserError: an augmentation of the user's own cannot be made.
    """

    def __init__(
        self,
        cache: DeviceCache,
        augment: AugmentConfig,
        patch: tuple[int, int, int],
        device: torch.device,
        rules: SpatialRules = ALL_AXES,
        mirrored: Sequence[int] = (),
    ) -> None:
        self.cache = cache
        self.augment = augment
        self.patch = patch
        self.device = device
        self.rules = rules
        self._mirrored = None
        if list(mirrored) != list(range(len(mirrored))):
            table = torch.arange(256)  # values that are no class, such as the ignored one, stay
            table[: len(mirrored)] = torch.tensor(mirrored)
            self._mirrored = table.to(device)
        self._augmentations = open_augmentations(augment, ImageLayout(cache.channels, rules.through_plane))

    @torch.no_grad()
    def __call__(self, plan: Samples) -> tuple[Tensor, Tensor]:
        """Make a micro-batch.

        Args:
            plan: its samples.

        Returns:
            On the training device: image (B, C, X, Y, Z) float32, label (B, 1, X, Y, Z) int64.
        """
        with annotate("augment"):
            count, cache = len(plan.case_index), self.cache
            # From a host cache to a GPU, the batch lies in pinned memory: its transfer is asynchronous.
            pin = cache.device.type == "cpu" and self.device.type == "cuda"
            image = torch.empty((count, cache.channels, *self.patch), device=cache.device, pin_memory=pin)
            label = torch.empty((count, *self.patch), dtype=torch.uint8, device=cache.device, pin_memory=pin)
            for i, warped in enumerate(plan.warped):
                make = self._warp if warped else self._cut
                make(plan, i, image[i], label[i])
            if cache.device != self.device:
                image = image.to(self.device, non_blocking=True)
                label = label.to(self.device, non_blocking=True)
            label = label.long().unsqueeze(1)
            if self._mirrored is not None:
                for i in np.flatnonzero(plan.flip[:, LEFT_RIGHT]).tolist():
                    label[i] = self._mirrored.take(label[i])
            for one in self._augmentations:
                image, label = one.apply(image, label, plan.draws[one.key], self._send_to_training_device)
            return image, label

    def _cut(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Copy the part of the volume inside the patch; the rest of the patch is background."""
        volume, mask = self.cache.volume(int(plan.case_index[i]))
        first = plan.origin[i]
        start = np.maximum(first, 0)
        stop = np.minimum(first + self.patch, mask.shape)
        flips = [axis for axis in range(3) if plan.flip[i, axis]]
        if plan.quarter_turns[i].any():
            # Write to a view of the patch with the axes of the volume. Only flips are left then.
            order = turned(plan.flip[i], plan.quarter_turns[i])
            axes = [int(axis) for axis in np.abs(order).argmax(axis=1)]
            image, label = image.permute(0, *(axis + 1 for axis in axes)), label.permute(axes)
            flips = [axis for axis in range(3) if order[axis].min() < 0]
        source = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        target = tuple(
            slice(size - int(b), size - int(a)) if axis in flips else slice(int(a), int(b))
            for axis, (a, b, size) in enumerate(zip(start - first, stop - first, self.patch, strict=True))
        )
        if tuple(stop - start) != self.patch:
            image.copy_(self.cache.background(int(plan.case_index[i])).expand_as(image))
            label.zero_()
        part, part_label = volume[(slice(None), *source)], mask[source]
        if flips:  # flipping nothing would still copy
            part, part_label = part.flip([axis + 1 for axis in flips]), part_label.flip(flips)
        image[(slice(None), *target)] = part
        label[target] = part_label

    def _warp(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Interpolate the patch: linear for the image, nearest for the label; outside the volume is background."""
        case_index = int(plan.case_index[i])
        volume, mask = self.cache.volume(case_index)
        patch = np.array(self.patch)
        matrix = patch_to_volume(
            plan.angles[i],
            plan.zoom[i],
            plan.flip[i],
            np.array(self.cache.records[case_index].spacing),
            shear=plan.shear[i],
            quarter_turns=plan.quarter_turns[i],
        )
        centre = plan.origin[i] + (patch - 1) / 2
        # Only the box that the patch can reach is converted and interpolated.
        reach = np.abs(matrix) @ (patch / 2) + 4 * plan.elastic[i] + 2
        low = np.clip(np.floor(centre - reach), 0, np.array(mask.shape) - 1).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, low + 1, mask.shape).astype(int)
        background = self.cache.background(case_index)
        if self.rules.through_plane is not None:
            self._warp_slices(plan, i, image, label, matrix, low, high)
            return
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        # grid_sample gives 0 outside the box; with the background subtracted, 0 is the background.
        part = volume[(slice(None), *box)].to(torch.float32, copy=True).sub_(background)
        size = high - low
        grid = self._grid(2 / size[:, None] * matrix, (2 * (centre - low) + 1) / size - 1, patch)
        if plan.elastic[i]:
            grid += self._displacement(plan, i, patch) * self._send((2 / size[::-1]).astype(np.float32))
        image.copy_(_interpolate(part, grid, "bilinear").add_(background))
        part_label = mask[box]
        if part_label.device.type == "cpu" and not part_label.any():  # on a GPU, the question would wait for it
            label.zero_()
            return
        label.copy_(_interpolate(part_label.float()[None], grid, "nearest")[0])

    def _warp_slices(
        self,
        plan: Samples,
        i: int,
        image: Tensor,
        label: Tensor,
        matrix: Matrix,
        low: NDArray[np.int64],
        high: NDArray[np.int64],
    ) -> None:
        """Interpolate the patch in the plane of its slices; the through-plane axis is copied.

        Args:
            plan: the samples.
            i: index of the sample.
            image: (C, X, Y, Z), written to.
            label: (X, Y, Z), written to.
            matrix: `patch_to_volume`.
            low: (3,), first voxel of the box that the patch can reach.
            high: (3,), last voxel of the box plus one.
        """
        stack = self.rules.through_plane
        assert stack is not None
        case_index = int(plan.case_index[i])
        volume, mask = self.cache.volume(case_index)
        background = self.cache.background(case_index)
        plane, patch = [axis for axis in range(3) if axis != stack], np.array(self.patch)
        first, slices = int(plan.origin[i, stack]), self.patch[stack]
        start, stop = max(first, 0), min(first + slices, mask.shape[stack])
        inside = slice(start - first, stop - first)
        if stop - start < slices:
            image.copy_(background.expand_as(image))
            label.zero_()
        box = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
        box[stack] = slice(start, stop)
        centre = (plan.origin[i] + (patch - 1) / 2 - low)[plane]
        positions = self._grid(matrix[np.ix_(plane, plane)], centre, patch[plane])
        if plan.elastic[i]:
            positions += self._displacement(plan, i, patch[plane])
        warped, warped_label = warp_slices(
            volume[(slice(None), *box)].movedim(stack + 1, -1),
            mask[tuple(box)].movedim(stack, -1),
            positions[0],
            background,
        )
        if plan.flip[i, stack]:
            inside = slice(slices - inside.stop, slices - inside.start)
            warped, warped_label = warped.flip(-1), warped_label.flip(-1)
        image.movedim(stack + 1, -1)[..., inside] = warped
        label.movedim(stack, -1)[..., inside] = warped_label

    def _grid(self, matrix: Matrix, centre: NDArray[np.float64], patch: NDArray[np.int64]) -> Tensor:
        """Positions (1, X, Y, Z, 3), as grid_sample takes them: last axis first, centre + matrix @ offset in the patch.

        The result is that of `affine_grid`, as a sum of one term for each axis instead of a product of large matrices.

        Args:
            matrix: (D, D), D the number of dimensions.
            centre: (D,).
            patch: (D,), size in voxels.
        """
        total: Tensor | None = None
        for axis, size in enumerate(patch):
            offset = np.arange(size) - (size - 1) / 2
            values = offset[:, None] * matrix[::-1, axis] + (centre[::-1] if axis == 0 else 0)
            term = self._send(values.astype(np.float32))
            total = term if total is None else total.unsqueeze(-2) + term
        assert total is not None
        return total[None]

    def _displacement(self, plan: Samples, i: int, patch: NDArray[np.int64]) -> Tensor:
        """The displacements in voxels: (1, X, Y, Z, 3), last axis first; without the through-plane axis (1, X, Y, 2).

        Args:
            plan: the samples.
            i: index of the sample.
            patch: (D,), size in voxels.
        """
        assert self.augment.elastic is not None
        dimensions = len(patch)
        coarse = [math.ceil(size / self.augment.elastic.spacing) + 1 for size in patch]
        count = dimensions * math.prod(coarse)
        normal = counter_normal(self._send(plan.elastic_key[i : i + 1]), count).view(1, dimensions, *coarse)
        mode = "trilinear" if dimensions == 3 else "bilinear"
        smooth = F.interpolate(normal, tuple(int(size) for size in patch), mode=mode, align_corners=True)
        return smooth.clamp_(-4, 4).mul_(float(plan.elastic[i])).movedim(1, -1)

    def _send(self, values: NDArray[Any]) -> Tensor:
        return send(values, self.cache.device)

    def _send_to_training_device(self, values: NDArray[Any]) -> Tensor:
        return send(values, self.device)


def _interpolate(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Interpolate a volume at the positions of a grid.

    Args:
        volume: (C, ...).
        grid: (1, X, Y, Z, 3), last axis first.
        mode: "bilinear", which is linear along each axis, or "nearest".

    Returns:
        (C, X, Y, Z).
    """
    # On a CPU, grid_sample is parallel over the batch only, so the slabs of the patch become a batch.
    parallel = volume.device.type == "cpu" and torch.get_num_threads() > 1
    slabs = next(n for n in (16, 8, 4, 2, 1) if grid.shape[1] % n == 0) if parallel else 1
    grids = grid.view(slabs, grid.shape[1] // slabs, *grid.shape[2:])
    out = F.grid_sample(volume.expand(slabs, *volume.shape), grids, mode=mode, align_corners=False)
    return out.transpose(0, 1).reshape(len(volume), *grid.shape[1:-1])
