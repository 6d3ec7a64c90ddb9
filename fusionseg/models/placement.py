"""Preparation of a network for its device: channels-last weights, and the kernels of convolutions on CPUs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fusionseg.models.device_kind import device_kind

_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVERTING_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)


def uses_channels_last(setting: bool | Literal["auto"], model: nn.Module, device_type: str) -> bool:
    """Tell whether a network and its images are kept in channels-last memory format.

    `auto` is true on a CPU, where convolutions are faster in this format. On a GPU it is true if all norms of the
    network keep the format. torch's kernels of instance norm and group norm on a GPU do not: they copy every map to the
    contiguous format, and the next convolution copies it back. That this costs more than the format gains has not been
    measured on a GPU.

    Args:
        setting: `train.channels_last`.
        model: the network, on any device.
        device_type: "cpu" or "cuda".
    """
    if setting == "auto":
        return device_type == "cpu" or not _has_converting_norm(model)
    return setting


def set_memory_format_(model: nn.Module, setting: bool | Literal["auto"], device_type: str) -> bool:
    """Change the memory format of a network's weights in place; return whether its images are channels-last too.

    Blocks that keep the channels-last format (`keeps_channels_last`) compute in it whatever the setting is, so that
    their weights always have it. Else each convolution would convert its weight, and the gradient of the weight back.

    Args:
        model: the network.
        setting: `train.channels_last`.
        device_type: "cpu" or "cuda".
    """
    channels_last = uses_channels_last(setting, model, device_type)
    for module in [model] if channels_last else model.modules():
        if channels_last or getattr(module, "keeps_channels_last", False):
            channels_last_(module)
    return channels_last


def _has_converting_norm(module: nn.Module) -> bool:
    """Tell whether there is such a norm outside of the blocks that keep the format (`keeps_channels_last`)."""
    if getattr(module, "keeps_channels_last", False):
        return False
    return isinstance(module, _CONVERTING_NORMS) or any(map(_has_converting_norm, module.children()))


def channels_last_(model: nn.Module) -> None:
    """Change the weights of all 2D and 3D convolutions to channels-last memory format, in place.

    `model.to(memory_format=...)` supports one of the two dimensions and raises an exception on weights of the other.
    """
    for parameter in model.parameters():
        if memory_format := _MEMORY_FORMATS.get(parameter.dim()):
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def guard_cpu_convolutions_(model: nn.Module) -> None:
    """Make 3D convolutions compute in float32 on a CPU where bfloat16 gives wrong results, in place.

    Two faults of torch 2.13 (oneDNN) are known:

    - avx512_bf16: if the first axis of the map has more than one voxel and fewer voxels than the kernel, the weight
      gradient is wrong or infinite, or is written outside of its memory. An example is the bottleneck of Swin UNETR on
      patches of 64: 2 voxels, kernel 3. Such maps are small, so that float32 costs nothing.
    - amx_bf16: if the stride equals the kernel, as in the patch embedding of a ViT or Swin transformer, the output is
      wrong for some shapes of the map (values up to 1e37). Such convolutions are a small part of their networks.
    """
    for module in model.modules():
        if type(module) is nn.Conv3d and (module.kernel_size[0] > 2 or _is_patch_embedding(module)):
            module.__class__ = GuardedConv3d  # the same parameters and settings, with another forward method


class GuardedConv3d(nn.Conv3d):
    """A 3D convolution that computes in float32 where bfloat16 gives wrong results on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        thin = 1 < input.shape[2] < self.kernel_size[0]
        if (thin or _is_patch_embedding(self)) and device_kind(input) == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(input)


class DirectConv3d(GuardedConv3d):
    """A 3D convolution for a prediction on a CPU, which takes oneDNN for a batch of one window too.

    torch (2.13) takes its own kernel if a batch of one has at most 20480 rows of voxels (channels times the first two
    axes), which is up to nine times slower. A training is left as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_direct(input):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    def _is_direct(self, input: Tensor) -> bool:
        single = input.dim() == 5 and len(input) == 1  # four axes are a window without a batch
        plain = type(input) is Tensor and input.dtype == self.weight.dtype == torch.float32 and single
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        changed = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or traced
        return plain and not changed and input.device.type == "cpu"


def direct_cpu_convolutions_(model: nn.Module) -> None:
    """Make the 3D convolutions of a network that only predicts take oneDNN on a CPU, in place; see `DirectConv3d`."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) not in (nn.Conv3d, GuardedConv3d):
            continue
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = DirectConv3d


def _is_patch_embedding(module: nn.Conv3d) -> bool:
    """Tell whether the stride equals the kernel, and the kernel is larger than one voxel."""
    return module.stride == module.kernel_size and max(module.kernel_size) > 1
