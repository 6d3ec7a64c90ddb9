"""Crops and augmentation on the device: a plan and a cache in, a batch out."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data_sections import AugmentConfig
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.observability.ranges import annotate


class PatchAugmenter:
    """Cuts planned samples out of a cache.

    A plain patch is a strided copy from the volume; where it goes comes from the plan, which the host knows, so
    nothing is indexed on the device. A rotated, zoomed or deformed patch is interpolated once, from the volume itself
    and not from a crop of it: its corners hold image wherever the volume goes on. Intensities change as one batch.
    """

    def __init__(
        self, cache: DeviceCache, augment: AugmentConfig, patch: tuple[int, int, int], device: torch.device
    ) -> None:
        self.cache = cache
        self.augment = augment
        self.patch = patch
        self.device = device

    @torch.no_grad()
    def __call__(self, plan: Samples) -> tuple[Tensor, Tensor]:
        """The micro-batch on the training device: image (B, C, X, Y, Z) float32, label (B, 1, X, Y, Z) int64."""
        with annotate("augment"):
            count, cache = len(plan.case), self.cache
            # From a host cache to a GPU: the batch is locked memory, so that its transfer waits for nothing.
            pin = cache.device.type == "cpu" and self.device.type == "cuda"
            image = torch.empty((count, cache.channels, *self.patch), device=cache.device, pin_memory=pin)
            label = torch.empty((count, *self.patch), dtype=torch.uint8, device=cache.device, pin_memory=pin)
            for i, warped in enumerate(plan.warped):
                make = self._warp if warped else self._cut
                make(plan, i, image[i], label[i])
            self._change_intensities(image, plan)
            if cache.device != self.device:
                image = image.to(self.device, non_blocking=True)
                label = label.to(self.device, non_blocking=True)
            return image, label.long().unsqueeze(1)

    def _cut(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Copy the part of the volume that lies in the patch; the rest of the patch is background."""
        volume, mask = self.cache.volume(int(plan.case[i]))
        first = plan.origin[i]
        start = np.maximum(first, 0)
        stop = np.minimum(first + self.patch, mask.shape)
        flips = [axis for axis in range(3) if plan.flip[i, axis]]
        source = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        target = tuple(
            slice(size - int(b), size - int(a)) if axis in flips else slice(int(a), int(b))
            for axis, (a, b, size) in enumerate(zip(start - first, stop - first, self.patch, strict=True))
        )
        if tuple(stop - start) != self.patch:
            image.copy_(self.cache.background(int(plan.case[i])).expand_as(image))
            label.zero_()
        part, part_label = volume[(slice(None), *source)], mask[source]
        if flips:  # flipping nothing would still copy
            part, part_label = part.flip([axis + 1 for axis in flips]), part_label.flip(flips)
        image[(slice(None), *target)] = part
        label[target] = part_label

    def _warp(self, plan: Samples, i: int, image: Tensor, label: Tensor) -> None:
        """Interpolate the patch: trilinear for the image, nearest for the label; outside the volume is background."""
        number = int(plan.case[i])
        volume, mask = self.cache.volume(number)
        patch = np.array(self.patch)
        matrix = patch_to_volume(
            plan.angles[i], float(plan.zoom[i]), plan.flip[i], np.array(self.cache.records[number].spacing)
        )
        centre = plan.origin[i] + (patch - 1) / 2
        # Only the box that the patch can reach is converted and interpolated from.
        reach = np.abs(matrix) @ (patch / 2) + 4 * plan.elastic[i] + 2
        low = np.clip(np.floor(centre - reach), 0, np.array(mask.shape) - 1).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, low + 1, mask.shape).astype(int)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        size = high - low
        grid = self._grid(2 / size[:, None] * matrix, (2 * (centre - low) + 1) / size - 1)
        if plan.elastic[i]:
            grid += self._displacement(plan, i) * self._send((2 / size[::-1]).astype(np.float32))
        background = self.cache.background(number)
        # Zeros outside are background once the background is taken off.
        part = volume[(slice(None), *box)].float() - background
        image.copy_(_interpolate(part, grid, "bilinear")).add_(background)
        label.copy_(_interpolate(mask[box][None].float(), grid, "nearest")[0])

    def _grid(self, matrix: NDArray[np.float64], centre: NDArray[np.float64]) -> Tensor:
        """(1, X, Y, Z, 3) where grid_sample is to look, last axis first: centre + matrix @ offset in the patch.

        A sum of one term for each axis: what `affine_grid` gives, without its product of large matrices.
        """
        terms = []
        for axis, size in enumerate(self.patch):
            offset = np.arange(size) - (size - 1) / 2
            term = offset[:, None] * matrix[::-1, axis] + (centre[::-1] if axis == 0 else 0)
            terms.append(self._send(term.astype(np.float32)))
        x, y, z = terms
        return ((x[:, None, :] + y)[:, :, None, :] + z)[None]

    def _displacement(self, plan: Samples, i: int) -> Tensor:
        """(1, X, Y, Z, 3) displacements in voxels, last axis first."""
        assert self.augment.elastic is not None
        coarse = [math.ceil(size / self.augment.elastic.spacing) + 1 for size in self.patch]
        normal = counter_normal(self._send(plan.keys[i : i + 1, 1]), 3 * math.prod(coarse)).view(1, 3, *coarse)
        smooth = F.interpolate(normal, self.patch, mode="trilinear", align_corners=True)
        return smooth.clamp_(-4, 4).mul_(float(plan.elastic[i])).permute(0, 2, 3, 4, 1)

    def _change_intensities(self, image: Tensor, plan: Samples) -> None:
        if self.augment.scale_intensity is not None or self.augment.shift_intensity is not None:
            factors = self._send(np.stack([plan.scale, plan.shift]).astype(np.float32)).view(2, -1, 1, 1, 1, 1)
            image.mul_(factors[0]).add_(factors[1])
        for i in np.flatnonzero(plan.noise_std):
            normal = counter_normal(self._send(plan.keys[i : i + 1, 0]), image[i].numel()).view_as(image[i])
            image[i].add_(normal, alpha=float(plan.noise_std[i]))

    def _send(self, values: NDArray[np.generic]) -> Tensor:
        """Host values to the cache's device without waiting for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.cache.device.type == "cuda":
            return tensor.pin_memory().to(self.cache.device, non_blocking=True)
        return tensor


def _interpolate(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, X, Y, Z) of a volume (C, ...) at grid (1, X, Y, Z, 3)."""
    # On a CPU grid_sample works in parallel over the batch only: slabs of the patch make one.
    slabs = next(n for n in (16, 8, 4, 2, 1) if grid.shape[1] % n == 0)
    grids = grid.view(slabs, grid.shape[1] // slabs, *grid.shape[2:])
    out = F.grid_sample(volume.expand(slabs, *volume.shape), grids, mode=mode, align_corners=False)
    return out.transpose(0, 1).reshape(len(volume), *grid.shape[1:4])


def patch_to_volume(
    angles: NDArray[np.float64], zoom: float, flip: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(3, 3) from an offset in the patch to the offset in the volume, both in voxels.

    The rotation is one in mm, so that it stays a rotation where voxels are not cubes.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        rotation = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        rotation[a, a] = rotation[b, b] = math.cos(angle)
        rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ rotation
    result: NDArray[np.float64] = matrix * spacing_mm[None, :] / spacing_mm[:, None] / zoom
    return result * np.where(flip, -1.0, 1.0)


def counter_normal(keys: Tensor, count: int) -> Tensor:
    """(B, count) standard normal numbers, a function of the 32-bit keys (B,) alone, the same on every device.

    Two rounds of a 32-bit integer hash (the "lowbias32" constants of C. Wellons' search) over the counter, then
    Box and Muller (1958).
    """
    counter = torch.arange(2 * ((count + 1) // 2), device=keys.device)
    bits = _hash32(_hash32(counter ^ keys[:, None]) + keys[:, None])
    first, second = bits.chunk(2, dim=1)
    radius = (-2 * ((first.double() + 1) * 2.0**-32).log()).sqrt()
    angle = second.double() * (2.0**-31 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].float()


def _hash32(value: Tensor) -> Tensor:
    mask = 0xFFFFFFFF
    value = value & mask
    value = (value ^ (value >> 16)) * 0x7FEB352D & mask  # int64 wraps around: the low 32 bits stay right
    value = (value ^ (value >> 15)) * 0x846CA68B & mask
    return value ^ (value >> 16)
