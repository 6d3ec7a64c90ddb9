"""Layer norm in the type of its input: on a GPU, autocast would compute it in float32, and cast input and output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models.device_kind import device_kind
from fusionseg.models.memory_efficient.autograd_helpers import autocast_disabled, matmul_dtype


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis. On a GPU the result has the type of matrix products.

    The kernel computes mean and deviation in float32 for an input of 16 bits too. In 16 bits the weights are cast once
    a step, with those of the convolutions (`fusionseg.models.weight_casts`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., C)."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Apply a layer norm; on a GPU the result has the type of matrix products.

    Args:
        x: (..., *shape).
        shape: the normalised axes.
        weight: of `shape`, or None.
        bias: likewise.
        eps: added to the variance.
    """
    if device_kind(x) == "cpu":
        return F.layer_norm(x, list(shape), weight, bias, eps)
    dtype = matmul_dtype(x)
    with autocast_disabled(x):
        weight, bias = (None if value is None else value.to(x.dtype) for value in (weight, bias))
        return F.layer_norm(x, list(shape), weight, bias, eps).to(dtype)
