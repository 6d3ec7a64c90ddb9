"""Masked reconstruction of whole volumes, tile by tile, and its scores."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Triple
from fusionseg.data.loading.counter_random import hidden_blocks
from fusionseg.data.loading.purposes import Purpose
from fusionseg.losses.reconstruction import clamp_straight_through
from fusionseg.metrics.reconstruction import relative_box, ssim_and_psnr
from fusionseg.models.masked.fills import fill_linear, fill_mean
from fusionseg.models.masked.masking import blocks_to_voxels, composite
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.sliding_window import fill_batch

Box = tuple[slice, slice, slice]
ReconstructionScores = dict[str, float]
"""SSIM and PSNR by name: "ssim", "psnr_hidden", "ssim_mean_fill" ..."""


@dataclass(frozen=True)
class Reconstruction:
    """A volume, some voxels of which were hidden from a network, in host memory."""

    image: Tensor
    """float32 (C, X, Y, Z)"""
    hidden: Tensor
    """bool (1, X, Y, Z)"""
    output: Tensor
    """float32 (C, X, Y, Z): the network's output, at the visible voxels too."""

    @property
    def filled(self) -> Tensor:
        """The image with the network's output at its hidden voxels. This is what is scored."""
        return composite(self.output, self.image, self.hidden)

    @property
    def masked(self) -> Tensor:
        """The image with its lowest intensity at its hidden voxels."""
        return self.image.where(~self.hidden, self.image.amin())


@dataclass(frozen=True)
class Tile:
    """A patch of a volume, and the part of the volume that belongs to it."""

    origin: Triple
    """Voxel of the volume at which the patch begins; negative where the volume is smaller than the patch."""
    core: Box
    """The voxels of the volume that belong to this tile. Each voxel belongs to one tile."""

    def inside(self, box: Box) -> Box:
        """Convert a box of the volume to voxels of the patch."""
        x, y, z = (slice(side.start - o, side.stop - o) for side, o in zip(box, self.origin, strict=True))
        return x, y, z


class Reconstructor:
    """Hides blocks of whole volumes, fills them in with a network, and scores the result.

    The fewest possible patches cover a volume. Where two patches overlap, each half of the overlap belongs to the patch
    whose middle is nearer: that patch decides whether a voxel is hidden, and gives the network's output there. So no
    voxel is scored that was visible to the network. The hidden blocks depend only on the name of the case, the
    shapes of volume and patch, and the masking ratio: they are the same in every run, and a higher ratio hides all
    blocks that a lower one hides.
    """

    def __init__(
        self, config: RunConfig, precision: Precision, device: torch.device, *, fills_batches: bool = False
    ) -> None:
        """Args:
        config: the configuration of the run.
        precision: the precision of the forward pass.
        device: the device of the network.
        fills_batches: give the network always `validate.window_batch` patches, see `fill_batch`.
        """
        pretrain = pretrain_section(config)
        self.patch = config.data.patch
        self.batch = config.validation.window_batch
        self.fills_batches = fills_batches
        self.precision = precision
        self.device = device
        self.data_range = data_range(config)
        self.limits = intensity_limits(config)
        self.grid = pretrain.grid(self.patch)
        self.num_hidden = pretrain.num_hidden(self.patch)

    @torch.no_grad()
    def __call__(self, model: nn.Module, image: Tensor, background: Sequence[float], name: str) -> Reconstruction:
        """Reconstruct a volume.

        Args:
            model: the network, in evaluation mode, on the device.
            image: (C, X, Y, Z).
            background: the intensity of each channel outside the volume, where it is smaller than the patch.
            name: the name of the case.
        """
        image = image.float().cpu()
        hidden = torch.empty((1, *image.shape[1:]), dtype=torch.bool)
        output = torch.empty_like(image)
        tiles = cover(image.shape[1:], self.patch)
        for first in range(0, len(tiles), self.batch):
            part = tiles[first : first + self.batch]
            blocks = self._blocks(name, range(first, first + len(part)))
            patches = torch.stack([_cut(image, tile, self.patch, background) for tile in part])
            size = self.batch if self.fills_batches else len(part)
            with self.precision.autocast():
                made = model(fill_batch(patches, size).to(self.device), fill_batch(blocks, size).to(self.device))
            made = clamp_straight_through(made[: len(part)].float(), self.limits).cpu()
            voxels = blocks_to_voxels(blocks, self.patch)
            for k, tile in enumerate(part):
                inside = (slice(None), *tile.inside(tile.core))
                output[(slice(None), *tile.core)] = made[k][inside]
                hidden[(slice(None), *tile.core)] = voxels[k][inside]
        return Reconstruction(image, hidden, output)

    def score(self, made: Reconstruction) -> ReconstructionScores:
        """Score the volume that the network filled in by SSIM and PSNR, see `fusionseg.metrics.reconstruction`."""
        return ssim_and_psnr(made.filled, made.image, made.hidden, self.data_range, self.device)

    def score_fill_ins(self, made: Reconstruction, background: Sequence[float], name: str) -> ReconstructionScores:
        """Score two simple ways to fill in the hidden voxels from the visible voxels of each tile.

        Padding does not belong to the image. It is used only where nothing else is visible.
        """
        mean, linear = made.image.clone(), made.image.clone()
        for index, tile in enumerate(cover(made.image.shape[1:], self.patch)):
            box = _box_in_volume(tile, self.patch, made.image.shape[1:])
            covered = blocks_to_voxels(self._blocks(name, range(index, index + 1)), self.patch)
            covered = covered[(slice(None), slice(None), *tile.inside(box))]
            image = made.image[(None, slice(None), *box)]
            core = relative_box(tile.core, box)
            for volume, fill in ((mean, fill_mean), (linear, fill_linear)):
                if covered.all():
                    filled = torch.as_tensor(background, dtype=image.dtype).view(1, -1, 1, 1, 1).expand_as(image)
                else:
                    filled = fill(image, covered)
                volume[(slice(None), *tile.core)] = filled[0][(slice(None), *core)]
        scores: ReconstructionScores = {}
        for suffix, volume in (("mean_fill", mean), ("linear_fill", linear)):
            found = ssim_and_psnr(volume, made.image, made.hidden, self.data_range, self.device)
            scores |= {f"{key}_{suffix}": value for key, value in found.items()}
        return scores

    def _blocks(self, name: str, tiles: range) -> Tensor:
        """Draw the hidden blocks (B, gx, gy, gz) of some tiles of a case: bool, True for hidden."""
        key = zlib.crc32(name.encode())
        draws = [
            hidden_blocks(0, key, k, Purpose.HIDDEN_IN_VALIDATION, prod(self.grid), self.num_hidden) for k in tiles
        ]
        return torch.from_numpy(np.stack(draws).reshape(-1, *self.grid))


