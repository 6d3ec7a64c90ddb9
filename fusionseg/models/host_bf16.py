"""A way around a fault of CPU convolutions in bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def guard_host_convolutions(model: nn.Module) -> None:
    """Have a network's convolutions compute in fp32, on a CPU, where bf16 would corrupt their gradients. In place.

    In torch 2.13 (oneDNN, avx512_bf16) the weight gradient of a 3D convolution in bf16 is wrong, infinite, or written
    beyond its memory, if the first axis has more than one voxel and fewer than the kernel: maps of 2 voxels under a
    kernel of 3, such as the bottleneck of Swin UNETR on a patch of 64. Such maps are small: fp32 costs nothing there.
    """
    for module in model.modules():
        if type(module) is nn.Conv3d and module.kernel_size[0] > 2:
            module.__class__ = _GuardedConv3d  # the same parameters and settings, with another forward pass


class _GuardedConv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        if 1 < input.shape[2] < self.kernel_size[0] and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(input)
