"""Losses from outside: a class or a function of logits and labels."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fusionseg.config.outside import PartError
from fusionseg.config.outside_part import OutsidePart, takes
from fusionseg.config.parts.sections import LossSection, SingleResolutionLoss
from fusionseg.config.registry import losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register_outside
class OutsideLoss(OutsidePart, LossSection):
    """A loss of the user's own, or of an installed library, such as monai.losses:TverskyLoss.

    It maps logits (B, K, X, Y, Z) and labels (B, 1, X, Y, Z) to one number. With sigmoid outputs it maps logits
    (B, R, X, Y, Z) and the membership of each output (B, R, X, Y, Z), 0 or 1, float32. A class is created with `args`
    and its object is called; a function is called with `args`. MONAI's arguments to_onehot_y and softmax (or
    use_softmax), with sigmoid outputs the argument sigmoid, are true unless `args` sets them.

    Where voxels are without annotation, the loss must take an argument `mask`.
    """

    supplied: ClassVar[tuple[str, ...]] = ("mask",)

    def positional_arguments(self) -> int:
        """Return the number of positional arguments: logits and labels for a function, none for a class."""
        return 0 if inspect.isclass(self.part) else 2

    def build(self, *, sigmoid: bool) -> SingleResolutionLoss:
        """Build the loss at one resolution; see `LossSection.build`.

        Raises:
            PartError: its object cannot be called; it has parameters, which no optimizer would train; or `args` asks
                for a softmax over sigmoid outputs.
        """
        from torch import nn

        loss, has_tensors = self._loss(sigmoid=sigmoid), False
        if isinstance(loss, nn.Module):
            if any(parameter.requires_grad for parameter in loss.parameters()):
                raise PartError(f"{self.name} has parameters, but only those of the network are trained; name another")
            has_tensors = next(loss.buffers(), None) is not None or next(loss.parameters(), None) is not None
        takes_mask = takes(loss.forward if isinstance(loss, nn.Module) else loss, "mask")

        def call(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
            if mask is not None and not takes_mask:
                raise PartError(
                    f"{self.name} takes no mask, and voxels of this data set are without annotation (an ignore label,"
                    " or cases that annotate some classes only); give it an argument mask, which is False for them, or"
                    " name a built-in loss"
                )
            on_device = loss.to(logits.device) if has_tensors else loss
            made: Tensor = on_device(logits, target, mask=mask) if takes_mask else on_device(logits, target)
            return made

        return call

    def _loss(self, *, sigmoid: bool) -> Any:
        """Make the object that is called: the function with its arguments, or an object of the class.

        Raises:
            PartError: see `build`.
        """
        part = self.part
        if not inspect.isclass(part):
            return partial(part, **self.args)
        if sigmoid and (wrong := [key for key in ("softmax", "use_softmax", "to_onehot_y") if self.args.get(key)]):
            raise PartError(
                f"{self.name}: the outputs of this data set are sigmoid (regions, or data.outputs), and args asks for"
                f" {', '.join(wrong)}; remove it"
            )
        loss = part(**self._monai_defaults(part, sigmoid=sigmoid), **self.args)
        if not callable(loss):
            raise PartError(
                f"an object of {self.name} cannot be called (expected a function of logits and labels); name another"
            )
        return loss

    def _monai_defaults(self, part: Any, *, sigmoid: bool) -> dict[str, bool]:
        """Return the arguments with which a loss of MONAI accepts the target and logits."""
        wanted = [] if sigmoid else ["to_onehot_y"]
        if not any(self.args.get(key) for key in ("sigmoid", "use_sigmoid", "other_act")):
            wanted += ["sigmoid"] if sigmoid else ["softmax", "use_softmax"]
        return {key: True for key in wanted if takes(part, key) and key not in self.args}
