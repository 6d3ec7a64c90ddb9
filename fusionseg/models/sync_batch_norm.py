"""Batch norm with statistics over the micro-batches of all ranks, on GPUs and on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> int:
    """Replace every batch norm of a network, in place, by one over all ranks. The keys of the state dict stay.

    Args:
        model: the network.
        device: the device on which it runs.

    Returns:
        the number of batch norms.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if device.type == "cpu":  # torch 2.13 supports SyncBatchNorm on GPUs only
        for layer in layers:
            layer.__class__ = _CpuSyncBatchNorm  # the same parameters and settings, with another forward method
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return len(layers)


class _CpuSyncBatchNorm(_BatchNorm):
    """Batch norm over all ranks, with plain operations and all-reduce over gloo."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # BatchNorm1d, 2d and 3d are replaced by this class: any number of dimensions is accepted

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = x.numel() // x.shape[1] * dist.get_world_size()  # all ranks have the same number of samples
        # The variance needs a second all-reduce: the mean of squares minus the square of the mean would lose digits.
        mean = _SumOverRanks.apply(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Sum of the tensors of all ranks. The loss of every rank depends on all tensors, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total
