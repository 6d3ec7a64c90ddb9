"""The focal loss with softmax."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, label: Tensor, gamma: float) -> Tensor:
    """Compute the focal loss with softmax (Lin et al., 2017, section 3.2, arXiv:1708.02002).

    Args:
        logits: (B, K, X, Y, Z), float32.
        label: class indices (B, 1, X, Y, Z), int64.
        gamma: focusing parameter; 0 is the cross-entropy, higher values reduce the weight of easy voxels.
    """
    cross_entropy = F.cross_entropy(logits, label.squeeze(1), reduction="none")
    return ((1 - (-cross_entropy).exp()) ** gamma * cross_entropy).mean()
