"""Section and builder of nnU-Net's U-Nets, based on MONAI's DynUNet."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Probability, Triple
from fusionseg.models.patch_sizes import axes_problem

if TYPE_CHECKING:
    from torch import nn

PerLevel = Annotated[tuple[int | Triple, ...], Field(strict=False)]
"""One entry for each level: a number for all three axes, or one number for each axis."""


@networks.register()
class NNUNetConfig(NetworkSection):
    """nnU-Net's U-Nets, built with MONAI's DynUNet.

    The plain one is nnU-Net's network without the biases of the convolutions, which have no effect before a norm. The
    residual one is smaller than nnU-Net's ResEnc networks: each level of the encoder has one residual block (ResEnc: 1,
    3, 4, 6, 6, 6), each level of the decoder has two plain convolutions (ResEnc: one), and the shortcuts are strided
    convolutions (ResEnc: average pooling). Weights of nnU-Net cannot be loaded.
    """

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
    """Heads at lower resolutions too, except the two lowest as in nnU-Net; only the loss uses them."""

    @model_validator(mode="after")
    def _levels_fit(self) -> NNUNetConfig:
        levels = len(self.filters)
        if levels < 3 or min(self.filters) < 1:
            raise ValueError(
                f"filters: expected at least three levels of at least one channel, got {list(self.filters)}"
            )
        if self.norm == "group" and any(width % 8 for width in self.filters):
            raise ValueError(
                f"filters: expected multiples of 8 (the groups of group norm), got {list(self.filters)}; change"
                " them, or norm"
            )
        if len(self.level_kernels) != levels or any(size < 1 or size % 2 == 0 for size in sum(self.level_kernels, ())):
            raise ValueError(
                f"kernels: expected {levels} odd numbers or triples of them, one for each of the filters, got"
                f" {_listed(self.level_kernels)}"
            )
        if len(self.level_strides) != levels - 1 or any(step not in (1, 2) for step in sum(self.level_strides, ())):
            raise ValueError(
                f"strides: expected {levels - 1} entries, one fewer than filters, each 1 or 2 or a triple of them, got"
                f" {_listed(self.level_strides)}"
            )
        return self

    @property
    def level_kernels(self) -> tuple[Triple, ...]:
        """Kernel of each level along each axis."""
        return _per_axis(self.kernels or (3,) * len(self.filters))

    @property
    def level_strides(self) -> tuple[Triple, ...]:
        """Downsampling factors between the levels along each axis."""
        return _per_axis(self.strides or (2,) * (len(self.filters) - 1))

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


def _per_axis(levels: tuple[int | Triple, ...]) -> tuple[Triple, ...]:
    return tuple((entry, entry, entry) if isinstance(entry, int) else entry for entry in levels)


def _listed(levels: tuple[Triple, ...]) -> list[int | list[int]]:
    return [triple[0] if len(set(triple)) == 1 else list(triple) for triple in levels]
