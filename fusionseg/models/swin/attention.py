"""Window attention of the Swin transformer that keeps little memory for the backward pass.

On a CPU the attention is computed for a few windows at a time, so that their scores stay in the cache, and again in
the backward pass. The matrix of the scores of all windows, which takes most of the memory in the usual implementation,
is never stored. On other devices and under `torch.compile` the attention is `scaled_dot_product_attention`.

Sources: Z. Liu et al., "Swin Transformer" (2021, section 3.2, arXiv:2103.14030); for computing the scores again, T. Dao
et al., "FlashAttention" (2022, section 3.1, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusionseg.models.memory_efficient.autograd_helpers import autocast_disabled, matmul_dtype, sum_dtype, uses_chunks
from fusionseg.models.swin.score_bias import BlockScores, TableIndex, score_biases, table_index
from fusionseg.models.swin.whole_attention import attend_whole, scaled_dot_product
from fusionseg.models.swin.window_layout import WindowLayout, relative_position_index
from fusionseg.models.swin.window_slots import FromSlots, ToSlots, from_slots, to_slots

_TABLE_INDICES: dict[tuple[type, int, int, torch.device], TableIndex] = {}
"""Made once for each class of attention, size of the table's windows, tokens of a window, and device."""
_CHUNK_SCORES = 9 * 343 * 343  # scores of a chunk of windows: 4 MB in float32, so that they stay in the CPU's cache


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias.

    The parameters have the names and shapes of MONAI's `WindowAttention`.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        window_size: tokens of a window along each axis.
    """

    implementation: ClassVar[str] = "fused"
    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_rows(self, length: int) -> Tensor:
        """Return the rows of the bias table (n, n) for the pairs of tokens of windows of n tokens.

        Args:
            length: n, at most window_size**3.
        """
        # For a stage that is smaller than the window these are the first rows and columns of the index, as in MONAI.
        return self.relative_position_index[:length, :length]

    def position_bias(self, length: int) -> Tensor:
        """Return the bias (heads, n, n) of the scores of windows of n tokens.

        Args:
            length: n, at most window_size**3.
        """
        rows = F.embedding(self.position_rows(length), self.relative_position_bias_table)
        return rows.permute(2, 0, 1).contiguous()

    def block_scores(self, layout: WindowLayout) -> BlockScores:
        """Return what `score_biases` needs for windows of a layout."""
        key = type(self), len(self.relative_position_index), layout.length, self.relative_position_index.device
        if key not in _TABLE_INDICES:
            _TABLE_INDICES[key] = table_index(self.position_rows(layout.length))
        return BlockScores(self.relative_position_bias_table, _TABLE_INDICES[key], layout)

    def forward(
        self, x_BLC: Tensor, norm: nn.LayerNorm, layout: WindowLayout, score_bias: Tensor | None = None
    ) -> Tensor:
        """Return the output of the attention (B, L, C), before the residual addition.

        Args:
            x_BLC: tokens (B, L, C).
            norm: layer norm that is applied to the tokens first.
            layout: windows of the tokens.
            score_bias: that of `score_biases`, where `uses_whole_windows`; None makes it here.
        """
        if uses_whole_windows(x_BLC):
            dtype = matmul_dtype(x_BLC)
            if score_bias is None:
                (score_bias,) = score_biases([self.block_scores(layout)], len(x_BLC), dtype)
            return self.proj(attend_whole(norm(x_BLC).to(dtype), self.qkv, score_bias, layout))
        if not uses_chunks(x_BLC):
            return self.proj(self.attend_groups(norm(x_BLC), layout, plain=torch.jit.is_tracing()))
        bias = self.position_bias(layout.length)
        attended: Tensor = _ChunkedAttention.apply(
            x_BLC, norm.weight, norm.bias, self.qkv.weight, self.qkv.bias, bias, layout, self.num_heads, norm.eps
        )
        return self.proj(attended)

    def attend_groups(self, normed_BLC: Tensor, layout: WindowLayout, *, plain: bool) -> Tensor:
        """Return the attention (B, L, C) before its output projection, by operators that a compiler can record.

        Windows with the same mask share a call of `scaled_dot_product_attention`.

        Args:
            normed_BLC: normalised tokens (B, L, C).
            layout: windows of the tokens.
            plain: leave the whole backward pass to autograd.
        """
        batch, _, channels = normed_BLC.shape
        x_BLC = normed_BLC.to(matmul_dtype(normed_BLC))
        windows: Tensor = to_slots(x_BLC, layout) if plain else ToSlots.apply(x_BLC, layout)
        qkv = self.qkv(windows).view(batch, layout.windows, layout.length, 3, self.num_heads, -1)
        bias = self.position_bias(layout.length).to(qkv.dtype)
        parts = []
        # The gradient of a split is one concatenation; each slice would have one of the size of all windows.
        groups = qkv.split([stop - first for first, stop, _ in layout.groups], dim=1)
        for group, (_, _, mask) in zip(groups, layout.groups, strict=True):
            rows = group.reshape(-1, layout.length, 3, self.num_heads, qkv.shape[-1])
            q, k, v = rows.permute(2, 0, 3, 1, 4).unbind()
            score_bias = bias if mask is None else bias + mask.to(bias.dtype)
            out = scaled_dot_product(q, k, v, score_bias.unsqueeze(0))
            parts.append(out.transpose(1, 2).reshape(batch, -1, channels))
        slots = torch.cat(parts, dim=1)
        out_BLC: Tensor = from_slots(slots, layout) if plain else FromSlots.apply(slots, layout)
        return out_BLC


def uses_whole_windows(x: Tensor) -> bool:
    """Tell whether the attention of `x` is computed with operators on all windows, neither in chunks nor recorded."""
    return not (uses_chunks(x) or torch.compiler.is_compiling() or torch.jit.is_tracing())


class _ChunkedAttention(torch.autograd.Function):
    """Layer norm, query-key-value projection and attention of (B, L, C). Only the input is kept for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        bias: Tensor,
        layout: WindowLayout,
        num_heads: int,
        eps: float,
    ) -> Tensor:
        dtype = matmul_dtype(x)
        ctx.save_for_backward(x, norm_weight, norm_bias, qkv_weight, qkv_bias, bias)
        ctx.layout, ctx.num_heads, ctx.eps, ctx.dtype = layout, num_heads, eps, dtype
        with autocast_disabled(x):
            normed = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps).to(dtype)
            windows = _qkv_windows(normed, qkv_weight, qkv_bias, layout)
            attended = windows.new_empty(*windows.shape[:2], x.shape[-1])
            for b, first, stop, score_bias in _chunks(len(x), bias, layout):
                q, k, v = _split_heads(windows[b, first:stop], layout.length, 3, num_heads)
                attention = _softmax_scores(q, k, score_bias)
                _write_heads(attended[b, first:stop], layout.length, num_heads, torch.bmm(attention, v))
            return from_slots(attended, layout)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with autocast_disabled(grad):
            return _attention_grads(ctx, grad)


