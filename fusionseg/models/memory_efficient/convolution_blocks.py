"""The convolution blocks of Swin UNETR, made to keep little for the backward pass.

MONAI's `UnetResBlock` keeps, for every convolution, its input and its output: the output is what instance norm wants
to see again. But norm and activation can be undone from their own result, which the next convolution keeps anyway (S.
Rota Bulo et al., "In-Place Activated BatchNorm", 2018, arXiv:1712.02616): leaky ReLU is invertible, and an instance
norm without affine needs only the normalised values and their scale. A projected shortcut (a 1 x 1 x 1 convolution)
and the decoder's concatenated input are computed again. So a block keeps two maps instead of five or seven.

Maps are channels last in memory (`torch.channels_last_3d`), where the voxels of a map are the rows of a matrix:
norms, 1 x 1 x 1 convolutions and up-sampling are operations on that.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusionseg.models.memory_efficient.arithmetic import add_product, as_written, sum_dtype, working_dtype
from fusionseg.models.memory_efficient.decoder_input import assemble, assemble_grads
from fusionseg.models.memory_efficient.instance_norm import affine, finish, norm_of, rows_of, split_grad, undo_grad


class ResidualBlock(nn.Module):
    """MONAI's residual block as in Swin UNETR: the same function and state dict.

    Two convolutions without bias, each with an instance norm without affine, leaky ReLU after the first and after the
    sum with the shortcut, which is the input or, if the channels differ, a normalised 1 x 1 x 1 convolution of it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both convolutions, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.layer = _res_block(in_channels, out_channels, kernel_size)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z), channels last in memory."""
        return _apply(self.layer, (x_BCXYZ,))


class UpBlock(nn.Module):
    """MONAI's `UnetrUpBlock` as in Swin UNETR: a map is doubled in size, joined with the skip, and convolved.

    Args:
        in_channels: channels of the map from below.
        out_channels: channels of the skip and of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.transp_conv = get_conv_layer(
            3, in_channels, out_channels, kernel_size=2, stride=2, conv_only=True, is_transposed=True
        )
        self.conv_block = _res_block(2 * out_channels, out_channels, 3)

    def forward(self, low_BCXYZ: Tensor, skip_BCXYZ: Tensor) -> Tensor:
        """(B, in_channels, X, Y, Z) and (B, out_channels, 2 X, 2 Y, 2 Z) to the shape of the latter."""
        return _apply(self.conv_block, (low_BCXYZ, skip_BCXYZ, self.transp_conv.conv.weight))


def residual_block(in_channels: int, out_channels: int, kernel_size: int) -> ResidualBlock:
    """See `ResidualBlock`."""
    return ResidualBlock(in_channels, out_channels, kernel_size)


