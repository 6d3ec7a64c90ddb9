"""Whole volumes with hidden blocks: cut into tiles, reconstructed tile by tile, put together again, and scored."""

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
from fusionseg.data.loading.counter_random import Purpose, hidden_blocks
from fusionseg.losses.reconstruction import clamp_straight_through
from fusionseg.metrics.reconstruction import relative_box, ssim_and_psnr
from fusionseg.models.masked.fills import fill_linear, fill_mean
from fusionseg.models.masked.masking import blocks_to_voxels, composite
from fusionseg.training.network import data_range, intensity_limits
from fusionseg.training.precision import Precision

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Figures = dict[str, float]


@dataclass(frozen=True)
class Reconstruction:
    """A volume of which some voxels were hidden from a network, in the host's memory.

    image, output: float32 (C, X, Y, Z), the volume and what the network gave, at all voxels. hidden: bool (1, X, Y, Z).
    """

    image: Tensor
    hidden: Tensor
    output: Tensor

    @property
    def filled(self) -> Tensor:
        """The image with the network's output at its hidden voxels: what is scored."""
        return composite(self.output, self.image, self.hidden)

    @property
    def masked(self) -> Tensor:
        """The image with its lowest intensity at its hidden voxels."""
        return self.image.where(~self.hidden, self.image.amin())


@dataclass(frozen=True)
class Tile:
    """A patch of a volume, and the part of the volume that is taken from it."""

    origin: Triple
    """Voxel of the volume at which the patch begins: below 0 where the volume is smaller than the patch."""
    core: Box
    """The voxels of the volume that belong to this tile. Each voxel belongs to one."""

    def inside(self, box: Box) -> Box:
        """A box of the volume as voxels of the patch."""
        x, y, z = (slice(side.start - o, side.stop - o) for side, o in zip(box, self.origin, strict=True))
        return x, y, z