def _attention_grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, norm_weight, norm_bias, qkv_weight, qkv_bias, bias = ctx.saved_tensors
    layout, heads = ctx.layout, ctx.num_heads
    shape = x.shape[-1:]
    gamma, beta = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    normed_x, mean, rstd = torch.native_layer_norm(x, shape, gamma, beta, ctx.eps)
    normed = normed_x.to(ctx.dtype)
    del normed_x
    windows = _qkv_windows(normed, qkv_weight, qkv_bias, layout)
    grads = to_slots(grad.to(ctx.dtype), layout)
    grad_bias = torch.zeros_like(bias)
    scale = (x.shape[-1] // heads) ** -0.5
    for b, first, stop, score_bias in _chunks(len(x), bias, layout):
        rows = windows[b, first:stop]
        q, k, v = _split_heads(rows, layout.length, 3, heads)
        attention = _softmax_scores(q, k, score_bias)
        (grad_out,) = _split_heads(grads[b, first:stop], layout.length, 1, heads)
        grad_v = torch.bmm(attention.mT, grad_out)
        grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(grad_out, v.mT), attention, -1, attention.dtype)
        grad_bias += grad_scores.view(-1, *bias.shape).sum(0)
        grad_q = torch.bmm(grad_scores, k).mul_(scale)
        grad_k = torch.bmm(grad_scores.mT, q).mul_(scale)
        # The rows of this chunk are not needed again; their gradient overwrites them.
        _write_heads(rows, layout.length, heads, grad_q, grad_k, grad_v)
    grad_qkv = from_slots(windows, layout).flatten(0, 1)
    grad_qkv_bias = grad_qkv.sum(0, dtype=sum_dtype(x))
    if layout.padded.numel():  # padding is 0 before the projection and the bias after it
        grad_qkv_bias += windows.index_select(1, layout.padded).sum((0, 1), dtype=sum_dtype(x))
    del windows, grads
    grad_qkv_weight = grad_qkv.mT @ normed.flatten(0, 1)
    grad_normed = (grad_qkv @ qkv_weight.to(ctx.dtype)).view_as(x).to(x.dtype)
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_layer_norm_backward(
        grad_normed, x, shape, mean, rstd, gamma, beta, [True, True, True]
    )
    return (
        grad_x,
        grad_gamma.to(norm_weight.dtype),
        grad_beta.to(norm_bias.dtype),
        grad_qkv_weight.to(qkv_weight.dtype),
        grad_qkv_bias.to(qkv_bias.dtype),
        grad_bias,
        None,
        None,
        None,
    )


