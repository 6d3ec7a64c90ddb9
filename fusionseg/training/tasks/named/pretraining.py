"""The task of pre-training: the network fills in hidden blocks of its input, and the score is the SSIM."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from fusionseg.config.parts.task import TaskInfo
from fusionseg.config.registry import tasks
from fusionseg.training.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fusionseg.config import RunConfig
    from fusionseg.distributed.world import World
    from fusionseg.training.data import TrainingData
    from fusionseg.training.precision import Precision
    from fusionseg.training.tasks.task import BatchFunction, Inputs, Loss, ValidationFunction


@tasks.register("pretraining")
class Pretraining(Task):
    """Masked pre-training of an encoder, on images with or without labels."""

    info = TaskInfo("pre-training", score="ssim", evaluation="reconstruction")

    def __init__(self, config: RunConfig) -> None:
        from fusionseg.training.tasks.reconstruction import pretrain_section

        super().__init__(config)
        self.pretrain = pretrain_section(config)
        self.patch = config.data.patch
        self.grid = self.pretrain.grid(self.patch)

    def build_network(self, in_channels: int, out_channels: int, *, checkpoint_activations: bool = False) -> nn.Module:
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
        from fusionseg.training.tasks.reconstruction import data_range, intensity_limits

        return ReconstructionLoss(self.pretrain.loss, data_range(self.config), intensity_limits(self.config))

    def example(self, in_channels: int) -> tuple[Inputs, tuple[Tensor, Tensor]]:
        """Inputs and target are both (image (B, C, X, Y, Z), hidden blocks (B, gx, gy, gz)); see `Task.example`."""
        import torch

        batch = self.config.train.micro_batch_samples
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
        import numpy as np

        from fusionseg.data.loading.counter_random import hidden_blocks
        from fusionseg.data.loading.purposes import Purpose
        from fusionseg.data.loading.transfer import send

        count = self.pretrain.num_hidden(self.patch)
        masks = [
            hidden_blocks(self.config.seed, step, k, Purpose.HIDDEN, prod(self.grid), count).reshape(self.grid)
            for k in indices
        ]
        return send(np.stack(masks), device)

    def build_validation(self, data: TrainingData, precision: Precision, world: World) -> ValidationFunction:
        """Reconstruct the validation volumes; the score is the mean over the cases of the SSIM of whole volumes."""
        from fusionseg.training.tasks.reconstruction_validation import ReconstructionValidator

        return ReconstructionValidator(self.config, data, precision, world)

    def outdated_scores(self, checkpoint: Mapping[str, Any]) -> str | None:
        """Refuse the scores of a checkpoint without `grid`: they are means over patches instead of whole volumes."""
        if "grid" in checkpoint:
            return None
        return (
            "its validations were scored patch by patch by an older version, and cannot be compared with those of"
            " whole volumes"
        )
