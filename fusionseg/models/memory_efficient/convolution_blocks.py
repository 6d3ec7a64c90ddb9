"""Convolution blocks of Swin UNETR that keep little memory for the backward pass.

MONAI's `UnetResBlock` keeps the input and the output of every convolution; the instance norm needs the output in the
backward pass. But instance norm and activation can be inverted from their result, which the next convolution keeps
anyway (S. Rota Bulo et al., "In-Place Activated BatchNorm", 2018, section 3, arXiv:1712.02616): leaky ReLU is
invertible, and the gradient of an instance norm without affine parameters depends only on the normalised values and
the scale. The projected shortcut (a 1 x 1 x 1 convolution) and the concatenated input of a decoder block are computed
again in the backward pass. So a block keeps two maps instead of five or seven.

Maps are in channels-last memory format (`torch.channels_last_3d`). There the voxels of a map are the rows of a matrix,
and norms, 1 x 1 x 1 convolutions and up-sampling are matrix operations.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusionseg.models.device_kind import device_kind
from fusionseg.models.memory_efficient.autograd_helpers import (
    autocast_disabled,
    matmul_dtype,
    sum_dtype,
    uses_chunks,
)
from fusionseg.models.memory_efficient.decoder_input import join_inputs, join_inputs_grads
from fusionseg.models.memory_efficient.instance_norm import (
    as_rows,
    block_output_grads,
    norm_activation_,
    norm_activation_grad,
    norm_statistics,
    rows_to_map,
    scale_and_shift_,
    unit_moments,
)
from fusionseg.models.memory_efficient.whole_maps import (
    activate,
    activation_grad,
    by_sample,
    norm_grad,
    normalise,
    normalise_interleaved,
)


class ResidualBlock(nn.Module):
    """Residual block of Swin UNETR, with the output and the state dict of MONAI's `UnetResBlock`.

    It has two convolutions without bias, each followed by an instance norm without affine parameters. Leaky ReLU
    follows the first norm and the sum with the shortcut. The shortcut is the input itself or, if the numbers of
    channels differ, a 1 x 1 x 1 convolution of the input with an instance norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: edge of both kernels in voxels, odd.
    """

    implementation: ClassVar[str] = "fused"
    keeps_channels_last: ClassVar[bool] = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.layer = _res_block(in_channels, out_channels, kernel_size)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Map (B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z) in channels-last memory format."""
        return _apply(self.layer, (x_BCXYZ,))


class UpBlock(nn.Module):
    """Decoder block of Swin UNETR, with the output and the state dict of MONAI's `UnetrUpBlock`.

    A transposed convolution doubles the size of the lower map, the result is concatenated with the skip, and a residual
    block follows.

    Args:
        in_channels: channels of the lower map.
        out_channels: channels of the skip and of the output.
    """

    implementation: ClassVar[str] = "fused"
    keeps_channels_last: ClassVar[bool] = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.transp_conv = get_conv_layer(
            3, in_channels, out_channels, kernel_size=2, stride=2, conv_only=True, is_transposed=True
        )
        self.conv_block = _res_block(2 * out_channels, out_channels, 3)

    def forward(self, low_BCXYZ: Tensor, skip_BCXYZ: Tensor) -> Tensor:
        """Map (B, in_channels, X, Y, Z) and a skip (B, out_channels, 2 X, 2 Y, 2 Z) to the shape of the skip."""
        return _apply(self.conv_block, (low_BCXYZ, skip_BCXYZ, self.transp_conv.conv.weight))