def _qkv_windows(normed_BLC: Tensor, weight: Tensor, bias: Tensor, layout: WindowLayout) -> Tensor:
    bias = bias.to(normed_BLC.dtype)
    return to_slots(F.linear(normed_BLC, weight.to(normed_BLC.dtype), bias), layout, padding=bias)


def _chunks(batch: int, bias: Tensor, layout: WindowLayout) -> Iterator[tuple[int, slice | int, int, Tensor]]:
    """Yield for each chunk of windows: sample, first slot, end of the slots, bias of the scores (heads, n, n)."""
    chunk_windows = max(1, _CHUNK_SCORES // bias.numel())
    for start, stop, mask in layout.groups:
        score_bias = bias if mask is None else bias + mask.to(bias.dtype)
        for b in range(batch):
            for first in range(start, stop, chunk_windows):
                yield b, first * layout.length, min(first + chunk_windows, stop) * layout.length, score_bias


def _split_heads(rows: Tensor, length: int, parts: int, num_heads: int) -> Tensor:
    """Copy (slots, parts * C) to (parts, windows * heads, n, C / heads), at least float32 for the scores."""
    split = rows.view(-1, length, parts, num_heads, rows.shape[-1] // (parts * num_heads))
    return split.permute(2, 0, 3, 1, 4).to(sum_dtype(rows)).reshape(parts, -1, length, split.shape[-1])


def _write_heads(rows: Tensor, length: int, num_heads: int, *parts: Tensor) -> None:
    """Write the inverse of `_split_heads` to `rows`."""
    split = rows.view(-1, length, len(parts), num_heads, parts[0].shape[-1])
    for index, part in enumerate(parts):
        split[:, :, index] = part.view(-1, num_heads, length, part.shape[-1]).transpose(1, 2)


def _softmax_scores(q: Tensor, k: Tensor, score_bias: Tensor) -> Tensor:
    """Compute the attention (windows * heads, n, n) of q and k (windows * heads, n, C / heads)."""
    heads, n, _ = score_bias.shape
    scores = score_bias.expand(len(q) // heads, heads, n, n).reshape(-1, n, n)
    if len(q) == heads:  # one window: `scores` is a view of the bias, which must not be overwritten
        scores = torch.baddbmm(scores, q, k.mT, alpha=q.shape[-1] ** -0.5)
    else:
        scores.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, -1)
