"""An optimizer from outside: a class with the interface of torch.optim.Optimizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from fusionseg.config.outside_part import OutsidePart, takes
from fusionseg.config.parts.sections import OptimizerSection
from fusionseg.config.registry import optimizers

if TYPE_CHECKING:
    from torch import optim

_PROBE = 1024  # size of the parameter on which the state of the optimizer is measured


@optimizers.register_outside
class OutsideOptimizer(OutsidePart, OptimizerSection):
    """An optimizer of the user's own, or of an installed library, such as torch.optim:RMSprop.

    It is called with the parameters, `lr`, `weight_decay` where it takes that, and `args`.
    """

    supplied: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Decay of the weights. Null is 1e-5 where the optimizer takes one."""

    @model_validator(mode="after")
    def _has_the_interface(self) -> OutsideOptimizer:
        part = self.part
        if not takes(part, "lr"):
            raise ValueError(f"name: {self.name} takes no lr (expected an optimizer such as torch.optim:SGD)")
        if self.weight_decay and not takes(part, "weight_decay"):
            raise ValueError(f"weight_decay: {self.name} takes none; remove it")
        step = inspect.signature(part.step).parameters.get("closure") if hasattr(part, "step") else None
        if step is None or step.default is inspect.Parameter.empty:
            raise ValueError(
                f"name: {self.name} has no step() without a closure (expected an optimizer such as torch.optim:SGD)"
            )
        return self

    def positional_arguments(self) -> int:
        """Return 1: the parameters."""
        return 1

    def build(self, parameters: list[Any]) -> optim.Optimizer:
        """Build the optimizer; see `OptimizerSection.build`."""
        part = self.part
        decay = {}
        if takes(part, "weight_decay"):
            decay = {"weight_decay": 1e-5 if self.weight_decay is None else self.weight_decay}
        made: optim.Optimizer = part(parameters, lr=self.lr, **decay, **self.args)
        return made

    def states_per_parameter(self) -> float:
        """Measure the values that one step of the optimizer keeps in its state, for each value of a small parameter."""
        import torch

        parameter = torch.nn.Parameter(torch.zeros(_PROBE))
        parameter.grad = torch.ones(_PROBE)
        optimizer = self.build([parameter])
        optimizer.step()
        kept = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        return sum(value.numel() for value in kept) / _PROBE
