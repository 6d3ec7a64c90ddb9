"""Attention within windows, made to keep little for the backward pass.

On a CPU the attention goes window by window through the cache and is computed again in the backward pass: the matrix
of all scores, most of what the usual form reads, writes and keeps, never exists. On other devices and under
`torch.compile` it is `scaled_dot_product_attention`.

Sources: Z. Liu et al., "Swin Transformer" (2021, arXiv:2103.14030), section 3.2; for recomputing the scores, T. Dao et
al., "FlashAttention" (2022, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusionseg.models.memory_efficient.arithmetic import as_written, in_chunks, sum_dtype, working_dtype
from fusionseg.models.swin.window_layout import WindowLayout, relative_position_index

_SCORES_AT_ONCE = 9 * 343 * 343  # numbers of a chunk of scores, 4 MB: they are to stay in the caches of a CPU


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias; parameters as in MONAI's.

    Args:
        dim: channels.
        num_heads: attention heads; they divide `dim`.
        window_size: tokens of a window in each axis.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self, length: int) -> Tensor:
        """(heads, n, n) added to the scores of windows of n tokens."""
        # A stage smaller than the window takes the first entries, as in MONAI.
        index = self.relative_position_index[:length, :length]
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1).contiguous()

    def forward(self, x_BLC: Tensor, norm: nn.LayerNorm, layout: WindowLayout) -> Tensor:
        """What attention adds to the tokens (B, L, C), which are normalised by `norm` first."""
        bias = self.position_bias(layout.length)
        if in_chunks(x_BLC):
            mixed: Tensor = _ChunkedAttention.apply(
                x_BLC, norm.weight, norm.bias, self.qkv.weight, self.qkv.bias, bias, layout, self.num_heads, norm.eps
            )
        else:
            mixed = self._fused(norm(x_BLC), bias, layout)
        return self.proj(mixed)

    def _fused(self, x_BLC: Tensor, bias: Tensor, layout: WindowLayout) -> Tensor:
        batch, _, channels = x_BLC.shape
        x_BLC = x_BLC.to(working_dtype(x_BLC))
        windows = _to_windows(x_BLC, layout) if torch.jit.is_tracing() else _ToWindows.apply(x_BLC, layout)
        qkv = self.qkv(windows).view(batch, layout.windows, layout.length, 3, self.num_heads, -1)
        bias = bias.to(qkv.dtype)
        parts = []
        for first, stop, mask in layout.groups:
            group = qkv[:, first:stop].reshape(-1, layout.length, 3, self.num_heads, qkv.shape[-1])
            q, k, v = group.permute(2, 0, 3, 1, 4)
            added = bias if mask is None else bias + mask.to(bias.dtype)
            out = _attend(q, k, v, added)
            parts.append(out.transpose(1, 2).reshape(batch, -1, channels))
        together = torch.cat(parts, dim=1)
        if torch.jit.is_tracing():
            return together.index_select(1, layout.slot)
        mixed: Tensor = _FromWindows.apply(together, layout)
        return mixed


def _attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
    if q.is_meta:  # for estimates, the kernel that a GPU takes; what the meta device takes keeps all scores
        repeated = added.expand(len(q), *added.shape)
        out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, repeated, True)[0]
        return out
    # Not repeated for all windows: torch pads it to a multiple of eight for its kernel, and only then repeats it.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added.unsqueeze(0))


def _to_windows(x_BLC: Tensor, layout: WindowLayout, padding: Tensor | None = None) -> Tensor:
    row = x_BLC.new_zeros(x_BLC.shape[-1]) if padding is None else padding
    if layout.padded.numel():
        x_BLC = torch.cat([x_BLC, row.expand(len(x_BLC), 1, -1)], dim=1)
    return x_BLC.index_select(1, layout.index)


class _ToWindows(torch.autograd.Function):
    """(B, L, C) -> (B, slots, C), zeros in the padding. Its gradient is a selection too, no scattered addition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        return _to_windows(x, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(1, ctx.layout.slot), None


class _FromWindows(torch.autograd.Function):
    """(B, slots, C) -> (B, L, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        return x.index_select(1, layout.slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_windows(grad, ctx.layout), None


class _ChunkedAttention(torch.autograd.Function):
    """Layer norm, query-key-value projection and attention of (B, L, C), keeping nothing but the input."""

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
        dtype = working_dtype(x)
        ctx.save_for_backward(x, norm_weight, norm_bias, qkv_weight, qkv_bias, bias)
        ctx.layout, ctx.num_heads, ctx.eps, ctx.dtype = layout, num_heads, eps, dtype
        with as_written(x):
            normed = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps).to(dtype)
            windows = _qkv_windows(normed, qkv_weight, qkv_bias, layout)
            mixed = windows.new_empty(*windows.shape[:2], x.shape[-1])
            for b, first, stop, added in _chunks(len(x), bias, layout):
                q, k, v = _heads(windows[b, first:stop], layout.length, 3, num_heads)
                attention = _softmax_scores(q, k, added)
                _put_heads(mixed[b, first:stop], layout.length, num_heads, torch.bmm(attention, v))
            return mixed.index_select(1, layout.slot)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with as_written(grad):
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
    grads = _to_windows(grad.to(ctx.dtype), layout)
    grad_bias = torch.zeros_like(bias)
    scale = (x.shape[-1] // heads) ** -0.5
    for b, first, stop, added in _chunks(len(x), bias, layout):
        rows = windows[b, first:stop]
        q, k, v = _heads(rows, layout.length, 3, heads)
        attention = _softmax_scores(q, k, added)
        (grad_out,) = _heads(grads[b, first:stop], layout.length, 1, heads)
        grad_v = torch.bmm(attention.mT, grad_out)
        grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(grad_out, v.mT), attention, -1, attention.dtype)
        grad_bias += grad_scores.view(-1, *bias.shape).sum(0)
        grad_q = torch.bmm(grad_scores, k).mul_(scale)
        grad_k = torch.bmm(grad_scores.mT, q).mul_(scale)
        # The rows of this chunk are not needed again: their gradient takes their place.
        _put_heads(rows, layout.length, heads, grad_q, grad_k, grad_v)
    grad_qkv = windows.index_select(1, layout.slot).flatten(0, 1)
    grad_qkv_bias = grad_qkv.sum(0, dtype=sum_dtype(x))
    if layout.padded.numel():  # padding is zero before the projection and its bias after it
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
    return _to_windows(F.linear(normed_BLC, weight.to(normed_BLC.dtype), bias), layout, padding=bias)


def _chunks(batch: int, bias: Tensor, layout: WindowLayout) -> Iterator[tuple[int, slice | int, int, Tensor]]:
    """Sample, first and past-the-last slot, and what is added to the scores, of a few windows at a time."""
    at_once = max(1, _SCORES_AT_ONCE // bias.numel())
    for start, stop, mask in layout.groups:
        added = bias if mask is None else bias + mask.to(bias.dtype)
        for b in range(batch):
            for first in range(start, stop, at_once):
                yield b, first * layout.length, min(first + at_once, stop) * layout.length, added


def _heads(rows: Tensor, length: int, parts: int, num_heads: int) -> Tensor:
    """(slots, parts * C) -> (parts, windows * heads, n, C / heads): a copy, in 32 bits as the scores are to be."""
    split = rows.view(-1, length, parts, num_heads, rows.shape[-1] // (parts * num_heads))
    return split.permute(2, 0, 3, 1, 4).to(sum_dtype(rows)).reshape(parts, -1, length, split.shape[-1])


def _put_heads(rows: Tensor, length: int, num_heads: int, *parts: Tensor) -> None:
    """The opposite of `_heads`, into `rows`."""
    split = rows.view(-1, length, len(parts), num_heads, parts[0].shape[-1])
    for number, part in enumerate(parts):
        split[:, :, number] = part.view(-1, num_heads, length, part.shape[-1]).transpose(1, 2)


def _softmax_scores(q: Tensor, k: Tensor, added: Tensor) -> Tensor:
    """(windows * heads, n, n) attention of q, k (windows * heads, n, C / heads)."""
    heads, n, _ = added.shape
    scores = added.expand(len(q) // heads, heads, n, n).reshape(-1, n, n)
    if len(q) == heads:  # a view of the bias itself
        scores = torch.baddbmm(scores, q, k.mT, alpha=q.shape[-1] ** -0.5)
    else:
        scores.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, -1)
