"""A way around faults of CPU convolutions in bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def guard_host_convolutions(model: nn.Module) -> None:
    """Have a network's convolutions compute in fp32, on a CPU, where bf16 would give wrong numbers. In place.

    Seen in torch 2.13 (oneDNN), of 3D convolutions:

    - With avx512_bf16, the weight gradient is wrong, infinite, or written beyond its memory, if the first axis has more
      than one voxel and fewer than the kernel: maps of 2 voxels under a kernel of 3, such as the bottleneck of Swin
      UNETR on a patch of 64. Such maps are small: fp32 costs nothing there.
    - With amx_bf16, the output is wrong, up to 1e37, if the stride is the kernel: the patch embedding of a ViT or a
      Swin transformer. It depends on the map's shape. Such convolutions are a small part of their networks.
    """
    for module in model.modules():
        if type(module) is nn.Conv3d and (module.kernel_size[0] > 2 or _is_patch_embedding(module)):
            module.__class__ = _GuardedConv3d  # the same parameters and settings, with another forward pass


class _GuardedConv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        thin = 1 < input.shape[2] < self.kernel_size[0]
        if (thin or _is_patch_embedding(self)) and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(input)


def _is_patch_embedding(module: nn.Conv3d) -> bool:
    """Whether the kernels do not overlap: as large as the stride, and larger than a voxel."""
    return module.stride == module.kernel_size and max(module.kernel_size) > 1
