"""Automatic mixed precision for the meta device, which torch's autocast does not know.

Source: the lists of operations in torch's documentation, "Automatic Mixed Precision package", sections "CUDA Ops that
can autocast" and "CPU Ops that can autocast". Operations that no network here uses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_IN_16_BITS = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *(
        "linear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "addmm",
        "addbmm",
        "baddbmm",
        "einsum",
        "chain_matmul",
    ),
    *("prelu", "scaled_dot_product_attention"),
}
"""Operations that compute in 16 bits on every device."""

_IN_32_BITS = {
    "cuda": {
        *("softmax", "log_softmax", "layer_norm", "group_norm", "norm", "cosine_similarity", "cdist"),
        *("exp", "expm1", "log", "log2", "log10", "log1p", "pow", "__pow__", "reciprocal", "rsqrt", "softplus"),
        *("sum", "prod", "cumsum", "cumprod", "grid_sampler", "cross_entropy_loss", "nll_loss", "mse_loss", "l1_loss"),
    },
    "cpu": {"avg_pool3d", "grid_sampler", "prod", "cdist", "cross_entropy_loss", "mse_loss", "l1_loss", "nll_loss"},
}
"""Operations that compute in float32, by the type of the device."""

_IN_WIDEST = {"cat", "stack", "index_copy"}
"""Operations whose arguments all get the widest type among them. torch's own operators promote in the same way."""


class MetaAutocast(TorchFunctionMode):  # type: ignore[misc]
    """Convert the arguments of operations on the meta device where autocast does so on another device.

    It acts while the autocast of the CPU is on (`torch.autocast("cpu", dtype)`), which itself leaves tensors on the
    meta device alone. So the code of networks and of activation checkpointing sees the state that it expects.

    Args:
        kind: type of the device, "cuda" or "cpu".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._in_32_bits = _IN_32_BITS[kind]
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            return self._backward(args[0])
        if torch.is_autocast_enabled("cpu"):
            name = getattr(func, "__name__", "")
            dtype = torch.get_autocast_dtype("cpu") if name in _IN_16_BITS else None
            if name in self._in_32_bits:
                dtype = torch.float32
            elif name in _IN_WIDEST:
                dtype = torch.float32 if _has_float32((args, kwargs)) else None
            if dtype is not None:
                args, kwargs = tree_map(lambda value: self._converted(value, dtype), (args, kwargs))
        else:
            self._weights.clear()
        return func(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        """Run the backward pass with this mode, which activation checkpointing needs to compute a forward pass again.

        `Tensor.backward` and `torch.autograd.backward` would switch the mode off, as functions that it has received.
        """
        with self:
            torch.autograd.Variable._execution_engine.run_backward(  # type: ignore[attr-defined]
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _converted(self, value: Any, dtype: torch.dtype) -> Any:
        if not (isinstance(value, Tensor) and value.is_meta and value.dtype in _FLOATS and value.dtype != dtype):
            return value
        if not (value.is_leaf and value.requires_grad and dtype != torch.float32):
            return value.to(dtype)
        # A weight is converted once in a forward pass, as torch's own autocast does it.
        kept = self._weights.get(id(value))
        if kept is None or torch.is_grad_enabled() != kept[1].requires_grad:
            kept = self._weights[id(value)] = (value, value.to(dtype))
        return kept[1]


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _has_float32(arguments: Any) -> bool:
    return any(isinstance(value, Tensor) and value.dtype == torch.float32 for value in tree_leaves(arguments))
