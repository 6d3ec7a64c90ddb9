"""Pre-training as a task: volumes with hidden blocks in, reconstructions out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import product
from math import ceil, log10, prod
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.config import AugmentConfig, RunConfig
from fusionseg.data.plan import Purpose, Samples, hidden_blocks
from fusionseg.data.sampler import PatchSampler
from fusionseg.engine.dealing import deal
from fusionseg.engine.distributed import World
from fusionseg.engine.network import data_range, intensity_limits
from fusionseg.engine.precision import Precision
from fusionseg.engine.task import Outcome
from fusionseg.engine.training_data import TrainingData
from fusionseg.reconstruction import blocks_to_voxels, composite, fill_linear, fill_mean, quality, within
from fusionseg.telemetry.pictures import reconstruction_strip

Figures = dict[str, float]


class Pretraining:
    """An encoder that learns to fill in hidden blocks."""

    measure = "ssim"

    def __init__(self, config: RunConfig, data: TrainingData, precision: Precision, world: World) -> None:
        assert config.pretrain is not None
        self.config = config
        self.data = data
        self.precision = precision
        self.world = world
        self.grid = config.pretrain.grid(config.data.patch)
        self.num_hidden = config.pretrain.num_hidden(config.data.patch)
        self.data_range = data_range(config)
        self.limits = intensity_limits(config)
        self._still = PatchSampler(data.cache, AugmentConfig(flip=0), config.data.patch, world.device)
        self._fills: dict[str, Figures] = {}
        tiles = {
            number: len(tile(data.cache.records[number].shape, config.data.patch)) for number in data.validation_numbers
        }
        self._own = deal(tiles, world.size)[world.rank]

    def batch(self, step: int, indices: range) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """(image (B, C, X, Y, Z), hidden (B, gx, gy, gz)), twice: the network sees the visible part of the image, the
        loss all of it."""
        image, _ = self.data.batch(step, indices)
        hidden = self._hidden([(self.config.seed, step, k, Purpose.HIDDEN) for k in indices])
        return (image, hidden), (image, hidden)

    def _hidden(self, draws: list[tuple[int, int, int, Purpose]]) -> Tensor:
        """(B, gx, gy, gz) bool on the device, one for each (seed, step, sample, purpose)."""
        blocks = prod(self.grid)
        masks = [hidden_blocks(*draw, blocks, self.num_hidden).reshape(self.grid) for draw in draws]
        hidden = torch.from_numpy(np.stack(masks))
        if self.world.device.type == "cuda":
            return hidden.pin_memory().to(self.world.device, non_blocking=True)
        return hidden

    def validate(self, model: nn.Module) -> Outcome:
        """Reconstruct the validation volumes, tile by tile; the score is the SSIM.

        A volume is covered by patches, each with blocks hidden that depend on nothing but the case, the patch and the
        share: the same in every run and, up to the share, for every share. What is measured is the volume with its
        hidden voxels filled in, by the network, by the mean of the visible ones, and by linear interpolation.
        """
        training = model.training
        model.eval()
        own: dict[str, Figures] = {}
        picture: NDArray[np.float32] | None = None
        numbers = self.data.validation_numbers
        with torch.no_grad():
            for number in self._own:
                figures, shown = self._case(model, number)
                own[self.data.cache.names[number]] = figures
                picture = shown if number == numbers[0] else picture
            gathered = self.world.gather(own)
        model.train(training)
        cases = {name: figures for part in gathered for name, figures in part.items()}
        names = sorted(cases)
        fields = {key: fmean(cases[name][key] for name in names) for key in cases[names[0]]}
        return Outcome(
            score=fields["ssim"],
            fields={**fields, "cases": len(cases)},
            summary=f"SSIM {fields['ssim']:.4f}, PSNR {fields['psnr']:.2f} dB (filled with the mean"
            f" {fields['ssim_mean_fill']:.4f}, by interpolation {fields['ssim_linear_fill']:.4f})",
            picture=picture,
        )

    def _case(self, model: nn.Module, number: int) -> tuple[Figures, NDArray[np.float32]]:
        """The figures of a case, and the picture of its middle patch."""
        name = self.data.cache.names[number]
        origins = tile(self.data.cache.records[number].shape, self.config.data.patch)
        first_time = name not in self._fills
        ours: list[Figures] = []
        fills: list[Figures] = []
        picture: NDArray[np.float32] | None = None
        for first, part in _batches(origins, self.config.validation.window_batch):
            image, _ = self._still(Samples.still(number, part))
            key = zlib.crc32(name.encode())
            hidden = self._hidden([(0, key, first + k, Purpose.HIDDEN_IN_VALIDATION) for k in range(len(part))])
            voxels = blocks_to_voxels(hidden, self.config.data.patch)
            with self.precision.autocast():
                output = model(image, hidden)
            output = within(output.float(), self.limits)
            ours += self._figures(output, image, voxels, "")
            if first_time:
                fills += [
                    {**mean, **linear}
                    for mean, linear in zip(
                        self._figures(fill_mean(image, voxels), image, voxels, "_mean_fill"),
                        self._figures(fill_linear(image, voxels), image, voxels, "_linear_fill"),
                        strict=True,
                    )
                ]
            middle = len(origins) // 2 - first
            if 0 <= middle < len(part):
                original, covered = image[middle, 0], voxels[middle, 0]
                slices = (original, original.where(~covered, original.amin()), output[middle, 0])
                depth = image.shape[-1] // 2
                picture = reconstruction_strip(*(volume[:, :, depth].float().cpu().numpy() for volume in slices))
        if first_time:
            self._fills[name] = _mean(fills)
        assert picture is not None
        return {**_mean(ours), **self._fills[name]}, picture

    def _figures(self, output: Tensor, image: Tensor, voxels: Tensor, suffix: str) -> list[Figures]:
        """SSIM and PSNR of each patch whose hidden voxels are filled in: over all its voxels, and over the hidden."""
        filled = composite(output, image, voxels)
        ssim, psnr = quality(filled, image, self.data_range)
        ssim_hidden, psnr_hidden = quality(filled, image, self.data_range, over=voxels)
        columns = [column.tolist() for column in (ssim, psnr, ssim_hidden, psnr_hidden)]
        keys = ("ssim", "psnr", "ssim_hidden", "psnr_hidden")
        return [
            {f"{key}{suffix}": value for key, value in zip(keys, row, strict=True)}
            for row in zip(*columns, strict=True)
        ]


def tile(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> NDArray[np.int64]:
    """(N, 3) origins of the fewest patches that cover a volume, evenly spread; a smaller volume lies in the middle."""
    axes = []
    for size, edge in zip(shape, patch, strict=True):
        count = ceil(size / edge)
        axes.append([(size - edge) // 2] if count == 1 else np.linspace(0, size - edge, count).astype(int).tolist())
    return np.array(list(product(*axes)), np.int64)


def _batches(origins: NDArray[np.int64], size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for first in range(0, len(origins), size):
        yield first, origins[first : first + size]


def _mean(figures: list[Figures]) -> Figures:
    """Of the patches of a case. The PSNR is that of their mean squared error: one empty patch has no error at all."""
    return {
        key: (_mean_psnr if key.startswith("psnr") else fmean)([entry[key] for entry in figures]) for key in figures[0]
    }


def _mean_psnr(values: list[float]) -> float:
    return -10 * log10(max(fmean(10 ** (-value / 10) for value in values), 1e-10))
