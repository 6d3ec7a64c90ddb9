"""Losses over logits (B, K, X, Y, Z) and labels (B, 1, X, Y, Z): MONAI's, chosen by the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor

from fusionseg.config import LossConfig

Logits = Tensor | Sequence[Tensor]
"""One tensor; or those of deep supervision, the full resolution first, each at its own."""
Loss = Callable[[Logits, Tensor], Tensor]
"""Logits in any floating type and labels int64 at full resolution -> a float32 scalar."""


def build_loss(config: LossConfig) -> Loss:
    """The loss of a configuration; it gives the mean over the micro-batch.

    It computes in float32, whatever type the logits have: sums over a volume leave float16's range. Of several
    logits it gives the mean with weights 1, 1/2, 1/4, ... (Isensee et al., 2021, doi:10.1038/s41592-020-01008-z,
    methods), each against the label at its own resolution.
    """
    at_one_resolution = _build(config)

    # MONAI's DeepSupervisionLoss takes no integer labels, and its weights do not sum to 1.
    def loss(logits: Logits, label: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return at_one_resolution(logits.float(), label)
        weights = [0.5**level for level in range(len(logits))]
        total = sum(
            weight * at_one_resolution(part.float(), label_at(label, part.shape[2:]))
            for weight, part in zip(weights, logits, strict=True)
        )
        assert isinstance(total, Tensor)
        return total / sum(weights)

    return loss


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """The label (B, 1, X, Y, Z) at another resolution: in each voxel the class nearest to its centre."""
    if label.shape[2:] == tuple(size):
        return label
    # interpolate knows no integers of 64 bits
    return F.interpolate(label.float(), size=tuple(size), mode="nearest-exact").long()


def _build(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    if config.name == "cross_entropy":
        return lambda logits, label: F.cross_entropy(logits, label.squeeze(1))
    dice = {
        "include_background": config.include_background,
        "to_onehot_y": True,
        "softmax": True,
        "squared_pred": config.squared,
        "batch": config.batch_dice,
    }
    if config.name == "dice":
        return DiceLoss(**dice)
    if config.name == "dice_focal":
        # Not MONAI's DiceFocalLoss: its focal part takes the classes for independent, by a sigmoid each.
        overlap = DiceLoss(**dice)
        return lambda logits, label: overlap(logits, label) + focal_loss(logits, label, config.gamma)
    return DiceCELoss(**dice)


def focal_loss(logits: Tensor, label: Tensor, gamma: float) -> Tensor:
    """Cross-entropy that counts easy voxels less (Lin et al., 2017, arXiv:1708.02002); gamma 0 is cross-entropy."""
    cross_entropy = F.cross_entropy(logits, label.squeeze(1), reduction="none")
    return ((1 - (-cross_entropy).exp()) ** gamma * cross_entropy).mean()
