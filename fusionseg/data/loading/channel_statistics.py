"""Statistics of each channel of each image, the same for any micro-batch and any number of threads.

A sum over all voxels at once has an order of additions that depends on the size of the batch and on the threads, so its
last bits do too. Here each axis is summed separately: every sum is short, and is done by one thread.
"""

from __future__ import annotations

from torch import Tensor

_VOXELS = (2, 3, 4)


def channel_mean(image: Tensor) -> Tensor:
    """The mean of each channel.

    Args:
        image: (B, C, X, Y, Z).

    Returns:
        (B, C, 1, 1, 1).
    """
    return image.sum(4, keepdim=True).sum(3, keepdim=True).sum(2, keepdim=True).div_(image[0, 0].numel())


def centre_(image: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from each channel its mean, in place.

    Args:
        image: (B, C, X, Y, Z).

    Returns:
        The means and the standard deviations, (B, C, 1, 1, 1) each.
    """
    mean = channel_mean(image)
    image.sub_(mean)
    lines = image.norm(dim=4, keepdim=True)  # of the squares along an axis, without a buffer for them
    return mean, channel_mean(lines.square_()).div_(image.shape[4]).sqrt_()


def channel_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each channel, (B, C, 1, 1, 1) each.

    Args:
        image: (B, C, X, Y, Z).
    """
    return image.amin(_VOXELS, keepdim=True), image.amax(_VOXELS, keepdim=True)
