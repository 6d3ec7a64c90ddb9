"""The base of the networks of masked pre-training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fusionseg.config.pretraining import PretrainConfig
from fusionseg.models.masked.decoder import linear_prior


class MaskedNetwork(nn.Module):
    """A network that reconstructs volumes with hidden blocks: `encode`, `decode`, and the prior.

    With `pretrain.prior: linear`, a subclass sets the weights of its last layer to 0.

    Args:
        pretrain: `pretrain` section.
    """

    def __init__(self, pretrain: PretrainConfig) -> None:
        super().__init__()
        self.method = pretrain.method
        self.has_prior = pretrain.prior == "linear"

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruct all voxels.

        Args:
            image: (B, C, X, Y, Z).
            hidden: hidden blocks (B, gx, gy, gz), True for hidden.

        Returns:
            (B, C, X, Y, Z).
        """
        volume = self.decode(self.encode(image, hidden), hidden)
        return volume + linear_prior(image, hidden) if self.has_prior else volume

    def encode(self, image: Tensor, hidden: Tensor) -> Any:
        """Return the output of the encoder, whose input has no hidden voxels."""
        raise NotImplementedError

    def decode(self, states: Any, hidden: Tensor) -> Tensor:
        """Reconstruct the volume (B, C, X, Y, Z) from the output of `encode`, without the prior."""
        raise NotImplementedError