class OutputBlock(UnetOutBlock):
    """The 1 x 1 x 1 convolution that gives the logits, with the output and the state dict of MONAI's `UnetOutBlock`."""

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Map (B, C, X, Y, Z) in channels-last memory format to contiguous logits (B, K, X, Y, Z)."""
        head = self.conv.conv
        return pointwise(x_BCXYZ, head.weight, head.bias)


def pointwise(x_BCXYZ: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a 1 x 1 x 1 convolution.

    Args:
        x_BCXYZ: map (B, C, X, Y, Z) in channels-last memory format.
        weight: (K, C, 1, 1, 1).
        bias: (K).

    Returns:
        (B, K, X, Y, Z), contiguous (channels first).
    """
    dtype = matmul_dtype(x_BCXYZ)
    rows_BLC = x_BCXYZ.to(dtype).permute(0, 2, 3, 4, 1).flatten(1, 3)
    if not (uses_chunks(rows_BLC) or torch.jit.is_tracing()):
        kernel = weight.to(dtype).flatten(1).expand(len(rows_BLC), -1, -1)
        return torch.baddbmm(bias.to(dtype)[:, None], kernel, rows_BLC.mT).unflatten(2, x_BCXYZ.shape[2:])
    out_BCL = weight.to(dtype).flatten(1) @ rows_BLC.mT + bias.to(dtype)[:, None]
    return out_BCL.unflatten(2, x_BCXYZ.shape[2:])


def _res_block(in_channels: int, out_channels: int, kernel_size: int) -> UnetResBlock:
    return UnetResBlock(3, in_channels, out_channels, kernel_size=kernel_size, stride=1, norm_name="instance")


def _apply(block: UnetResBlock, inputs: tuple[Tensor, ...]) -> Tensor:
    dtype = matmul_dtype(inputs[0])
    inputs = (*(x.to(dtype).contiguous(memory_format=torch.channels_last_3d) for x in inputs[:2]), *inputs[2:])
    shortcut = block.conv3.conv.weight if block.downsample else None
    weights = (block.conv1.conv.weight, block.conv2.conv.weight, shortcut)
    if torch.is_grad_enabled() and not torch.jit.is_tracing():
        out: Tensor = _ResidualBlockFunction.apply(*weights, *inputs)
        return out
    with torch.no_grad(), autocast_disabled(inputs[0]):
        result: Tensor = _forward(*weights, *inputs)[0]
        return result


class _ResidualBlockFunction(torch.autograd.Function):
    """A whole block. The inputs are one map, or those of a decoder block: lower map, skip, up-sampling weight."""

    @staticmethod
    def forward(ctx: Any, weight1: Tensor, weight2: Tensor, weight3: Tensor | None, *inputs: Tensor) -> Tensor:
        with autocast_disabled(inputs[0]):
            out, inner, *statistics = _forward(weight1, weight2, weight3, *inputs)
        ctx.save_for_backward(weight1, weight2, weight3, out, inner, *statistics, *inputs)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with autocast_disabled(grad):
            return _grads(ctx, grad)


def _grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight1, weight2, weight3, out, inner, scale1, scale2, scale3, shift3, *inputs = ctx.saved_tensors
    x = join_inputs(*inputs)
    needs_x = any(ctx.needs_input_grad[3:])
    in_chunks = uses_chunks(x)
    grad = grad.contiguous(memory_format=torch.channels_last_3d)
    if in_chunks:
        shortcut = None if weight3 is None else (weight3, scale3, shift3)
        moments = unit_moments(scale2)
        grad_main, grad_short = block_output_grads(grad, out, x, shortcut, scale2, moments)
    else:
        grad_main, grad_short = _whole_output_grads(grad, out, x, weight3, scale2)
    grad_inner, grad_weight2 = _convolution_grads(grad_main, inner, weight2, needs_x=True)
    assert grad_inner is not None
    del grad_main
    if in_chunks:
        grad_main = norm_activation_grad(grad_inner, inner, scale1, moments)
    else:
        grad_main = norm_grad(*activation_grad(grad_inner, inner), scale1, inner)
    del grad_inner
    grad_x, grad_weight1 = _convolution_grads(grad_main, x, weight1, needs_x=needs_x)
    del grad_main
    grad_weight3 = None
    if weight3 is not None:
        product = as_rows(grad_short).flatten(0, 1).mT @ as_rows(x).flatten(0, 1)
        grad_weight3 = product.view_as(weight3).to(weight3.dtype)
    if grad_x is not None:
        if weight3 is None:
            grad_x += grad_short
        else:
            flat = weight3.flatten(1).to(x.dtype)
            as_rows(grad_x).flatten(0, 1).addmm_(as_rows(grad_short).flatten(0, 1), flat)
    del grad_short
    return grad_weight1, grad_weight2, grad_weight3, *join_inputs_grads(grad_x, *inputs)


