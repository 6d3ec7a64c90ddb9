"""Section and builder of the U-Net family, in 3D or over 2D slices."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Positive, Probability, Triple
from fusionseg.models.unet.levels import at_least_two_levels, with_possible_heads

if TYPE_CHECKING:
    from fusionseg.models.unet.network import UNet

VIEW_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis of a prepared volume along which the slices of a view are stacked. The axes are left-right, back-front and
feet-head."""
NORM_GROUPS = 8

LevelStrides = Annotated[tuple[Positive | Ints, ...], Field(strict=False)]


@networks.register()
class UNetConfig(NetworkSection):
    """U-Nets: an encoder with strided convolutions, a decoder with transposed convolutions, and skip connections
    (Cicek et al., 2016, arXiv:1606.06650; in nnU-Net's form of Isensee et al., 2021)."""

    encoder: ClassVar[str | None] = "encoder"
    encoder_layer: ClassVar[str] = r"\d+\."
    fewest_levels_with_heads: ClassVar[int] = 4

    name: Literal["unet", "resunet", "attention_unet", "attention_resunet"]
    """`unet`: plain; `res`: a residual connection around the convolutions of each level (Zhang et al., 2018,
    arXiv:1711.10684); `attention`: gates on all skip connections but that of full resolution (Oktay et al., 2018,
    arXiv:1804.03999)."""
    channels: Ints = (32, 64, 128, 256)
    """Channels of each level, highest resolution first; their number is the number of levels."""
    strides: LevelStrides | None = None
    """Downsampling factors between the levels, one entry fewer than channels. An entry is a number, or a list with one
    number for each axis. Example for thick axial slices: [[2, 2, 1], 2, 2]. null is 2 for all."""
    convs_per_level: Positive = 2
    """Convolutions in each level of the encoder and of the decoder."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalisation. Batch norm has statistics over the micro-batches of all ranks (synchronised, on GPUs and on CPUs).
    So it depends on micro_batch: with accumulation, the same global batch is another training."""
    norm_groups: Positive | None = None
    """Groups of group norm; every number in channels must be a multiple of it; null is 8."""
    activation: Literal["leakyrelu", "relu"] = "leakyrelu"
    """Activation; leakyrelu has a slope of 0.01 below zero."""
    separable: bool = False
    """Depthwise separable convolutions (a depthwise one, then a pointwise one) for all but the first convolution, which
    reads the few channels of the image. They have several times fewer parameters and operations, but are faster only on
    devices with fast depthwise convolutions."""
    dropout: Probability = 0.0
    """Probability that a channel is dropped in training, after each convolution."""
    deep_supervision: bool = False
    """In training, heads at the lower resolutions of the decoder too, except the two lowest levels. The weight in the
    loss is halved from each resolution to the next lower one (Isensee et al., 2021)."""
    dims: Literal[3, 2] = 3
    """3: convolutions in three dimensions. 2: every slice of `view` is an image of its own. Input and output are
    volumes in both cases; with 2, a patch may have any number of slices."""
    view: Literal["axial", "coronal", "sagittal"] | None = None
    """Slices for dims: 2: perpendicular to the feet-head axis (axial), the back-front axis (coronal) or the left-right
    axis (sagittal) of the prepared volume. Runs of several views can predict as an ensemble."""

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        return at_least_two_levels(channels)

    @field_validator("strides", mode="wrap")
    @classmethod
    def _numbers_or_lists(cls, raw: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(raw)
        except ValidationError:  # one message instead of one for each type of an entry
            raise ValueError(
                "expected a list, each entry an integer from 1 or a list with one for each axis, such as"
                f" [[2, 2, 1], 2, 2], got {raw!r}"
            ) from None

    @model_validator(mode="after")
    def _parts_fit(self) -> UNetConfig:
        if self.dims == 2 and self.view is None:
            raise ValueError(f"view: missing for dims: 2; set it to {', '.join(sorted(VIEW_AXES))}")
        if self.dims == 3 and self.view is not None:
            raise ValueError(f"view: {self.view} needs dims: 2, got dims: 3; set dims: 2, or remove view")
        steps = self.strides or ()
        wrong = any(not isinstance(step, int) and (len(step) != self.dims or min(step) < 1) for step in steps)
        if self.strides is not None and (wrong or len(steps) != len(self.channels) - 1):
            raise ValueError(
                f"strides: expected {len(self.channels) - 1} entries, one fewer than channels, each an integer from"
                f" 1 or a list of {self.dims} of them, got {[s if isinstance(s, int) else list(s) for s in steps]}"
            )
        if self.norm != "group" and self.norm_groups is not None:
            raise ValueError(f"norm_groups: only for norm: group, got norm: {self.norm}; remove the key")
        undivided = [width for width in self.channels if width % self.groups]
        if self.norm == "group" and undivided:
            raise ValueError(
                f"norm_groups: {self.groups} does not divide {undivided} of channels; choose a divisor of every level,"
                " or other channels"
            )
        if self.has_gates and len(self.channels) < 3:
            raise ValueError(
                f"channels: {self.name} needs three levels (the first skip has no gate), got {list(self.channels)}"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self, info: ValidationInfo) -> UNetConfig:
        return with_possible_heads(self, info, "channels")

    @property
    def groups(self) -> int:
        return self.norm_groups or NORM_GROUPS

    @property
    def is_residual(self) -> bool:
        return self.name in ("resunet", "attention_resunet")

    @property
    def has_gates(self) -> bool:
        return self.name in ("attention_unet", "attention_resunet")

    @property
    def stack_axis(self) -> int | None:
        """Axis of a volume along which slices are stacked; None for a 3D network."""
        return None if self.view is None else VIEW_AXES[self.view]

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Downsampling factors between the levels, one for each axis of the network."""
        steps = self.strides or (2,) * (len(self.channels) - 1)
        return tuple((step,) * self.dims if isinstance(step, int) else step for step in steps)

    def build(self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool) -> UNet:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from fusionseg.models.unet.network import UNet, block_settings

        return UNet(
            in_channels,
            out_channels,
            channels=self.channels,
            strides=self.level_strides,
            settings=block_settings(
                self.dims,
                self.norm,
                self.groups,
                self.activation,
                dropout=self.dropout,
                separable=self.separable,
                convs=self.convs_per_level,
                residual=self.is_residual,
            ),
            gates=self.has_gates,
            deep_supervision=self.deep_supervision,
            stack_axis=self.stack_axis,
        )

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        axes = [axis for axis in range(3) if axis != self.stack_axis]
        total = [prod(steps) for steps in zip(*self.level_strides, strict=True)]
        bottom = [max(1, round(patch[axis] / unit)) for axis, unit in zip(axes, total, strict=True)]
        too_small = prod(bottom) < 2  # a norm over a single voxel is not possible
        if too_small:
            bottom[bottom.index(max(bottom))] = 2
        fixed = list(patch)
        for axis, unit, count in zip(axes, total, bottom, strict=True):
            fixed[axis] = unit * count
        if fixed == list(patch):
            return None
        multiples = f"multiples of {total[0] if len(set(total)) == 1 else total}"
        if self.view is not None:
            multiples += f" in the plane of {self.view} slices (axes {axes[0]} and {axes[1]})"
        return (
            f"data.patch: {self.name} with these levels needs {multiples}, and more than one voxel at the lowest, not"
            f" {list(patch)}: try {fixed}"
        )
