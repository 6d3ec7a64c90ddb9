"""Batch norm whose statistics are those of all ranks' micro-batches together, on GPUs and on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> int:
    """Make every batch norm in `model`, in place, one over all ranks; returns how many. The state's keys stay."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if device.type == "cpu":  # where torch 2.13 refuses its own
        for layer in layers:
            layer.__class__ = _HostSyncBatchNorm  # the same parameters and settings, with another forward pass
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return len(layers)


class _HostSyncBatchNorm(_BatchNorm):
    """A batch norm over all ranks by plain operations and gloo."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of one to three dimensions, as the layer that it was

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = x.numel() // x.shape[1] * dist.get_world_size()  # every rank has as many samples
        # Two sums, one after the other: the mean of squares less the square of the mean would lose digits.
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
    """The sum of every rank's tensor; each rank's loss depends on all of them, so gradients sum up too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total
