"""Losses from outside: a class or a function of logits and labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fusionseg.config.outside import PartError
from fusionseg.config.outside_part import OutsidePart, takes
from fusionseg.config.parts.sections import LossSection
from fusionseg.config.registry import losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register_outside
class OutsideLoss(OutsidePart, LossSection):
    """A loss of the user's own, or of an installed library, such as monai.losses:TverskyLoss.

    It maps logits (B, K, X, Y, Z) and labels (B, 1, X, Y, Z) to one number. A class is created with `args` and its
    object is called; a function is called with `args`. MONAI's arguments to_onehot_y and softmax (or use_softmax) are
    true unless `args` sets them.
    """

    def positional_arguments(self) -> int:
        """Return the number of positional arguments: logits and labels for a function, none for a class."""
        return 0 if inspect.isclass(self.part) else 2

    def build(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Build the loss at one resolution; see `LossSection.build`.

        Raises:
            PartError: its object cannot be called, or has parameters, which no optimizer would train.
        """
        from torch import nn

        part = self.part
        if not inspect.isclass(part):
            function: Callable[[Tensor, Tensor], Tensor] = partial(part, **self.args)
            return function
        loss = part(**self._monai_defaults(part), **self.args)
        if not callable(loss):
            raise PartError(
                f"an object of {self.name} cannot be called (expected a function of logits and labels); name another"
            )
        if not isinstance(loss, nn.Module):
            return loss  # type: ignore[no-any-return]
        if any(parameter.requires_grad for parameter in loss.parameters()):
            raise PartError(f"{self.name} has parameters, but only those of the network are trained; name another")

        def on_the_device_of_the_logits(logits: Tensor, label: Tensor) -> Tensor:
            made: Tensor = loss.to(logits.device)(logits, label)
            return made

        has_tensors = next(loss.buffers(), None) is not None or next(loss.parameters(), None) is not None
        return on_the_device_of_the_logits if has_tensors else loss

    def _monai_defaults(self, part: Any) -> dict[str, bool]:
        """Return the arguments with which a loss of MONAI accepts class indices and logits."""
        wanted = ["to_onehot_y"]
        if not any(self.args.get(key) for key in ("sigmoid", "use_sigmoid", "other_act")):
            wanted += ["softmax", "use_softmax"]
        return {key: True for key in wanted if takes(part, key) and key not in self.args}
