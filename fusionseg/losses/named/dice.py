"""Section and builder of Dice, cross-entropy, focal loss and their sums, with softmax or sigmoid outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fusionseg.config.parts.sections import LossSection, SingleResolutionLoss
from fusionseg.config.registry import losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register()
class LossConfig(LossSection):
    """Loss of a micro-batch. Classes that exclude each other have a softmax (losses of MONAI and torch). With sigmoid
    outputs (regions, `data.outputs`), Dice, cross-entropy and focal loss are those of each output."""

    name: Literal["dice_ce", "dice", "dice_focal", "cross_entropy"] = "dice_ce"
    """Dice plus cross-entropy, Dice, Dice plus focal loss, or cross-entropy. The sums have equal weights."""
    include_background: bool = False
    """Count class 0 in the Dice part. Sigmoid outputs have no channel of the background."""
    squared: bool = False
    """Square the terms of the Dice denominator (Milletari et al., 2016)."""
    batch_dice: bool = False
    """Compute the Dice over the whole micro-batch instead of each sample; the loss then depends on micro_batch."""
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing parameter of dice_focal (Lin et al., 2017, section 3.2)."""

    def build(self, *, sigmoid: bool) -> SingleResolutionLoss:
        """Build the loss at one resolution; see `LossSection.build`."""
        from fusionseg.losses.voxelwise import binary_cross_entropy, dice_loss, one_hot, softmax_cross_entropy

        dice = partial(dice_loss, squared=self.squared, batch=self.batch_dice)
        gamma = self.gamma if self.name == "dice_focal" else 0.0
        first = 0 if self.include_background else 1

        def of_sigmoid(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
            return self._sum(
                lambda: dice(logits.sigmoid(), target, mask),
                lambda: binary_cross_entropy(logits, target, mask, gamma),
            )

        def of_softmax(logits: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None and logits.device.type == "cpu":
                return unmasked(logits, label)
            return self._sum(
                lambda: dice(logits.softmax(dim=1)[:, first:], one_hot(label, logits)[:, first:], mask),
                lambda: softmax_cross_entropy(logits, label, mask, gamma),
            )

        if sigmoid:
            return of_sigmoid
        # On a GPU each operator costs time for its launch, and MONAI's form of these formulas has twice as many.
        unmasked = self._unmasked_softmax_loss()
        return of_softmax

    def _sum(self, dice: Callable[[], Tensor], voxelwise: Callable[[], Tensor]) -> Tensor:
        """Add the parts that the name asks for."""
        if self.name == "dice":
            return dice()
        return voxelwise() if self.name == "cross_entropy" else dice() + voxelwise()

    def _unmasked_softmax_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Build the loss of MONAI and torch, for labels without ignored voxels."""
        import torch.nn.functional as F
        from monai.losses import DiceCELoss, DiceLoss

        from fusionseg.losses.voxelwise import softmax_cross_entropy

        if self.name == "cross_entropy":
            return lambda logits, label: F.cross_entropy(logits, label.squeeze(1))
        dice = {
            "include_background": self.include_background,
            "to_onehot_y": True,
            "softmax": True,
            "squared_pred": self.squared,
            "batch": self.batch_dice,
        }
        if self.name == "dice":
            return DiceLoss(**dice)
        if self.name == "dice_focal":
            # Not MONAI's DiceFocalLoss: its focal term uses a sigmoid for each class instead of a softmax.
            dice_loss = DiceLoss(**dice)
            return lambda logits, label: (
                dice_loss(logits, label) + softmax_cross_entropy(logits, label, None, self.gamma)
            )
        return DiceCELoss(**dice)