def pointwise(x_BCXYZ: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1 x 1 x 1 convolution of a map that is channels last, to one that is channels first in memory."""
    dtype = working_dtype(x_BCXYZ)
    rows_BLC = x_BCXYZ.to(dtype).permute(0, 2, 3, 4, 1).flatten(1, 3)
    out_BCL = weight.to(dtype).flatten(1) @ rows_BLC.mT + bias.to(dtype)[:, None]
    return out_BCL.unflatten(2, x_BCXYZ.shape[2:])


def _res_block(in_channels: int, out_channels: int, kernel_size: int) -> UnetResBlock:
    return UnetResBlock(3, in_channels, out_channels, kernel_size=kernel_size, stride=1, norm_name="instance")


def _apply(block: UnetResBlock, source: tuple[Tensor, ...]) -> Tensor:
    dtype = working_dtype(source[0])
    source = (*(x.to(dtype).contiguous(memory_format=torch.channels_last_3d) for x in source[:2]), *source[2:])
    shortcut = block.conv3.conv.weight if block.downsample else None
    weights = (block.conv1.conv.weight, block.conv2.conv.weight, shortcut)
    if torch.is_grad_enabled() and not torch.jit.is_tracing():
        out: Tensor = _LeanResidual.apply(*weights, *source)
        return out
    with torch.no_grad(), as_written(source[0]):
        result: Tensor = _forward(*weights, *source)[0]
        return result


class _LeanResidual(torch.autograd.Function):
    """The whole block, of a map or of the parts of the decoder's input: (map from below, skip, up-sampling weight)."""

    @staticmethod
    def forward(ctx: Any, weight1: Tensor, weight2: Tensor, weight3: Tensor | None, *source: Tensor) -> Tensor:
        with as_written(source[0]):
            out, inner, *statistics = _forward(weight1, weight2, weight3, *source)
        ctx.save_for_backward(weight1, weight2, weight3, out, inner, *statistics, *source)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with as_written(grad):
            return _grads(ctx, grad)


def _grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight1, weight2, weight3, out, inner, scale1, scale2, scale3, shift3, *source = ctx.saved_tensors
    x = assemble(*source)
    needs_x = any(ctx.needs_input_grad[3:])
    shortcut = None if weight3 is None else (weight3, scale3, shift3)
    grad_main, grad_short = split_grad(grad, out, x, shortcut, scale2)
    grad_inner, grad_weight2 = _convolution_grads(grad_main, inner, weight2, needs_x=True)
    assert grad_inner is not None
    del grad_main
    grad_main = undo_grad(grad_inner, inner, scale1)
    del grad_inner
    grad_x, grad_weight1 = _convolution_grads(grad_main, x, weight1, needs_x=needs_x)
    del grad_main
    grad_weight3 = None
    if weight3 is not None:
        total = torch.zeros(weight3.shape[:2], dtype=sum_dtype(x), device=x.device)
        add_product(total, rows_of(grad_short).flatten(0, 1), rows_of(x).flatten(0, 1))
        grad_weight3 = total.view_as(weight3).to(weight3.dtype)
    if grad_x is not None:
        if weight3 is None:
            grad_x += grad_short
        else:
            flat = weight3.flatten(1).to(x.dtype)
            rows_of(grad_x).flatten(0, 1).addmm_(rows_of(grad_short).flatten(0, 1), flat)
    del grad_short
    return grad_weight1, grad_weight2, grad_weight3, *assemble_grads(grad_x, *source)


def _forward(weight1: Tensor, weight2: Tensor, weight3: Tensor | None, *source: Tensor) -> tuple[Any, ...]:
    """The block's output, its inner map, the scales of its norms, and the shift of the shortcut's."""
    x = assemble(*source)
    inner = _convolve(x, weight1)
    scale1, shift1 = norm_of(inner)
    finish(inner, scale1, shift1, None)
    out = _convolve(inner, weight2)
    scale2, shift2 = norm_of(out)
    scale3 = shift3 = None
    short = x
    if weight3 is not None:
        short = _convolve(x, weight3)
        del x
        scale3, shift3 = norm_of(short)
        affine(short, scale3, shift3)
    finish(out, scale2, shift2, short)
    return out, inner, scale1, scale2, scale3, shift3


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(x.dtype)
    if weight.shape[2] == 1:
        rows = rows_of(x) @ weight.flatten(1).mT
        return rows.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
    out = F.conv3d(x, weight, padding=weight.shape[2] // 2)
    return out.contiguous(memory_format=torch.channels_last_3d)


def _convolution_grads(grad: Tensor, x: Tensor, weight: Tensor, *, needs_x: bool) -> tuple[Tensor | None, Tensor]:
    """The gradients of the input, channels last, and of the weight."""
    if weight.shape[2] == 1:
        rows = rows_of(grad)
        total = torch.zeros(weight.shape[:2], dtype=sum_dtype(x), device=x.device)
        add_product(total, rows.flatten(0, 1), rows_of(x).flatten(0, 1))
        grad_rows = rows @ weight.flatten(1).to(x.dtype) if needs_x else None
        grad_x = None if grad_rows is None else grad_rows.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
        return grad_x, total.view_as(weight).to(weight.dtype)
    padding = [weight.shape[2] // 2] * 3
    dtype = x.dtype
    if x.device.type == "cpu" and min(x.shape[2:]) < weight.shape[2]:  # see `host_bf16`: wrong in 16 bits
        grad, x = grad.to(sum_dtype(grad)), x.to(sum_dtype(x))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, [1] * 3, padding, [1] * 3, False, [0] * 3, 1, [needs_x, True, False]
    )
    if grad_x is not None:
        grad_x = grad_x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    return grad_x, grad_weight.to(weight.dtype)
