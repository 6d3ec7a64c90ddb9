"""The task of pre-training: the network fills in hidden blocks of its input, and the score is the SSIM."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.config.parts.task import PRETRAINING
from fusionseg.data.loading.counter_random import Purpose, hidden_blocks
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.pictures import reconstruction_strip
from fusionseg.observability.progress import with_progress
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.reconstruction import (
    Reconstruction,
    ReconstructionScores,
    Reconstructor,
    cover,
    data_range,
    intensity_limits,
    pretrain_section,
)
from fusionseg.training.tasks.task import BatchFunction, Inputs, Loss, Task, ValidationFunction, ValidationResult


class Pretraining(Task):
    """Masked pre-training of an encoder, on images with or without labels."""

    info = PRETRAINING

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.pretrain = pretrain_section(config)
        self.patch = config.data.patch
        self.grid = self.pretrain.grid(self.patch)

    def build_network(self, in_channels: int, num_classes: int, *, checkpoint_activations: bool = False) -> nn.Module:
        """Build the encoder of the `model` section and a decoder; see `build_masked` for inputs and output."""
        from fusionseg.models.masked import build_masked

        return build_masked(
            self.config.model,
            self.pretrain,
            in_channels=in_channels,
            patch=self.patch,
            checkpoint_activations=checkpoint_activations,
        )

    def build_loss(self) -> Loss:
        """Build the loss of the section `pretrain.loss`."""
        from fusionseg.losses.reconstruction import ReconstructionLoss

        return ReconstructionLoss(self.pretrain.loss, data_range(self.config), intensity_limits(self.config))

    def example(self, in_channels: int) -> tuple[Inputs, tuple[Tensor, Tensor]]:
        """Inputs and target are both (image (B, C, X, Y, Z), hidden blocks (B, gx, gy, gz)); see `Task.example`."""
        batch = self.config.train.micro_batch
        image = torch.empty(batch, in_channels, *self.patch)
        hidden = torch.zeros(batch, *self.grid, dtype=torch.bool)
        return (image, hidden), (image, hidden)

    def build_batches(self, data: TrainingData, world: World) -> BatchFunction:
        """Inputs and target are both (image (B, C, X, Y, Z), hidden blocks (B, gx, gy, gz)).

        The network uses the visible blocks of the image only, the loss uses all of it.
        """

        def batch(step: int, indices: range) -> tuple[Inputs, tuple[Tensor, Tensor]]:
            image, _ = data.batch(step, indices)
            hidden = self._hidden(step, indices, world.device)
            return (image, hidden), (image, hidden)

        return batch

    def _hidden(self, step: int, indices: range, device: torch.device) -> Tensor:
        """Draw the hidden blocks (B, gx, gy, gz) of samples of a step: bool, True for hidden, on the device."""
        count = self.pretrain.num_hidden(self.patch)
        masks = [
            hidden_blocks(self.config.seed, step, k, Purpose.HIDDEN, prod(self.grid), count).reshape(self.grid)
            for k in indices
        ]
        hidden = torch.from_numpy(np.stack(masks))
        return hidden.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else hidden

    def build_validation(self, data: TrainingData, precision: Precision, world: World) -> ValidationFunction:
        """Reconstruct the validation volumes; the score is the mean over the cases of the SSIM of whole volumes."""
        return ReconstructionValidator(self.config, data, precision, world)

    def outdated_scores(self, checkpoint: Mapping[str, Any]) -> str | None:
        """Refuse the scores of a checkpoint without `grid`: they are means over patches instead of whole volumes."""
        if "grid" in checkpoint:
            return None
        return (
            "its validations were scored patch by patch by an older version, and cannot be compared with those of"
            " whole volumes"
        )


class ReconstructionValidator:
    """Scores a network on whole volumes whose hidden voxels it fills in.

    Two simple fills are scored for comparison: the mean of the visible voxels, and linear interpolation between them.
    See `Reconstructor.score_fill_ins`.
    """

    def __init__(self, config: RunConfig, data: TrainingData, precision: Precision, world: World) -> None:
        self.data = data
        self.world = world
        self._reconstruct = Reconstructor(config, precision, world.device)
        self._fill_scores: dict[str, ReconstructionScores] = {}
        tiles = {
            index: len(cover(data.cache.records[index].shape, config.data.patch)) for index in data.validation_cases
        }
        self._own = assign_to_ranks(tiles, world.size)[world.rank]

    def __call__(self, model: nn.Module) -> ValidationResult:
        """Score a network, which is in evaluation mode and not wrapped by DDP. All ranks call it."""
        own: dict[str, ReconstructionScores] = {}
        picture: NDArray[np.float32] | None = None
        for index in with_progress("validating", self._own, shown=self.world.is_rank_zero):
            scores, made = self._score(model, index)
            own[self.data.cache.names[index]] = scores
            picture = _picture(made) if index == self.data.validation_cases[0] else picture
        gathered = self.world.all_gather_object(own)
        means = _means({name: scores for part in gathered for name, scores in part.items()})
        return ValidationResult(
            score=means["ssim"],
            fields={**means, "cases": len(self.data.validation_cases), "grid": "prepared"},
            summary=f"SSIM {means['ssim']:.4f}, PSNR {means['psnr']:.2f} dB on the prepared grid (filled with the"
            f" mean {means['ssim_mean_fill']:.4f}, by interpolation {means['ssim_linear_fill']:.4f})",
            picture=picture,
        )

    def _score(self, model: nn.Module, index: int) -> tuple[ReconstructionScores, Reconstruction]:
        cache, record = self.data.cache, self.data.cache.records[index]
        # `record.name` is the name in the case's own data set. It does not depend on further data sets. So the hidden
        # blocks do not depend on them either.
        made = self._reconstruct(model, cache.volume(index)[0], record.background, record.name)
        key = cache.names[index]
        if key not in self._fill_scores:
            self._fill_scores[key] = self._reconstruct.score_fill_ins(made, record.background, record.name)
        return {**self._reconstruct.score(made), **self._fill_scores[key]}, made


def _means(cases: Mapping[str, ReconstructionScores]) -> ReconstructionScores:
    """The mean of each score over the cases, taken in the order of their names."""
    names = sorted(cases)
    return {key: nanmean([cases[name][key] for name in names]) for key in cases[names[0]]}


def _picture(made: Reconstruction) -> NDArray[np.float32]:
    """Draw the middle axial slice of the volume, of its visible voxels, and of the network's output."""
    depth = made.image.shape[-1] // 2
    return reconstruction_strip(*(volume[0, :, :, depth].numpy() for volume in (made.image, made.masked, made.output)))
