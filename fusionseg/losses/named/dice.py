"""Section and builder of Dice, cross-entropy, focal loss and their sums, with a softmax over the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fusionseg.config.parts.sections import LossSection
from fusionseg.config.registry import losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register()
class LossConfig(LossSection):
    """Loss of a micro-batch, with a softmax over the classes (losses of MONAI and torch)."""

    name: Literal["dice_ce", "dice", "dice_focal", "cross_entropy"] = "dice_ce"
    """Dice plus cross-entropy, Dice, Dice plus focal loss, or cross-entropy. The sums have equal weights."""
    include_background: bool = False
    """Count class 0 in the Dice part."""
    squared: bool = False
    """Square the terms of the Dice denominator (Milletari et al., 2016)."""
    batch_dice: bool = False
    """Compute the Dice over the whole micro-batch instead of each sample; the loss then depends on micro_batch."""
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing parameter of dice_focal (Lin et al., 2017, section 3.2)."""

    def build(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Build the loss at one resolution; see `LossSection.build`."""
        import torch.nn.functional as F
        from monai.losses import DiceCELoss, DiceLoss

        from fusionseg.losses.focal import focal_loss

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
            return lambda logits, label: dice_loss(logits, label) + focal_loss(logits, label, self.gamma)
        return DiceCELoss(**dice)
