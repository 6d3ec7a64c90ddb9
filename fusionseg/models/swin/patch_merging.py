"""Patch merging of the Swin encoder: the tokens of 2 x 2 x 2 places become one, by few operations.

Source: Z. Liu et al., "Swin Transformer" (2021, section 3.1, arXiv:2103.14030).
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from monai.networks.nets.swin_unetr import PatchMerging as MonaiPatchMerging
from torch import Tensor
from torch.nn import functional as F

from fusionseg.models.memory_efficient.autograd_helpers import uses_chunks
from fusionseg.models.memory_efficient.layer_norm import LayerNorm

_PLACES = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
"""Places of the tokens in the order of MONAI's channels."""
_IN_MEMORY = tuple(sorted(range(len(_PLACES)), key=_PLACES.__getitem__))
"""The parts of the merged channels in the order of their places: z changes fastest."""


class PatchMerging(MonaiPatchMerging):
    """Concatenate the channels of 2 x 2 x 2 tokens, normalise, and reduce 8 C channels to 2 C.

    Output and state dict are those of MONAI's `PatchMerging`. Its slices have a gradient each, of the size of the
    input; here all of them have one.
    """

    implementation: ClassVar[str] = "fused"

    def __init__(self, dim: int) -> None:
        super().__init__(dim, norm_layer=LayerNorm)  # type: ignore[arg-type]

    def forward(self, x_BXYZC: Tensor) -> Tensor:
        """Map tokens (B, X, Y, Z, C) to (B, X / 2, Y / 2, Z / 2, 2 C); odd axes are padded with 0."""
        odd = [size % 2 for size in x_BXYZC.shape[1:4]]
        if any(odd):
            x_BXYZC = F.pad(x_BXYZC, (0, 0, 0, odd[2], 0, odd[1], 0, odd[0]))
        merged = _merge(x_BXYZC) if torch.jit.is_tracing() else _Merge.apply(x_BXYZC)
        reduced: Tensor = self.reduction(self.norm(merged))
        return reduced


def _merge(x_BXYZC: Tensor) -> Tensor:
    return torch.cat([x_BXYZC[:, i::2, j::2, k::2] for i, j, k in _PLACES], -1)


@cache
def _place_of_token(size: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Return for each of the tokens (B, 2 X, 2 Y, 2 Z) its place in (B, X, Y, Z, 8), given the smaller size."""
    batch, x, y, z = size
    places = torch.arange(batch * x * y * z * 8, device=device).view(batch, x, y, z, 8)
    parts = places.unbind(-1)
    cells = torch.stack([parts[index] for index in _IN_MEMORY], -1).view(batch, x, y, z, 2, 2, 2)
    return cells.permute(0, 1, 4, 2, 5, 3, 6).flatten()


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _merge(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        batch, x, y, z, channels = grad.shape
        if not (uses_chunks(grad) or torch.compiler.is_compiling()):  # one operator instead of two
            rows = grad.reshape(-1, channels // 8).index_select(0, _place_of_token((batch, x, y, z), grad.device))
            return rows.view(batch, 2 * x, 2 * y, 2 * z, -1)
        parts = grad.chunk(8, -1)
        ordered = torch.stack([parts[index] for index in _IN_MEMORY], 4)
        cells = ordered.view(batch, x, y, z, 2, 2, 2, channels // 8)
        return cells.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, 2 * x, 2 * y, 2 * z, channels // 8)
