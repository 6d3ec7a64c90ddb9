"""AdamW, Adam, SGD with Nesterov momentum, and Novograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from fusionseg.config.parts.sections import OptimizerSection
from fusionseg.config.registry import optimizers
from fusionseg.config.section import Pair

if TYPE_CHECKING:
    from torch import optim


@optimizers.register()
class OptimConfig(OptimizerSection):
    """The optimizer."""

    name: Literal["adamw", "adam", "sgd", "novograd"] = "adamw"
    """torch's AdamW, Adam or SGD, or MONAI's Novograd."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """Decay of the weights: decoupled for adamw, an L2 penalty for the others."""
    betas: Pair | None = None
    """For adamw, adam (default 0.9, 0.999) and novograd (0.9, 0.98)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """For sgd (Nesterov; default 0.99)."""

    @model_validator(mode="after")
    def _belongs(self) -> OptimConfig:
        if self.name == "sgd" and self.betas is not None:
            raise ValueError("betas: does not belong to sgd; remove it, or use momentum")
        if self.name != "sgd" and self.momentum is not None:
            raise ValueError(f"momentum: does not belong to {self.name}; remove it, or use betas")
        return self

    def build(self, parameters: list[Any]) -> optim.Optimizer:
        """Build the optimizer. Those of torch use fused kernels, which can skip a step on the device."""
        import torch
        from monai.optimizers import Novograd

        lr, decay = self.lr, self.weight_decay
        if self.name == "sgd":
            momentum = 0.99 if self.momentum is None else self.momentum
            sgd = torch.optim.SGD(
                parameters, lr=lr, weight_decay=decay, momentum=momentum, nesterov=momentum > 0, fused=True
            )
            if momentum > 0:
                # torch 2.13 would allocate this buffer at the first step without a value, and its kernel would fill it.
                # If that step is skipped, which is common for first steps in fp16, the buffer stays undefined.
                for parameter in (each for group in sgd.param_groups for each in group["params"]):
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd
        if self.name == "novograd":
            novograd: optim.Optimizer = Novograd(parameters, lr=lr, weight_decay=decay, betas=self.betas or (0.9, 0.98))
            return novograd
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(parameters, lr=lr, weight_decay=decay, betas=self.betas or (0.9, 0.999), fused=True)

    def states_per_parameter(self) -> float:
        """Return 2 for Adam and AdamW, 1 for SGD and for Novograd, whose second moment has one value per tensor."""
        return 2 if self.name in ("adamw", "adam") else 1
