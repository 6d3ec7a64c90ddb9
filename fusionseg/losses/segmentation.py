"""Segmentation losses of logits (B, K, X, Y, Z) and labels (B, 1, X, Y, Z), at one or several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from fusionseg.config.parts.sections import LossSection

Logits = Tensor | Sequence[Tensor]
"""Logits (B, K, X, Y, Z); with deep supervision a sequence of logits, full resolution first."""
Loss = Callable[[Logits, Tensor], Tensor]
"""(logits of any floating type, labels int64 at full resolution) -> float32 scalar."""


def build_loss(config: LossSection) -> Loss:
    """Build the loss that the `loss` section names. The loss is the mean over a micro-batch.

    It is computed in float32 for logits of any type, because sums over a volume exceed the range of float16. With deep
    supervision it is the mean over the resolutions with weights 1, 1/2, 1/4, ... (Isensee et al., 2021, methods,
    doi:10.1038/s41592-020-01008-z); the label is resampled to each resolution.
    """
    single_resolution_loss = config.build()

    # MONAI's DeepSupervisionLoss accepts no integer labels, and the sum of its weights is not 1.
    def loss(logits: Logits, label: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return single_resolution_loss(logits.float(), label)
        weights = [0.5**level for level in range(len(logits))]
        total = sum(
            weight * single_resolution_loss(part.float(), label_at(label, part.shape[2:]))
            for weight, part in zip(weights, logits, strict=True)
        )
        assert isinstance(total, Tensor)
        return total / sum(weights)

    return loss


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a label to another resolution; each voxel takes the class of the nearest voxel centre.

    Args:
        label: class indices (B, 1, X, Y, Z).
        size: the new X, Y, Z.
    """
    if label.shape[2:] == tuple(size):
        return label
    # interpolate accepts no int64. float32 represents class indices up to 2**24 exactly.
    return F.interpolate(label.float(), size=tuple(size), mode="nearest-exact").long()
