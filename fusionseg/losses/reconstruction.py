"""Loss of a masked reconstruction: SSIM, L1 and L2, over all voxels or over the hidden voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from fusionseg.config.pretraining import ReconstructionLossConfig
from fusionseg.metrics.reconstruction import autocast_disabled, ssim_map
from fusionseg.models.masked.masking import blocks_to_voxels, composite


class ReconstructionLoss:
    """Weighted sum of 1 - SSIM, the mean absolute difference and the mean squared difference.

    `over: all` compares the network's output with the image at every voxel, visible voxels included, as the thesis
    does (Dhar, 2023). `over: masked` averages over the hidden voxels. There the visible voxels of the output are
    replaced by those of the image first, because the SSIM of a hidden voxel depends on its neighbours.

    Args:
        config: weights of the three terms and the voxels to average over.
        data_range: highest minus lowest possible intensity, for SSIM.
        limits: lowest and highest possible intensity, if known; the output is clamped to them, see
            `clamp_straight_through`.
    """

    def __init__(
        self, config: ReconstructionLossConfig, data_range: float, limits: tuple[float, float] | None = None
    ) -> None:
        self.config = config
        self.data_range = data_range
        self.limits = limits

    def __call__(self, reconstruction: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a micro-batch: a float32 scalar, under autocast too.

        Args:
            reconstruction: the network's output (B, C, X, Y, Z).
            target: the image (B, C, X, Y, Z) and the hidden blocks (B, gx, gy, gz), True for hidden; every sample has
                the same number of hidden blocks.
        """
        image, hidden = target
        voxels: Tensor | None = None
        with autocast_disabled(image.device):
            image, reconstruction = image.float(), clamp_straight_through(reconstruction.float(), self.limits)
            if self.config.over == "masked":
                voxels = blocks_to_voxels(hidden, image.shape[2:])
                reconstruction = composite(reconstruction, image, voxels)
            difference = reconstruction - image
            loss = torch.zeros((), device=image.device)
            if self.config.ssim:
                similarity = ssim_map(reconstruction, image, self.data_range)
                loss = loss + self.config.ssim * (1 - _mean(similarity, voxels).mean())
            if self.config.l1:
                loss = loss + self.config.l1 * _mean(difference.abs(), voxels).mean()
            if self.config.l2:
                loss = loss + self.config.l2 * _mean(difference.square(), voxels).mean()
        return loss


def clamp_straight_through(reconstruction: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Clamp a reconstruction to the possible intensities, with the gradient of the identity.

    After clipping to an intensity range, most voxels of a CT are exactly at the lower or upper limit. SSIM penalises
    small noise in such constant regions; clamping removes it. The gradient is passed on unchanged (straight-through
    estimator; Bengio et al., 2013, arXiv:1308.3432), so that values beyond a limit still move towards their targets.

    Args:
        reconstruction: any shape.
        limits: lowest and highest possible intensity; None does not clamp.
    """
    if limits is None:
        return reconstruction
    return reconstruction + (reconstruction.clamp(*limits) - reconstruction).detach()


def _mean(x: Tensor, over: Tensor | None) -> Tensor:
    """Return the mean of each sample, (B,), over all voxels or over those that are True in (B, 1, X, Y, Z)."""
    if over is None:
        return x.flatten(1).mean(1)
    return torch.where(over, x, 0).flatten(1).sum(1) / (over.flatten(1).sum(1) * x.shape[1])
