"""Crops and augmentation on the training device: from planned samples and the cache to a batch."""

from __future__ import annotations

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
from fusionseg.data.loading.batched_intensities import BatchedIntensities
from fusionseg.data.loading.batched_patches import BatchedPatches
from fusionseg.data.loading.caches.case_cache import CaseCache
from fusionseg.data.loading.caches.flat_cache import FlatCache
from fusionseg.data.loading.intensity.section import ImageLayout
from fusionseg.data.loading.patch_boxes import PatchBox, patch_box
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.spatial.displacement import LARGEST, coarse_displacement
from fusionseg.data.loading.spatial.geometry import Matrix, turned
from fusionseg.data.loading.spatial.rules import ALL_AXES, SpatialRules
from fusionseg.data.loading.spatial.slices import warp_slices
from fusionseg.data.loading.transfer import send, send_together
from fusionseg.observability.ranges import annotate


class PatchAugmenter:
    """Cut planned samples out of the cache and augment them.

    A plain patch is a copy from the volume, also if it is flipped or turned by 90 degrees. A rotated, zoomed, sheared
    or deformed patch is interpolated once, from the volume and not from a crop of it, so its corners show the image
    wherever the volume continues. Then the other augmentations change the batch on the training device.

    On a CPU each sample goes through the operators that it needs. On a GPU all samples of a micro-batch go through the
    same operators, and their numbers are sent by one transfer: there the number of operators limits the speed. The
    results are equal but for rounding.

    Args:
        cache: the prepared cases.
        augment: the section `augment`.
        patch: size in voxels.
        device: the training device.
        rules: the axes that spatial augmentations may change, as the plan has them.
        mirrored: for each class, the class that it becomes by a left-right flip; empty if none changes.
        batched: send all samples through the same operators, as on a GPU; None: on a GPU. From a cache on the host,
            the patches are cut there for a GPU too.

    Raises:
        UserError: an augmentation of the user's own cannot be made.
    """

    def __init__(
        self,
        cache: CaseCache,
        augment: AugmentConfig,
        patch: tuple[int, int, int],
        device: torch.device,
        rules: SpatialRules = ALL_AXES,
        mirrored: Sequence[int] = (),
        batched: bool | None = None,
    ) -> None:
        self.cache = cache
        self.augment = augment
        self.patch = patch
        self.device = device
        self.rules = rules
        self._mirrored = None
        if list(mirrored) != list(range(len(mirrored))):
            table = np.tile(np.arange(256), 2)  # values that are no class, such as the ignored one, stay
            table[256 : 256 + len(mirrored)] = mirrored  # the second half is that of a flipped patch
            self._mirrored = send(table, device)
        self._augmentations = open_augmentations(augment, ImageLayout(cache.channels, rules.through_plane))
        self._patches: BatchedPatches | None = None
        if isinstance(cache, FlatCache) and (cache.device.type != "cpu" if batched is None else batched):
            self._patches = BatchedPatches(cache, patch, rules, augment.elastic)
        self._batched: BatchedIntensities | None = None
        if device.type != "cpu" if batched is None else batched:
            self._batched = BatchedIntensities(self._augmentations, cache.channels, patch, device)

    @torch.no_grad()
    def __call__(self, plan: Samples) -> tuple[Tensor, Tensor]:
        """Make a micro-batch.

        Args:
            plan: its samples.

        Returns:
            On the training device: image (B, C, X, Y, Z) float32, label (B, 1, X, Y, Z) int64.
        """
        with annotate("augment"):
            if self._batched is not None:
                return self._all_at_once(plan, self._batched)
            image, label = self._each_patch(plan)
            if self._mirrored is not None:
                for i in np.flatnonzero(plan.flip[:, LEFT_RIGHT]).tolist():
                    label[i] = self._mirrored[256:].take(label[i])
            for one in self._augmentations:
                image, label = one.apply(image, label, plan.draws[one.key], self._send)
            return image, label

    def _all_at_once(self, plan: Samples, intensities: BatchedIntensities) -> tuple[Tensor, Tensor]:
        """Make a micro-batch, with all numbers for the device sent by one transfer."""
        arrays, linear = intensities.arrays(plan), intensities.linear(plan)
        if self._patches is not None:
            arrays |= self._patches.arrays(plan) if linear is None else self._patches.arrays(plan, *linear)
        elif linear is not None:
            arrays |= {
                name: values[:, :, None, None, None] for name, values in zip(("factor", "offset"), linear, strict=True)
            }
        if self._mirrored is not None:
            arrays["mirrored"] = 256 * plan.flip[:, LEFT_RIGHT].astype(np.int64).reshape(-1, 1, 1, 1, 1)
        sent = intensities.constants | send_together(arrays, self.device)
        if self._patches is not None:
            image, label = self._patches.make(sent)
        else:
            image, label = self._each_patch(plan)
            if linear is not None:
                torch.addcmul(sent["offset"], image, sent["factor"], out=image)
        if self._mirrored is not None:
            label = self._mirrored.take(label.add_(sent["mirrored"]))
        return intensities.apply(image, label, plan, sent, self._send)

    def _each_patch(self, plan: Samples) -> tuple[Tensor, Tensor]:
        """Make one patch after the other on the host, and send them to the training device."""
        count = len(plan.case_index)
        pin = self.device.type == "cuda"  # the transfer of pinned memory is asynchronous
        image = torch.empty((count, self.cache.channels, *self.patch), pin_memory=pin)
        label = torch.empty((count, *self.patch), dtype=torch.uint8, pin_memory=pin)
        self._fill(plan, image, label)
        if self.device.type != "cpu":
            image, label = (made.to(self.device, non_blocking=True) for made in (image, label))
        return image, label.long().unsqueeze(1)

    def _fill(self, plan: Samples, image: Tensor, label: Tensor) -> None:
        """Write the patches into image (B, C, X, Y, Z) and label (B, X, Y, Z), one after the other, on the host."""
        for i, warped in enumerate(plan.warped):
            make = self._warp if warped else self._cut
            make(plan, i, image[i], label[i])

    def _box(self, plan: Samples, i: int, *, warped: bool) -> PatchBox:
        record = self.cache.records[int(plan.case_index[i])]
        return patch_box(plan, i, record, self.patch, self.rules.through_plane, warped=warped)

    def _cut(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Copy the part of the volume inside the patch; the rest of the patch is background."""
        case_index, first = int(plan.case_index[i]), plan.origin[i]
        box = self._box(plan, i, warped=False)
        start, stop = box.low, box.high
        flips = [axis for axis in range(3) if plan.flip[i, axis]]
        if plan.quarter_turns[i].any():
            # Write to a view of the patch with the axes of the volume. Only flips are left then.
            order = turned(plan.flip[i], plan.quarter_turns[i])
            axes = [int(axis) for axis in np.abs(order).argmax(axis=1)]
            image, label = image.permute(0, *(axis + 1 for axis in axes)), label.permute(axes)
            flips = [axis for axis in range(3) if order[axis].min() < 0]
        target = tuple(
            slice(size - int(b), size - int(a)) if axis in flips else slice(int(a), int(b))
            for axis, (a, b, size) in enumerate(zip(start - first, stop - first, self.patch, strict=True))
        )
        if tuple(stop - start) != self.patch:
            image.copy_(self.cache.background(case_index).expand_as(image))
            label.zero_()
        part, part_label = self.cache.box(case_index, box.slices)
        if flips:  # flipping nothing would still copy
            part, part_label = part.flip([axis + 1 for axis in flips]), part_label.flip(flips)
        image[(slice(None), *target)] = part
        label[target] = part_label

    def _warp(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Interpolate the patch: linear for the image, nearest for the label; outside the volume is background."""
        case_index = int(plan.case_index[i])
        patch = np.array(self.patch)
        # Only the box that the patch can reach is converted and interpolated.
        box = self._box(plan, i, warped=True)
        assert box.matrix is not None
        if self.rules.through_plane is not None:
            self._warp_slices(plan, i, image, label, box)
            return
        volume, mask = self.cache.box(case_index, box.slices)
        background = self.cache.background(case_index)
        centre = plan.origin[i] + (patch - 1) / 2
        # grid_sample gives 0 outside the box; with the background subtracted, 0 is the background.
        part = volume.to(torch.float32, copy=True).sub_(background)
        size = box.high - box.low
        grid = self._grid(2 / size[:, None] * box.matrix, (2 * (centre - box.low) + 1) / size - 1, patch)
        if plan.elastic[i]:
            grid += self._displacement(plan, i, patch, 2 / size[::-1])
        image.copy_(_interpolate(part, grid, "bilinear").add_(background))
        if not mask.any():
            label.zero_()
            return
        label.copy_(_interpolate(mask.float()[None], grid, "nearest")[0])

    def _warp_slices(self, plan: Samples, i: int, image: Tensor, label: Tensor, box: PatchBox) -> None:
        """Interpolate the patch in the plane of its slices; the through-plane axis is copied.

        Args:
            plan: the samples.
            i: index of the sample.
            image: (C, X, Y, Z), written to.
            label: (X, Y, Z), written to.
            box: that the patch can reach.
        """
        stack = self.rules.through_plane
        assert stack is not None and box.matrix is not None
        case_index = int(plan.case_index[i])
        volume, mask = self.cache.box(case_index, box.slices)
        background = self.cache.background(case_index)
        plane, patch = [axis for axis in range(3) if axis != stack], np.array(self.patch)
        first, slices = int(plan.origin[i, stack]), self.patch[stack]
        start, stop = int(box.low[stack]), int(box.high[stack])
        inside = slice(start - first, stop - first)
        if stop - start < slices:
            image.copy_(background.expand_as(image))
            label.zero_()
        centre = (plan.origin[i] + (patch - 1) / 2 - box.low)[plane]
        positions = self._grid(box.matrix[np.ix_(plane, plane)], centre, patch[plane])
        if plan.elastic[i]:
            positions += self._displacement(plan, i, patch[plane], np.ones(2))
        warped, warped_label = warp_slices(
            volume.movedim(stack + 1, -1), mask.movedim(stack, -1), positions[0], background
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
            term = torch.from_numpy(values.astype(np.float32))
            total = term if total is None else total.unsqueeze(-2) + term
        assert total is not None
        return total[None]

    def _displacement(self, plan: Samples, i: int, patch: NDArray[np.int64], voxel: NDArray[np.float64]) -> Tensor:
        """The displacements: (1, X, Y, Z, 3), last axis first; without the through-plane axis (1, X, Y, 2).

        Args:
            plan: the samples.
            i: index of the sample.
            patch: (D,), size in voxels.
            voxel: (D,), size of a voxel in the unit of the result, last axis first.
        """
        assert self.augment.elastic is not None
        normal = coarse_displacement(int(plan.elastic_key[i]), patch.tolist(), self.augment.elastic.spacing)
        unit = (plan.elastic[i] * voxel).astype(np.float32).reshape(-1, *[1] * len(patch))
        mode = "trilinear" if len(patch) == 3 else "bilinear"
        coarse = torch.from_numpy(normal * unit)[None]
        smooth = F.interpolate(coarse, tuple(int(size) for size in patch), mode=mode, align_corners=True)
        if np.abs(normal).max() > LARGEST:  # else no value in between is larger
            largest = torch.from_numpy(LARGEST * unit)
            smooth = smooth.clamp_(-largest, largest)
        return smooth.movedim(1, -1)

    def _send(self, values: NDArray[Any]) -> Tensor:
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