def _whole_output_grads(
    grad: Tensor, out: Tensor, x: Tensor, weight3: Tensor | None, scale2: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the second convolution's output and of the shortcut's, as `block_output_grads` does."""
    active, normed = activation_grad(grad, out)
    if weight3 is None:
        by_sample(normed, len(x)).sub_(as_rows(x))
        return norm_grad(active, normed, scale2, out), rows_to_map(by_sample(active, len(x)), out)
    short, scale3 = normalise_interleaved(_convolve(x, weight3))
    normed.sub_(short)
    return norm_grad(active, normed, scale2, out), norm_grad(active, short, scale3, out)


def _forward(weight1: Tensor, weight2: Tensor, weight3: Tensor | None, *inputs: Tensor) -> tuple[Any, ...]:
    """Return the output, the map between the convolutions, the scales of the norms and the shift of the shortcut.

    For whole maps the scale and the shift of the shortcut are None: the backward pass computes its norm again.
    """
    x = join_inputs(*inputs)
    if not uses_chunks(x):
        return *_whole_forward(x, weight1, weight2, weight3), None, None
    inner = _convolve(x, weight1)
    scale1, shift1 = norm_statistics(inner)
    norm_activation_(inner, scale1, shift1, None)
    out = _convolve(inner, weight2)
    scale2, shift2 = norm_statistics(out)
    scale3 = shift3 = None
    short = x
    if weight3 is not None:
        short = _convolve(x, weight3)
        del x
        scale3, shift3 = norm_statistics(short)
        scale_and_shift_(short, scale3, shift3)
    norm_activation_(out, scale2, shift2, short)
    return out, inner, scale1, scale2, scale3, shift3


def _whole_forward(
    x: Tensor, weight1: Tensor, weight2: Tensor, weight3: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output, the map between the convolutions, and the scales of their norms."""
    inner = _convolve(x, weight1)
    normed, scale1 = normalise(inner)
    inner = activate(normed, inner)
    out = _convolve(inner, weight2)
    normed, scale2 = normalise(out)
    normed.add_(as_rows(x) if weight3 is None else normalise(_convolve(x, weight3))[0])
    return activate(normed, out), inner, scale1, scale2


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(x.dtype)
    if weight.shape[2] == 1:
        rows = as_rows(x) @ weight.flatten(1).mT
        return rows.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
    out = F.conv3d(x, weight, padding=weight.shape[2] // 2)
    return out.contiguous(memory_format=torch.channels_last_3d)


def _convolution_grads(grad: Tensor, x: Tensor, weight: Tensor, *, needs_x: bool) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input (channels last; None if not needed) and of the weight."""
    if weight.shape[2] == 1:
        rows = as_rows(grad)
        product = rows.flatten(0, 1).mT @ as_rows(x).flatten(0, 1)
        grad_rows = rows @ weight.flatten(1).to(x.dtype) if needs_x else None
        grad_x = None if grad_rows is None else grad_rows.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
        return grad_x, product.view_as(weight).to(weight.dtype)
    padding = [weight.shape[2] // 2] * 3
    dtype = x.dtype
    if device_kind(x) == "cpu" and min(x.shape[2:]) < weight.shape[2]:  # wrong in bfloat16, see `placement`
        grad, x = grad.to(sum_dtype(grad)), x.to(sum_dtype(x))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, [1] * 3, padding, [1] * 3, False, [0] * 3, 1, [needs_x, True, False]
    )
    if grad_x is not None:
        grad_x = grad_x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    return grad_x, grad_weight.to(weight.dtype)
