"""Window attention with operators on all windows, for devices on which each operator costs time for its launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models.device_kind import device_kind
from fusionseg.models.swin.score_bias import kernel_calls
from fusionseg.models.swin.window_layout import WindowLayout
from fusionseg.models.swin.window_slots import FromSlots, ToSlots


def attend_whole(normed_BLC: Tensor, qkv: nn.Linear, bias: Tensor, layout: WindowLayout) -> Tensor:
    """Compute the attention (B, L, C) of normalised tokens, before its output projection.

    Args:
        normed_BLC: tokens, of the type in which the attention is computed.
        qkv: projection to queries, keys and values.
        bias: (N, heads, n, n), see `score_biases`.
        layout: windows of the tokens.
    """
    batch, _, channels = normed_BLC.shape
    heads = bias.shape[1]
    slots = _batch_slots(layout, batch)
    windows: Tensor = ToSlots.apply(normed_BLC.flatten(0, 1), slots)
    projected = qkv(windows).view(layout.windows * batch, layout.length, 3, heads, channels // heads)
    calls = kernel_calls(layout, heads, batch, bias.element_size())
    if len(calls) == 1:
        attended = _attend(projected, bias)
    else:
        # The samples of a window are neighbours, so that the windows of a group are so too, in all samples. The
        # gradient of a split is one concatenation; each slice would have one of the size of all windows.
        groups = projected.split([call.windows * batch for call in calls])
        biases = bias.split([call.biases for call in calls])
        attended = torch.cat([_attend(*pair) for pair in zip(groups, biases, strict=True)])
    tokens: Tensor = FromSlots.apply(attended, slots)
    return tokens.view_as(normed_BLC)


def _attend(projected: Tensor, bias: Tensor) -> Tensor:
    """Compute the attention (windows * n, C) of queries, keys and values (windows, n, 3, heads, C / heads)."""
    q, k, v = _SplitHeads.apply(projected)
    return scaled_dot_product(q, k, v, bias).transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])


class _SplitHeads(torch.autograd.Function):
    """View queries, keys and values (windows, n, 3, heads, C / heads) as three of (windows, heads, n, C / heads).

    Their gradients are written to the places of the projection at once; autograd would stack and then permute them.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> tuple[Tensor, ...]:
        return projected.permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.stack([grad.transpose(1, 2) for grad in grads], dim=2)


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute the attention of q, k and v (windows, heads, n, C / heads) with a bias (1 or windows, heads, n, n)."""
    # Estimates for a GPU assume its kernel. The meta device's own choice keeps all scores, as that of a CPU does.
    if q.is_meta and device_kind(q) == "cuda":
        repeated = bias.expand(len(q), -1, -1, -1)
        out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, repeated, True)[0]
        return out
    # The bias is not repeated for all windows here: torch first pads it to a multiple of eight, then repeats it.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@dataclass(frozen=True, eq=False)
class _BatchSlots:
    """Tokens and slots of a batch, see `Slots`. A window's slots come sample by sample, then those of the next one."""

    index: Tensor
    """(windows * B * n): token of each slot among the B * L; the value B * L is padding."""
    slot: Tensor
    """(B * L): slot of each token."""
    padded: Tensor
    """Slots of the padding."""


@cache
def _batch_slots(layout: WindowLayout, batch: int) -> _BatchSlots:
    sample = torch.arange(batch, device=layout.index.device).unsqueeze(1)
    token = layout.index.view(-1, 1, layout.length)
    token = torch.where(token < layout.tokens, token + sample * layout.tokens, batch * layout.tokens)

    def in_batch(slot: Tensor) -> Tensor:
        window, place = slot // layout.length, slot % layout.length
        return ((window * batch + sample) * layout.length + place).flatten()

    return _BatchSlots(token.flatten(), in_batch(layout.slot), in_batch(layout.padded))
