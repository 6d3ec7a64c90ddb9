"""The U-Net family, in three dimensions or slice by slice."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Positive, Probability, Triple
from fusionseg.models.unet.levels import at_least_two_levels

if TYPE_CHECKING:
    from fusionseg.models.unet.network import UNet

VIEW_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of a prepared volume that the slices of a view are stacked along; its axes are left-right, back-front and
feet-head, in this order."""
NORM_GROUPS = 8

LevelStrides = Annotated[tuple[Positive | Ints, ...], Field(strict=False)]


@networks.register()
class UNetConfig(NetworkSection):
    """The U-Net family: an encoder that shrinks by strided convolutions, and a decoder that grows by transposed ones
    and takes the encoder's maps by skip connections (Cicek et al., 2016, arXiv:1606.06650; in nnU-Net's form of
    Isensee et al., 2021)."""

    name: Literal["unet", "resunet", "attention_unet", "attention_resunet"]
    """Plain; `res`: a residual connection around the convolutions of each level (Zhang et al., 2018, arXiv:1711.10684);
    `attention`: gates on the skip connections, but for that of full resolution (Oktay et al., 2018,
    arXiv:1804.03999)."""
    channels: Ints = (32, 64, 128, 256)
    """Channels per level, from the top: as many levels as numbers."""
    strides: LevelStrides | None = None
    """How much smaller each level is than the one above, one entry fewer than channels: a number, or a list with one
    for each axis, such as [[2, 2, 1], 2, 2] for volumes of thick axial slices; null is 2 everywhere."""
    convs_per_level: Positive = 2
    """Convolutions in each level of the encoder and of the decoder."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalisation. Batch norm takes its statistics over the micro-batches of all ranks (synchronised, on GPUs and
    on CPUs), and so does depend on micro_batch: with accumulation, the same global batch is another training."""
    norm_groups: Positive | None = None
    """Groups of group norm, which divide every number in channels; null is 8."""
    activation: Literal["leakyrelu", "relu"] = "leakyrelu"
    """Activation; leakyrelu has a slope of 0.01 below zero."""
    separable: bool = False
    """Depthwise-separable convolutions (a depthwise one, then a pointwise one), but for the first, which mixes the
    image's few channels. Several times fewer parameters and operations; less time only where the device is good at
    depthwise convolutions."""
    dropout: Probability = 0.0
    """Share of channels that are dropped in training, after each convolution."""
    deep_supervision: bool = False
    """In training, heads at the decoder's lower resolutions too, but for the two lowest levels; each next one counts
    half in the loss (Isensee et al., 2021)."""
    dims: Literal[3, 2] = 3
    """3: convolutions in three dimensions. 2: every slice of `view` is an image of its own; volumes come in and go
    out all the same, so a patch may be one slice thick or many."""
    view: Literal["axial", "coronal", "sagittal"] | None = None
    """For dims: 2, which slices: across the feet-head axis (axial), the back-front axis (coronal) or the left-right
    axis (sagittal) of the prepared volume. Runs of several views predict together as an ensemble."""

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        return at_least_two_levels(channels)

    @field_validator("strides", mode="wrap")
    @classmethod
    def _numbers_or_lists(cls, raw: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(raw)
        except ValidationError:  # of each type that an entry may have: one message instead
            raise ValueError(
                "needs a list, each entry a whole number from 1 or a list with one for each axis, such as"
                f" [[2, 2, 1], 2, 2], and is {raw!r}"
            ) from None

    @model_validator(mode="after")
    def _parts_fit(self) -> UNetConfig:
        if self.dims == 2 and self.view is None:
            raise ValueError(f"view: dims: 2 needs to know which slices: set it to {', '.join(sorted(VIEW_AXES))}")
        if self.dims == 3 and self.view is not None:
            raise ValueError(f"view: {self.view} slices are for dims: 2: set that, or remove view")
        steps = self.strides or ()
        wrong = any(not isinstance(step, int) and (len(step) != self.dims or min(step) < 1) for step in steps)
        if self.strides is not None and (wrong or len(steps) != len(self.channels) - 1):
            raise ValueError(
                f"strides: needs {len(self.channels) - 1} entries, one fewer than channels, each a number from 1 or a"
                f" list of {self.dims} of them, and has {[s if isinstance(s, int) else list(s) for s in steps]}"
            )
        if self.norm != "group" and self.norm_groups is not None:
            raise ValueError(f"norm_groups: belongs to norm: group, and norm is {self.norm}: remove it")
        undivided = [width for width in self.channels if width % self.groups]
        if self.norm == "group" and undivided:
            raise ValueError(
                f"norm_groups: {self.groups} does not divide {undivided} of channels: choose a divisor of every level,"
                " or other channels"
            )
        if self.has_gates and len(self.channels) < 3:
            raise ValueError(f"channels: {self.name} needs three levels: the skip of full resolution has no gate")
        if self.deep_supervision and len(self.channels) < 4:
            raise ValueError(
                "deep_supervision: needs four levels, for the two lowest have no heads: set it to false, or add a"
                f" level to channels {list(self.channels)}"
            )
        return self

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
        """The axis of a volume that slices are stacked along; None for a network in three dimensions."""
        return None if self.view is None else VIEW_AXES[self.view]

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Per level below the first, a number for each of the network's axes."""
        steps = self.strides or (2,) * (len(self.channels) - 1)
        return tuple((step,) * self.dims if isinstance(step, int) else step for step in steps)

    def build(self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool) -> UNet:
        """The network, freshly initialised; see `fusionseg.models.build_model`."""
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
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        axes = [axis for axis in range(3) if axis != self.stack_axis]
        total = [prod(steps) for steps in zip(*self.level_strides, strict=True)]
        bottom = [max(1, round(patch[axis] / unit)) for axis, unit in zip(axes, total, strict=True)]
        too_small = prod(bottom) < 2  # one voxel at the bottom: nothing to normalise over
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
