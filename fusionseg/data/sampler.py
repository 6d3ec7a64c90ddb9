"""Crops and augmentation on the device: a plan and a cache in, a batch out."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data_sections import AugmentConfig
from fusionseg.data.cache import DeviceCache
from fusionseg.data.plan import Samples
from fusionseg.telemetry.ranges import annotate


class PatchSampler:
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
            image = torch.empty((count, cache.channels, *self.patch), device=cache.device)
            label = torch.empty((count, *self.patch), dtype=torch.uint8, device=cache.device)
            for i, warped in enumerate(plan.warped):
                make = self._warp if warped else self._cut
                make(plan, i, image[i], label[i])
            image = self._intensities(image, plan)
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
        image[(slice(None), *target)] = volume[(slice(None), *source)].flip([axis + 1 for axis in flips])
        label[target] = mask[source].flip(flips)

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
        # grid_sample speaks of [-1, 1] over the box, last axis first; affine_grid of the same over the patch.
        theta = np.concatenate(
            [2 / size[:, None] * matrix * (patch / 2), (2 * (centre - low) + 1)[:, None] / size[:, None] - 1],
            axis=1,
        )
        theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
        grid = F.affine_grid(self._send(theta[None].astype(np.float32)), [1, 1, *self.patch], align_corners=False)
        if plan.elastic[i]:
            grid = grid + self._displacement(plan, i) * self._send((2 / size[::-1]).astype(np.float32))
        background = self.cache.background(number)
        # Zeros outside are background once the background is taken off.
        part = volume[(slice(None), *box)].float() - background
        image.copy_(F.grid_sample(part[None], grid, mode="bilinear", align_corners=False)[0] + background)
        label.copy_(F.grid_sample(mask[box][None, None].float(), grid, mode="nearest", align_corners=False)[0, 0])

    def _displacement(self, plan: Samples, i: int) -> Tensor:
        """(1, X, Y, Z, 3) displacements in voxels, last axis first."""
        assert self.augment.elastic is not None
        coarse = [math.ceil(size / self.augment.elastic.spacing) + 1 for size in self.patch]
        normal = counter_normal(self._send(plan.keys[i : i + 1, 1]), 3 * math.prod(coarse)).view(1, 3, *coarse)
        smooth = F.interpolate(normal, self.patch, mode="trilinear", align_corners=True)
        return smooth.clamp_(-4, 4).mul_(float(plan.elastic[i])).permute(0, 2, 3, 4, 1)

    def _intensities(self, image: Tensor, plan: Samples) -> Tensor:
        if self.augment.scale_intensity is not None or self.augment.shift_intensity is not None:
            factors = self._send(np.stack([plan.scale, plan.shift]).astype(np.float32)).view(2, -1, 1, 1, 1, 1)
            image = torch.addcmul(factors[1], image, factors[0])
        for i in np.flatnonzero(plan.noise_std):
            normal = counter_normal(self._send(plan.keys[i : i + 1, 0]), image[i].numel()).view_as(image[i])
            image[i].add_(normal, alpha=float(plan.noise_std[i]))
        return image

    def _send(self, values: NDArray[np.generic]) -> Tensor:
        """Host values to the cache's device without waiting for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.cache.device.type == "cuda":
            return tensor.pin_memory().to(self.cache.device, non_blocking=True)
        return tensor


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
