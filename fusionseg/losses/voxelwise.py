"""Dice, cross-entropy and focal loss of voxels that may be without annotation, with softmax or sigmoid outputs.

The loss of each sample and channel is a mean over its annotated voxels, and 0 if it has none. The result is the mean
over all samples and channels. So the gradient of a channel depends neither on the other channels that its case
annotates nor on the division of the global batch into micro-batches.

Logits and targets are 0 where the mask is False (`fusionseg.losses.segmentation` sets them), and these voxels are left
out of all sums and counts. The loss and its gradient therefore do not depend on them, bit for bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1e-5
"""Added to numerator and denominator of the Dice, as in MONAI."""
SPACE = (2, 3, 4)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of each sample and channel over its annotated voxels, (B, C); 0 where there is none.

    Args:
        values: (B, C, X, Y, Z).
        mask: bool (B, 1 or C, X, Y, Z), True for annotated; None for all.
    """
    if mask is None:
        return values.mean(dim=SPACE)
    return torch.where(mask, values, 0).sum(dim=SPACE) / mask.sum(dim=SPACE).clamp(min=1)


def dice_loss(
    probability: Tensor, target: Tensor, mask: Tensor | None, *, squared: bool = False, batch: bool = False
) -> Tensor:
    """Compute 1 - Dice, the mean over samples and channels (formula of MONAI's `DiceLoss`).

    A channel of a sample without annotated voxels has a loss of 0.

    Args:
        probability: (B, C, X, Y, Z).
        target: (B, C, X, Y, Z), 0 or 1.
        mask: bool (B, 1 or C, X, Y, Z), True for annotated; None for all.
        squared: square the terms of the denominator (Milletari et al., 2016, section 3).
        batch: sum over the samples of the micro-batch before the division.
    """
    if mask is not None:
        probability, target = torch.where(mask, probability, 0), torch.where(mask, target, 0)
    dims = (0, *SPACE) if batch else SPACE
    both = (probability * target).sum(dim=dims)
    sizes = probability.square() if squared else probability
    total = sizes.sum(dim=dims) + target.sum(dim=dims)  # the square of 0 or 1 is itself
    return (1 - (2 * both + SMOOTHING) / (total + SMOOTHING)).mean()


def softmax_cross_entropy(logits: Tensor, label: Tensor, mask: Tensor | None, gamma: float = 0.0) -> Tensor:
    """Compute the cross-entropy with softmax, or the focal loss (Lin et al., 2017, section 3.2, arXiv:1708.02002).

    Args:
        logits: (B, K, X, Y, Z), float32.
        label: class indices (B, 1, X, Y, Z), int64.
        mask: bool (B, 1, X, Y, Z), True for annotated; None for all.
        gamma: focusing parameter; 0 is the cross-entropy.
    """
    values = _focused(F.cross_entropy(logits, label.squeeze(1), reduction="none"), gamma)
    return values.mean() if mask is None else masked_mean(values.unsqueeze(1), mask).mean()


def binary_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None, gamma: float = 0.0) -> Tensor:
    """Compute the cross-entropy of each channel with a sigmoid, or the focal loss.

    Args:
        logits: (B, C, X, Y, Z), float32.
        target: (B, C, X, Y, Z), 0 or 1, float32.
        mask: bool (B, 1 or C, X, Y, Z), True for annotated; None for all.
        gamma: as in `softmax_cross_entropy`.
    """
    values = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(_focused(values, gamma), mask).mean()


def one_hot(label: Tensor, logits: Tensor) -> Tensor:
    """Return the membership of each class, 0 or 1, of the shape and type of the logits.

    Args:
        label: class indices (B, 1, X, Y, Z), int64.
        logits: (B, K, X, Y, Z).
    """
    return torch.zeros_like(logits).scatter_(1, label, 1.0)  # F.one_hot takes eight bytes a value


def _focused(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Weight the cross-entropy of each voxel by (1 - probability of the truth) ** gamma."""
    if not gamma:
        return cross_entropy
    wrong = 1 - (-cross_entropy).exp()
    if gamma < 1:  # the slope of the power is infinite at 0, where a voxel is certain
        wrong = wrong.clamp(min=torch.finfo(wrong.dtype).eps)
    return wrong**gamma * cross_entropy
