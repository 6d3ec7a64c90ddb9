"""Validation of a pre-training: whole volumes whose hidden voxels the network fills in, divided over the ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fusionseg.config import RunConfig
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.observability.pictures import reconstruction_strip
from fusionseg.observability.progress import with_progress
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.reconstruction import Reconstruction, ReconstructionScores, Reconstructor, cover
from fusionseg.training.tasks.task import ValidationResult
from fusionseg.utils.means import nanmean


class ReconstructionValidator:
    """Scores a network on whole volumes whose hidden voxels it fills in.

    Two simple fills are scored for comparison: the mean of the visible voxels, and linear interpolation between them.
    See `Reconstructor.score_fill_ins`.
    """

    def __init__(self, config: RunConfig, data: TrainingData, precision: Precision, world: World) -> None:
        self.data = data
        self.world = world
        self._reconstruct = Reconstructor(
            config, precision, world.device, fills_batches=config.train.compile is not False
        )
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
