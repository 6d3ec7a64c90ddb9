"""MLP of a Swin transformer block that keeps little memory for the backward pass.

Source: Z. Liu et al., "Swin Transformer" (2021, section 3.1, arXiv:2103.14030).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusionseg.models.memory_efficient.autograd_helpers import (
    add_matmul_,
    autocast_disabled,
    matmul_dtype,
    row_chunks,
    sum_dtype,
    uses_chunks,
)


class Mlp(nn.Module):
    """Layer norm and MLP of a transformer block. The backward pass computes the hidden activations again.

    Args:
        dim: channels C; the hidden layer has 4 C.
    """

    implementation: ClassVar[str] = "fused"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x_BLC: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the output of the MLP (B, L, C), before the residual addition.

        Args:
            x_BLC: tokens (B, L, C).
            norm: layer norm that is applied to the tokens first.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # the compiler itself decides what to recompute
            return self.linear2(F.gelu(self.linear1(norm(x_BLC))))
        out: Tensor = _MlpFunction.apply(
            x_BLC,
            norm.weight,
            norm.bias,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
            norm.eps,
        )
        return out


class _MlpFunction(torch.autograd.Function):
    """Norm, linear, GELU, linear of (B, L, C). Only the input is kept; on a CPU a few rows are computed at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, *rest: Any) -> Tensor:
        weight1, bias1, weight2, bias2, eps = rest
        ctx.dtype, ctx.eps = matmul_dtype(x), eps
        ctx.save_for_backward(x, gamma, beta, weight1, bias1, weight2, bias2)
        with autocast_disabled(x):
            gamma, beta = gamma.to(x.dtype), beta.to(x.dtype)
            weight1, bias1, weight2, bias2 = (p.to(ctx.dtype) for p in (weight1, bias1, weight2, bias2))
            if not uses_chunks(x):
                normed = F.layer_norm(x, gamma.shape, gamma, beta, eps).to(ctx.dtype)
                return F.linear(F.gelu(F.linear(normed, weight1, bias1)), weight2, bias2)
            out = x.new_empty(x.shape, dtype=ctx.dtype)
            rows, out_rows = x.flatten(0, 1), out.flatten(0, 1)
            for part in row_chunks(rows):
                normed = F.layer_norm(rows[part], gamma.shape, gamma, beta, eps).to(ctx.dtype)
                hidden = F.gelu(torch.addmm(bias1, normed, weight1.mT))
                torch.addmm(bias2, hidden, weight2.mT, out=out_rows[part])
            return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with autocast_disabled(grad):
            return _mlp_grads(ctx, grad) if uses_chunks(grad) else _whole_mlp_grads(ctx, grad)


def _mlp_grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *parameters = ctx.saved_tensors
    gamma, beta = (p.to(x.dtype) for p in parameters[:2])
    weight1, bias1, weight2, _ = (p.to(ctx.dtype) for p in parameters[2:])
    rows, grad_rows = x.flatten(0, 1), grad.to(ctx.dtype).flatten(0, 1)
    grad_x = torch.empty_like(rows)
    sums = [torch.zeros_like(p, dtype=sum_dtype(x)) for p in parameters]
    for part in row_chunks(rows):
        normed_x, mean, rstd = torch.native_layer_norm(rows[part], gamma.shape, gamma, beta, ctx.eps)
        normed = normed_x.to(ctx.dtype)
        before = torch.addmm(bias1, normed, weight1.mT)
        grad_part = grad_rows[part]
        grad_hidden = grad_part @ weight2
        add_matmul_(sums[4], grad_part, F.gelu(before))
        grad_before = torch.ops.aten.gelu_backward(grad_hidden, before)
        add_matmul_(sums[2], grad_before, normed)
        sums[3] += grad_before.sum(0, dtype=sum_dtype(x))
        sums[5] += grad_part.sum(0, dtype=sum_dtype(x))
        grad_normed = (grad_before @ weight1).to(x.dtype)
        grad_x[part], grad_gamma, grad_beta = torch.ops.aten.native_layer_norm_backward(
            grad_normed, rows[part], gamma.shape, mean, rstd, gamma, beta, [True, True, True]
        )
        sums[0] += grad_gamma
        sums[1] += grad_beta
    return grad_x.view_as(x), *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)), None


def _whole_mlp_grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute `_mlp_grads` with operators on all rows. Each sum is one product, which adds in float32."""
    x, *parameters = ctx.saved_tensors
    gamma, beta = (p.to(x.dtype) for p in parameters[:2])
    weight1, bias1, weight2, _ = (p.to(ctx.dtype) for p in parameters[2:])
    rows, grad_rows = x.flatten(0, 1), grad.to(ctx.dtype).flatten(0, 1)
    normed_x, mean, rstd = torch.native_layer_norm(rows, gamma.shape, gamma, beta, ctx.eps)
    normed = normed_x.to(ctx.dtype)
    before = torch.addmm(bias1, normed, weight1.mT)
    grad_weight2 = grad_rows.mT @ F.gelu(before)
    grad_before = torch.ops.aten.gelu_backward(grad_rows @ weight2, before)
    del before
    grad_normed = (grad_before @ weight1).to(x.dtype)
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_layer_norm_backward(
        grad_normed, rows, gamma.shape, mean, rstd, gamma, beta, [True, True, True]
    )
    sums = (grad_gamma, grad_beta, grad_before.mT @ normed, grad_before.sum(0), grad_weight2, grad_rows.sum(0))
    return grad_x.view_as(x), *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)), None
