"""The `model` section of the networks that are MONAI's as they stand."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.networks.base import NetworkSection, multiple_problem
from fusionseg.config.section import Ints, Positive, Probability, Triple

UNETR_TOKEN = 16  # voxels of a token in each axis; the decoder's four doublings lead back from it
PerLevel = Annotated[tuple[int | Triple, ...], Field(strict=False)]
"""One entry per level: a number for all three axes, or one for each axis."""


class SegResNetConfig(NetworkSection):
    """MONAI's SegResNet (Myronenko, 2018, arXiv:1810.11654), without the autoencoder branch."""

    name: Literal["segresnet"]
    """The SegResNet."""
    init_filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels of the first level; a multiple of 8, the group norm's groups."""
    blocks_down: Ints = (1, 2, 2, 4)
    """Residual blocks per level of the encoder."""
    blocks_up: Ints = (1, 1, 1)
    """Residual blocks per level of the decoder, one fewer than blocks_down."""
    dropout: Probability = 0.0
    """Share of channels that are dropped in training."""

    @model_validator(mode="after")
    def _levels(self) -> SegResNetConfig:
        fewest = min(self.blocks_down + self.blocks_up, default=0)
        if len(self.blocks_up) != len(self.blocks_down) - 1 or fewest < 1:
            raise ValueError("blocks_up: needs one number fewer than blocks_down, all at least 1")
        return self

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return multiple_problem(self.name, patch, 2 ** (len(self.blocks_down) - 1))


class SegResNetDSConfig(NetworkSection):
    """MONAI's SegResNet with heads at all resolutions of its decoder (Myronenko, 2018, arXiv:1810.11654; the
    form that Auto3DSeg trains). One residual block per level of the decoder; no dropout."""

    name: Literal["segresnet_ds"]
    """The SegResNet with deep supervision."""
    init_filters: Positive = 32
    """Channels of the first level; each level doubles them."""
    blocks_down: Ints = (1, 2, 2, 4)
    """Residual blocks per level of the encoder."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation. Batch norm takes its statistics over the micro-batches of all ranks, and so does depend on
    micro_batch: with accumulation, the same global batch is another training."""
    deep_supervision: bool = True
    """Heads at the lower resolutions of the decoder too, for the loss alone."""

    @field_validator("blocks_down")
    @classmethod
    def _levels(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(blocks) < 2 or min(blocks) < 1:
            raise ValueError(f"needs at least two levels of at least one block, and has {list(blocks)}")
        return blocks

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return multiple_problem(self.name, patch, 2 ** (len(self.blocks_down) - 1))


class UNETRConfig(NetworkSection):
    """MONAI's UNETR (Hatamizadeh et al., 2022, arXiv:2103.10504): a vision transformer of 12 blocks over tokens of
    16^3 voxels, and a convolutional decoder. Its position embedding belongs to one size of patch."""

    encoder: ClassVar[str | None] = "vit"

    name: Literal["unetr"]
    """The UNETR."""
    feature_size: Positive = 16
    """Channels of the decoder at full resolution."""
    hidden_size: Positive = 768
    """Width of a token."""
    mlp_dim: Positive = 3072
    """Width inside a transformer block's perceptron."""
    num_heads: Positive = 12
    """Attention heads; they divide hidden_size."""
    pos_embed: Literal["learnable", "sincos"] = "learnable"
    """Position embedding: learned, or fixed sines and cosines (hidden_size must then be a multiple of 6)."""
    dropout: Probability = 0.0
    """Share of the transformer's units that are dropped in training."""

    @model_validator(mode="after")
    def _widths_fit(self) -> UNETRConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}: choose a divisor, or"
                " another hidden_size"
            )
        if self.pos_embed == "sincos" and self.hidden_size % 6:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of 6, a sine and a cosine for each axis: choose"
                " one, or pos_embed: learnable"
            )
        return self

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return _axes_problem(self.name, patch, (UNETR_TOKEN,) * 3)


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

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        x, y, z = (prod(steps) for steps in zip(*self.level_strides, strict=True))
        return _axes_problem(self.name, patch, (x, y, z), least=2)


class MedNeXtConfig(NetworkSection):
    """MONAI's MedNeXt (Roy et al., 2023, arXiv:2303.09975): a U-Net of ConvNeXt blocks, five levels from 32
    channels."""

    name: Literal["mednext"]
    """The MedNeXt."""
    size: Literal["S", "B", "M", "L"] = "S"
    """The paper's networks (its Table 1): small, base, medium, large."""
    kernel_size: Literal[3, 5, 7] = 3
    """Kernel of the depthwise convolutions; the paper's are 3 and 5."""
    deep_supervision: bool = True
    """Heads at all lower resolutions too, for the loss alone."""

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return multiple_problem(self.name, patch, 16)


def _axes_problem(name: str, patch: Triple, multiples: Triple, *, least: int = 1) -> str | None:
    """The problem of a network that shrinks its maps to 1 / `multiples`, where `least` voxels must remain."""
    at_bottom = [max(1, round(size / unit)) for size, unit in zip(patch, multiples, strict=True)]
    too_small = prod(at_bottom) < least
    if too_small:
        at_bottom[patch.index(max(patch))] = least
    fixed = [count * unit for count, unit in zip(at_bottom, multiples, strict=True)]
    if fixed == list(patch):
        return None
    shown = str(multiples[0]) if len(set(multiples)) == 1 else f"{list(multiples)}"
    more = ", at least twice that in one axis" if least > 1 else ""
    return f"data.patch: {name} needs multiples of {shown}{more}, not {list(patch)}: try {fixed}"


def _per_axis(levels: tuple[int | Triple, ...]) -> tuple[Triple, ...]:
    return tuple((entry, entry, entry) if isinstance(entry, int) else entry for entry in levels)


def _listed(levels: tuple[Triple, ...]) -> list[int | list[int]]:
    return [triple[0] if len(set(triple)) == 1 else list(triple) for triple in levels]
