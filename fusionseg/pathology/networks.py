"""Networks for tiles: a small residual network, and the way from volumes of one slice to a 2D network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class TileNet(nn.Module):
    """A small residual network of 2D images (He et al., 2016), with group norm (Wu and He, 2018) as its normalisation.

    Group norm depends on no other image of the batch. So the training is the same with any micro-batch.

    Args:
        in_channels: channels of the images.
        out_channels: number of classes.
        channels: channels of each stage. Each stage halves the resolution, and the first convolution halves it too.
        blocks: residual blocks in each stage.
        dropout: share of the pooled features that is hidden in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], 5, stride=2, padding=2, bias=False), _norm(channels[0]), nn.ReLU()
        )
        layers: list[nn.Module] = []
        width = channels[0]
        for stage, wider in enumerate(channels):
            for block in range(blocks):
                layers.append(_Residual(width, wider, stride=2 if block == 0 and stage else 1))
                width = wider
        self.stages = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, out_channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, X, Y)."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits


class OfSlices(nn.Module):
    """A 2D network for volumes (B, C, X, Y, 1) of one slice.

    Args:
        network: maps images (B, C, X, Y) to logits (B, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits (B, K) of volumes (B, C, X, Y, 1)."""
        logits: Tensor = self.network(volumes.squeeze(-1))
        return logits


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            _norm(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            _norm(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), _norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def _norm(channels: int) -> nn.GroupNorm:
    """Group norm of eight groups, or of fewer where eight do not divide the channels."""
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)
