"""Pre-training as a task: volumes with hidden blocks in, reconstructions out."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.data.loading.counter_random import Purpose, hidden_blocks
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.pictures import reconstruction_strip
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.reconstruction import Figures, Reconstruction, Reconstructor, cover
from fusionseg.training.tasks.task import Outcome


class Pretraining:
    """An encoder that learns to fill in hidden blocks."""

    measure = "ssim"

    def __init__(self, config: RunConfig, data: TrainingData, precision: Precision, world: World) -> None:
        assert config.pretrain is not None
        self.config = config
        self.data = data
        self.world = world
        self.grid = config.pretrain.grid(config.data.patch)
        self.num_hidden = config.pretrain.num_hidden(config.data.patch)
        self._reconstruct = Reconstructor(config, precision, world.device)
        self._fills: dict[str, Figures] = {}
        tiles = {
            number: len(cover(data.cache.records[number].shape, config.data.patch))
            for number in data.validation_numbers
        }
        self._own = assign_to_ranks(tiles, world.size)[world.rank]

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
        """Reconstruct the validation volumes; the score is the SSIM of whole volumes, their mean over the cases.

        What is measured is the volume with its hidden voxels filled in, by the network, by the mean of the visible
        ones, and by linear interpolation: see `Reconstructor`.
        """
        training = model.training
        model.eval()
        own: dict[str, Figures] = {}
        picture: NDArray[np.float32] | None = None
        numbers = self.data.validation_numbers
        for number in self._own:
            figures, made = self._case(model, number)
            own[self.data.cache.names[number]] = figures
            picture = _picture(made) if number == numbers[0] else picture
        gathered = self.world.all_gather_object(own)
        model.train(training)
        fields = mean_figures({name: figures for part in gathered for name, figures in part.items()})
        return Outcome(
            score=fields["ssim"],
            fields={**fields, "cases": len(numbers), "grid": "prepared"},
            summary=f"SSIM {fields['ssim']:.4f}, PSNR {fields['psnr']:.2f} dB on the prepared grid (filled with the"
            f" mean {fields['ssim_mean_fill']:.4f}, by interpolation {fields['ssim_linear_fill']:.4f})",
            picture=picture,
        )

    def _case(self, model: nn.Module, number: int) -> tuple[Figures, Reconstruction]:
        cache, record = self.data.cache, self.data.cache.records[number]
        # By the name in its own data set: beside other data sets, the same blocks are hidden.
        made = self._reconstruct(model, cache.volume(number)[0], record.background, record.name)
        key = cache.names[number]
        if key not in self._fills:
            self._fills[key] = self._reconstruct.score_fill_ins(made, record.background, record.name)
        return {**self._reconstruct.score(made), **self._fills[key]}, made


def mean_figures(cases: Mapping[str, Figures]) -> Figures:
    """The mean of each figure over the cases, taken in the order of their names."""
    names = sorted(cases)
    return {key: nanmean([cases[name][key] for name in names]) for key in cases[names[0]]}


def _picture(made: Reconstruction) -> NDArray[np.float32]:
    """The middle axial slice: the volume, what the network was shown of it, and what it gave."""
    depth = made.image.shape[-1] // 2
    return reconstruction_strip(*(volume[0, :, :, depth].numpy() for volume in (made.image, made.masked, made.output)))
