"""Section and builder of nnU-Net's U-Nets, based on MONAI's DynUNet."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Probability, Triple
from fusionseg.models.patch_sizes import axes_problem
from fusionseg.models.per_level import PerLevel, levels_problem, per_axis

if TYPE_CHECKING:
    from torch import nn


@networks.register()
class NNUNetConfig(NetworkSection):
    """nnU-Net's U-Nets, built with MONAI's DynUNet.

    The plain one is nnU-Net's network without the biases of the convolutions, which have no effect before a norm. The
    residual one is smaller than nnU-Net's ResEnc networks: each level of the encoder has one residual block (ResEnc: 1,
    3, 4, 6, 6, 6), each level of the decoder has two plain convolutions (ResEnc: one), and the shortcuts are strided
    convolutions (ResEnc: average pooling). `resenc_unet` is nnU-Net's ResEnc network. Weights of nnU-Net cannot be
    loaded.
    """

    fewest_levels_with_heads: ClassVar[int] = 3

    name: Literal["nnunet_plain", "nnunet_residual"]
    """Plain convolutions (Isensee et al., 2021, doi:10.1038/s41592-020-01008-z), or a residual block on each level of
    the encoder (after Isensee et al., 2024, arXiv:2404.09556)."""
    filters: Ints = (32, 64, 128, 256, 320, 320)
    """Channels of each level, highest resolution first; at least three levels."""
    kernels: PerLevel | None = None
    """Kernel of each level, odd; null is 3 for all. Example for thick slices: [[1, 3, 3], 3, 3]."""
    strides: PerLevel | None = None
    """Downsampling factors between the levels, 1 or 2, one entry fewer than filters; null is 2 for all."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation; group norm has 8 groups. Batch norm has statistics over the micro-batches of all ranks. So it
    depends on micro_batch: with accumulation, the same global batch is another training."""
    dropout: Probability = 0.0
    """Probability that a value is dropped in training, after each convolution but those of the heads."""
    deep_supervision: bool = True
    """Heads at lower resolutions too, except the two lowest as in nnU-Net (of three levels, except the lowest); only
    the loss uses them."""

    @model_validator(mode="after")
    def _levels_fit(self) -> NNUNetConfig:
        if problem := levels_problem(self.filters, self.level_kernels, self.level_strides, "filters"):
            raise ValueError(problem)
        if self.norm == "group" and any(width % 8 for width in self.filters):
            raise ValueError(
                f"filters: expected multiples of 8 (the groups of group norm), got {list(self.filters)}; change"
                " them, or norm"
            )
        return self

    @property
    def level_kernels(self) -> tuple[Triple, ...]:
        """Kernel of each level along each axis."""
        return per_axis(self.kernels or (3,) * len(self.filters))

    @property
    def level_strides(self) -> tuple[Triple, ...]:
        """Downsampling factors between the levels along each axis."""
        return per_axis(self.strides or (2,) * (len(self.filters) - 1))

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from fusionseg.models.nnunet import NNUNet

        return NNUNet(
            in_channels,
            out_channels,
            filters=self.filters,
            kernels=self.level_kernels,
            strides=self.level_strides,
            norm=self.norm,
            dropout=self.dropout,
            residual=self.name == "nnunet_residual",
            deep_supervision=self.deep_supervision,
        )

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        x, y, z = (prod(steps) for steps in zip(*self.level_strides, strict=True))
        return axes_problem(self.name, patch, (x, y, z), least=2)