class Reconstructor:
    """Hides blocks of whole volumes, has a network fill them in, and scores the result.

    A volume is covered by the fewest patches. Where two overlap, each half of the overlap belongs to the patch whose
    middle is nearer: whether a voxel is hidden, and what the network makes of it, is that patch's. So a network has
    never been shown a voxel that it is scored at. Which blocks are hidden depends on nothing but the case's name, the
    volume's and the patch's shape and the share: it is the same in every run, and a higher share hides those of a lower
    one and more.
    """

    def __init__(self, config: RunConfig, precision: Precision, device: torch.device) -> None:
        assert config.pretrain is not None
        self.patch = config.data.patch
        self.batch = config.validation.window_batch
        self.precision = precision
        self.device = device
        self.data_range = data_range(config)
        self.limits = intensity_limits(config)
        self.grid = config.pretrain.grid(self.patch)
        self.num_hidden = config.pretrain.num_hidden(self.patch)

    @torch.no_grad()
    def __call__(self, model: nn.Module, image: Tensor, background: Sequence[float], name: str) -> Reconstruction:
        """Reconstruct a volume.

        Args:
            model: in evaluation mode, on the device.
            image: (C, X, Y, Z).
            background: of each channel, what stands outside the volume where it is smaller than the patch.
            name: of the case.
        """
        image = image.float().cpu()
        hidden = torch.empty((1, *image.shape[1:]), dtype=torch.bool)
        output = torch.empty_like(image)
        tiles = cover(image.shape[1:], self.patch)
        for first in range(0, len(tiles), self.batch):
            part = tiles[first : first + self.batch]
            blocks = self._blocks(name, range(first, first + len(part)))
            patches = torch.stack([_cut(image, tile, self.patch, background) for tile in part])
            with self.precision.autocast():
                made = model(patches.to(self.device), blocks.to(self.device))
            made = clamp_straight_through(made.float(), self.limits).cpu()
            voxels = blocks_to_voxels(blocks, self.patch)
            for k, tile in enumerate(part):
                inside = (slice(None), *tile.inside(tile.core))
                output[(slice(None), *tile.core)] = made[k][inside]
                hidden[(slice(None), *tile.core)] = voxels[k][inside]
        return Reconstruction(image, hidden, output)

    def score(self, made: Reconstruction) -> Figures:
        """SSIM and PSNR of the volume filled in by the network: see `fusionseg.losses.reconstruction.quality`."""
        return ssim_and_psnr(made.filled, made.image, made.hidden, self.data_range, self.device)

    def score_fill_ins(self, made: Reconstruction, background: Sequence[float], name: str) -> Figures:
        """The same with the hidden voxels filled in by the two trivial ways, from the visible voxels of each tile.

        Padding is not the image's: it is neither averaged nor interpolated from, unless nothing else is visible.
        """
        mean, linear = made.image.clone(), made.image.clone()
        for number, tile in enumerate(cover(made.image.shape[1:], self.patch)):
            box = _own(tile, self.patch, made.image.shape[1:])
            covered = blocks_to_voxels(self._blocks(name, range(number, number + 1)), self.patch)
            covered = covered[(slice(None), slice(None), *tile.inside(box))]
            image = made.image[(None, slice(None), *box)]
            core = relative_box(tile.core, box)
            for volume, fill in ((mean, fill_mean), (linear, fill_linear)):
                if covered.all():
                    filled = torch.as_tensor(background, dtype=image.dtype).view(1, -1, 1, 1, 1).expand_as(image)
                else:
                    filled = fill(image, covered)
                volume[(slice(None), *tile.core)] = filled[0][(slice(None), *core)]
        figures: Figures = {}
        for suffix, volume in (("mean_fill", mean), ("linear_fill", linear)):
            scored = ssim_and_psnr(volume, made.image, made.hidden, self.data_range, self.device)
            figures |= {f"{key}_{suffix}": value for key, value in scored.items()}
        return figures

    def _blocks(self, name: str, tiles: range) -> Tensor:
        """(B, gx, gy, gz) bool, the hidden blocks of some tiles of a case."""
        key = zlib.crc32(name.encode())
        draws = [
            hidden_blocks(0, key, k, Purpose.HIDDEN_IN_VALIDATION, prod(self.grid), self.num_hidden) for k in tiles
        ]
        return torch.from_numpy(np.stack(draws).reshape(-1, *self.grid))


def cover(shape: Sequence[int], patch: Sequence[int]) -> list[Tile]:
    """The fewest patches that cover a volume, evenly spread; a volume smaller than the patch lies in its middle."""
    axes: list[list[tuple[int, slice]]] = []
    for size, edge in zip(shape, patch, strict=True):
        count = ceil(size / edge)
        origins = [(size - edge) // 2] if count == 1 else np.linspace(0, size - edge, count).astype(int).tolist()
        borders = [0, *((first + edge + second) // 2 for first, second in pairwise(origins)), size]
        axes.append([(o, slice(*border)) for o, border in zip(origins, pairwise(borders), strict=True)])
    return [Tile((x[0], y[0], z[0]), (x[1], y[1], z[1])) for x, y, z in product(*axes)]


def _own(tile: Tile, patch: Sequence[int], shape: Sequence[int]) -> Box:
    """The voxels of the volume that a tile's patch shows."""
    x, y, z = (slice(max(0, o), min(size, o + edge)) for o, edge, size in zip(tile.origin, patch, shape, strict=True))
    return x, y, z


def _cut(image: Tensor, tile: Tile, patch: Triple, background: Sequence[float]) -> Tensor:
    """(C, *patch): the patch of a tile; what lies outside the volume is background."""
    out = torch.as_tensor(background, dtype=image.dtype).view(-1, 1, 1, 1).repeat(1, *patch)
    box = _own(tile, patch, image.shape[1:])
    out[(slice(None), *tile.inside(box))] = image[(slice(None), *box)]
    return out