def pretrain_section(config: RunConfig) -> PretrainConfig:
    """Return the `pretrain` section of the configuration of a pre-training."""
    assert config.pretrain is not None
    return config.pretrain


def data_range(config: RunConfig) -> float:
    """Return the range of the prepared intensities, for SSIM and PSNR.

    Without `pretrain.data_range` it is 1 for intensities scaled by a window, and else 6: three standard deviations on
    each side of the mean.
    """
    configured = pretrain_section(config).data_range
    return configured or (1.0 if config.data.intensity.is_unit_range else 6.0)


def intensity_limits(config: RunConfig) -> tuple[float, float] | None:
    """Return the lowest and highest intensity of all training samples; None if the configuration does not fix them.

    They are fixed if every data set is scaled by a window and no augmentation changes the intensities.
    """
    unit = all(
        part.is_unit_range for part in (config.data.intensity, *(source.intensity for source in config.data.also))
    )
    return (0.0, 1.0) if not config.augment.intensities and unit else None


def cover(shape: Sequence[int], patch: Sequence[int]) -> list[Tile]:
    """Cover a volume with the fewest patches, evenly spread. A smaller volume is in the middle of its patch."""
    axes: list[list[tuple[int, slice]]] = []
    for size, edge in zip(shape, patch, strict=True):
        count = ceil(size / edge)
        origins = [(size - edge) // 2] if count == 1 else np.linspace(0, size - edge, count).astype(int).tolist()
        borders = [0, *((first + edge + second) // 2 for first, second in pairwise(origins)), size]
        axes.append([(o, slice(*border)) for o, border in zip(origins, pairwise(borders), strict=True)])
    return [Tile((x[0], y[0], z[0]), (x[1], y[1], z[1])) for x, y, z in product(*axes)]


def _box_in_volume(tile: Tile, patch: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the voxels of the volume that lie in the patch of a tile."""
    x, y, z = (slice(max(0, o), min(size, o + edge)) for o, edge, size in zip(tile.origin, patch, shape, strict=True))
    return x, y, z


def _cut(image: Tensor, tile: Tile, patch: Triple, background: Sequence[float]) -> Tensor:
    """Cut the patch (C, *patch) of a tile, with background outside the volume."""
    out = torch.as_tensor(background, dtype=image.dtype).view(-1, 1, 1, 1).repeat(1, *patch)
    box = _box_in_volume(tile, patch, image.shape[1:])
    out[(slice(None), *tile.inside(box))] = image[(slice(None), *box)]
    return out
