"""Losses over logits (B, K, X, Y, Z) and labels (B, 1, X, Y, Z): MONAI's, chosen by the configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor

from fusionseg.config import LossConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(config: LossConfig) -> Loss:
    """The loss of a configuration; it gives the mean over the micro-batch."""
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
