"""Loss of a masked reconstruction: SSIM, L1 and L2, over all voxels or over the hidden ones.

Volumes are (B, C, X, Y, Z); hidden voxels are (B, 1, X, Y, Z), True where the network was not shown the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionseg.config.pretraining import ReconstructionLossConfig
from fusionseg.metrics.reconstruction import full_precision, ssim_map
from fusionseg.models.masked.hidden_voxels import blocks_to_voxels, composite


class ReconstructionLoss:
    """The weighted sum of 1 - SSIM, the mean absolute and the mean squared difference that a configuration names.

    Over all voxels it judges what the network gives, the visible voxels too, as the thesis does. Over the masked ones
    it judges the composite: the SSIM of a hidden voxel looks at its neighbours, and those that were visible are to be
    the image's own, whatever the network says of them.

    Args:
        data_range: of the intensities, for SSIM.
        limits: lowest and highest intensity there is, if that is known; see `within`.
    """

    def __init__(
        self, config: ReconstructionLossConfig, data_range: float, limits: tuple[float, float] | None = None
    ) -> None:
        self.config = config
        self.data_range = data_range
        self.limits = limits

    def __call__(self, reconstruction: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """The mean over the micro-batch, in float32 also under autocast.

        Args:
            target: the image, and the hidden blocks (B, gx, gy, gz); each sample hides as many.
        """
        image, hidden = target
        voxels: Tensor | None = None
        with full_precision(image.device):
            image, reconstruction = image.float(), within(reconstruction.float(), self.limits)
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


def within(reconstruction: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """The reconstruction clamped to the lowest and highest intensity.

    In a window most of a CT is exactly its lower or upper end, and SSIM is strict about noise where nothing is. The
    gradient passes as if nothing were clamped: what lies beyond a limit and belongs inside is still pulled back.
    """
    if limits is None:
        return reconstruction
    return reconstruction + (reconstruction.clamp(*limits) - reconstruction).detach()


def _mean(x: Tensor, over: Tensor | None) -> Tensor:
    """Mean of each sample, (B,), over all voxels or over some."""
    if over is None:
        return x.flatten(1).mean(1)
    return torch.where(over, x, 0).flatten(1).sum(1) / (over.flatten(1).sum(1) * x.shape[1])
