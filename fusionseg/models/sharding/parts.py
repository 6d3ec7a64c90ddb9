"""The parts of divided weights on this rank, as parameters of an optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.models.sharding.tensors import divided, local_part, part_of


class LocalParts:
    """The parts of the weights of a divided network on this rank, for an optimizer that knows nothing of the division.

    torch's fused SGD has no form for divided tensors (torch 2.13), and for the others the host would decide in each
    step how the operator divides. A part is in the memory of its weight, so that an update changes the weight.

    Args:
        groups: parameter groups of the optimizer, with the weights of the network.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._weights: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
        self._parts = [nn.Parameter(local_part(weight), requires_grad=weight.requires_grad) for weight in self._weights]
        parts = iter(self._parts)
        self.groups = [{**group, "params": [next(parts) for _ in group["params"]]} for group in groups]
        """The groups, with the parts of the weights."""

    def drop_gradients(self) -> None:
        """Remove the gradients of the weights; the optimizer removes those of the parts."""
        for weight in self._weights:
            weight.grad = None

    def take_gradients(self) -> None:
        """Give the parts the gradients of the weights, in the same memory."""
        for weight, part in self._pairs():
            part.grad = None if weight.grad is None else local_part(weight.grad)

    @staticmethod
    def make_scaler(device_type: str, *, enabled: bool) -> torch.amp.GradScaler:
        """Make a scaler of the loss with which all ranks agree on infinite gradients, of which each has a part."""
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device_type, enabled=enabled)

    def divided_state(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict of the optimizer with divided tensors, which can be gathered for a checkpoint.

        Args:
            saved: `state_dict()` of the optimizer; its tensors are those of the parts.
        """
        states = {
            index: {
                name: divided(value, self._weights[index]) if _is_map(value, self._parts[index]) else value
                for name, value in values.items()
            }
            for index, values in saved["state"].items()
        }
        return {**saved, "state": states}

    def own_state(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return this rank's part of the state dict of an optimizer.

        Args:
            saved: the state dict in a checkpoint, with whole tensors. Its parameters are those of `groups`.
        """
        states = {
            index: {
                name: part_of(value, self._weights[index]) if _is_map(value, self._weights[index]) else value
                for name, value in values.items()
            }
            for index, values in saved["state"].items()
        }
        return {**saved, "state": states}

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self._weights, self._parts, strict=True)


def _is_map(value: Any, parameter: Tensor) -> bool:
    """Tell whether a state of an optimizer has a value for each value of a parameter."""
    return isinstance(value, Tensor) and value.shape == parameter.shape
