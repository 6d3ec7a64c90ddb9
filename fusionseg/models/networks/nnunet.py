"""nnU-Net's U-Nets, built on MONAI's DynUNet."""

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
"""One entry per level: a number for all three axes, or one for each axis."""


@networks.register()
class NNUNetConfig(NetworkSection):
    """nnU-Net's U-Nets as MONAI's DynUNet makes them.

    The plain one is nnU-Net's but for the convolutions' biases, which a norm that follows makes idle. The residual
    one is smaller than nnU-Net's ResEnc networks: one residual block on each level of the encoder where those have
    1, 3, 4, 6, 6, 6, two plain convolutions on each of the decoder where those have one, and shortcuts that shrink
    by a strided convolution instead of average pooling. Weights of nnU-Net do not fit.
    """

    name: Literal["nnunet_plain", "nnunet_residual"]
    """Plain convolutions (Isensee et al., 2021, doi:10.1038/s41592-020-01008-z), or a residual block on each level of
    the encoder (after Isensee et al., 2024, arXiv:2404.09556)."""
    filters: Ints = (32, 64, 128, 256, 320, 320)
    """Channels per level, from the top; at least three levels."""
    kernels: PerLevel | None = None
    """Kernel of each level, odd; null is 3 everywhere. For thick slices, such as [[1, 3, 3], 3, 3]."""
    strides: PerLevel | None = None
    """Downsampling from each level to the next, 1 or 2, one entry fewer than filters; null is 2 everywhere."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation; group norm has 8 groups. Batch norm takes its statistics over the micro-batches of all ranks, and
    so does depend on micro_batch: with accumulation, the same global batch is another training."""
    dropout: Probability = 0.0
    """Share of the values that are dropped after each convolution in training, but for the heads."""
    deep_supervision: bool = True
    """Heads at the lower resolutions of the decoder too, for the loss alone; none at the two lowest, as in nnU-Net."""

    @model_validator(mode="after")
    def _levels_fit(self) -> NNUNetConfig:
        levels = len(self.filters)
        if levels < 3 or min(self.filters) < 1:
            raise ValueError(
                f"filters: needs at least three levels of at least one channel, and has {list(self.filters)}"
            )
        if self.norm == "group" and any(width % 8 for width in self.filters):
            raise ValueError(
                f"filters: {list(self.filters)} are not all multiples of 8, the group norm's groups: change them, or"
                " norm"
            )
        if len(self.level_kernels) != levels or any(size < 1 or size % 2 == 0 for size in sum(self.level_kernels, ())):
            raise ValueError(
                f"kernels: needs {levels} odd numbers or triples of them, one for each of the filters, and has"
                f" {_listed(self.level_kernels)}"
            )
        if len(self.level_strides) != levels - 1 or any(step not in (1, 2) for step in sum(self.level_strides, ())):
            raise ValueError(
                f"strides: needs {levels - 1} entries, one fewer than filters, each 1 or 2 or a triple of them, and has"
                f" {_listed(self.level_strides)}"
            )
        return self

    @property
    def level_kernels(self) -> tuple[Triple, ...]:
        """Kernel of each level, per axis."""
        return _per_axis(self.kernels or (3,) * len(self.filters))

    @property
    def level_strides(self) -> tuple[Triple, ...]:
        """Downsampling from each level to the next, per axis."""
        return _per_axis(self.strides or (2,) * (len(self.filters) - 1))

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """The network, freshly initialised; see `fusionseg.models.build_model`."""
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
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        x, y, z = (prod(steps) for steps in zip(*self.level_strides, strict=True))
        return axes_problem(self.name, patch, (x, y, z), least=2)


def _per_axis(levels: tuple[int | Triple, ...]) -> tuple[Triple, ...]:
    return tuple((entry, entry, entry) if isinstance(entry, int) else entry for entry in levels)


def _listed(levels: tuple[Triple, ...]) -> list[int | list[int]]:
    return [triple[0] if len(set(triple)) == 1 else list(triple) for triple in levels]
