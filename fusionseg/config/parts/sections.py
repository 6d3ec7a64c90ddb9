"""Interfaces of the sections that have an implementation in another room: network, loss, optimizer, schedule.

A section describes its part and builds it. Its class is registered under the names that a configuration may give
(`fusionseg.config.registry`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Section, SectionWithOptions, Triple

if TYPE_CHECKING:
    from torch import Tensor, nn, optim


SingleResolutionLoss: TypeAlias = "Callable[[Tensor, Tensor, Tensor | None], Tensor]"
"""(logits, target, mask) -> scalar; see `LossSection.build`."""


ImplementationSetting: TypeAlias = Literal["auto", "fused", "reference"]


class NetworkSection(SectionWithOptions):
    """A `model` section.

    The output of the network is a tensor of logits. With deep supervision it is, in training mode, a list of logits,
    the full resolution first.
    """

    can_checkpoint: ClassVar[bool] = False
    """True if the network can recompute activations in the backward pass (train.checkpoint_activations)."""
    set_by_name: ClassVar[tuple[str, ...]] = ()
    """Keys whose values belong to the name: another network of the family has other values."""
    encoder: ClassVar[str | None] = None
    """Attribute of the network that is its encoder, for `init_from` and `finetune`: `swinViT`, `vit`, `encoder`; None
    if there is none."""
    encoder_layer: ClassVar[str] = ""
    """Regular expression of a layer of the encoder, for `finetune.layer_decay`. It matches the beginning of the names
    of the layer's parameters within the encoder, such as `blocks.0.`."""
    pretrain_methods: ClassVar[Mapping[str, int]] = {}
    """Methods (`pretrain.method`) that the network can be pre-trained with, the recommended one first; each with the
    number of voxels that the edge of a hidden block is a multiple of. Empty if it cannot be pre-trained."""
    pretrains_decoder: ClassVar[bool] = False
    """True if the network is pre-trained with its own decoder, and not with that of `pretrain.decoder`."""
    left_out: ClassVar[tuple[str, ...]] = ("implementation",)
    name: str
    implementation: ImplementationSetting = "auto"
    """Backward passes of the blocks of Swin UNETR and of fused skips: hand-written (fused), or by autograd from MONAI's
    blocks and torch's attention (reference), with the same weights and equal results up to rounding. auto is fused, on
    a GPU until it is measured. Other networks have no such passes. In 16 bits, reference casts each weight on its own,
    for every network."""

    @abstractmethod
    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network, freshly initialised, on the current default device.

        Args:
            in_channels: channels of the volumes.
            out_channels: classes, background included.
            patch: voxels of the volumes that the network will see; None if that is not known.
            checkpoint_activations: recompute activations in the backward pass.
        """

    @abstractmethod
    def patch_problem(self, patch: Triple) -> str | None:
        """The problem of training on patches of this size, with the fix; None if there is none.

        Args:
            patch: voxels along each axis.
        """

    def encoder_patch_problem(self, patch: Triple) -> str | None:
        """The problem of pre-training the encoder on patches of this size."""
        return self.patch_problem(patch)

    def build_masked(
        self, pretrain: PretrainConfig, *, in_channels: int, patch: Triple, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network of masked pre-training; see `fusionseg.models.masked.build_masked`.

        A section with `pretrain_methods` implements it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build_masked")


class LossSection(Section):
    """A `loss` section."""

    name: str

    @abstractmethod
    def build(self, *, sigmoid: bool) -> SingleResolutionLoss:
        """Build the loss at one resolution.

        It maps logits (B, C, X, Y, Z) float32, a target and a mask to a scalar, the mean over the batch. The mask, bool
        (B, 1 or C, X, Y, Z), is False for voxels without annotation, where logits and target are 0; None means that
        all voxels are annotated.

        Args:
            sigmoid: the target is the membership (B, C, X, Y, Z) of each output, float32 of 0 and 1; otherwise it is
                class indices (B, 1, X, Y, Z), int64.
        """


class OptimizerSection(Section):
    """An `optim` section."""

    name: str
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate."""

    @abstractmethod
    def build(self, parameters: list[Any]) -> optim.Optimizer:
        """Build the optimizer.

        Args:
            parameters: parameters or groups of them, as torch.optim takes them.
        """

    @abstractmethod
    def states_per_parameter(self) -> float:
        """Number of values that the optimizer stores for each parameter, for the estimate of memory."""


class ScheduleSection(Section):
    """A `schedule` section."""

    name: str

    @abstractmethod
    def learning_rate(self, step: int, steps: int, lr: float) -> float:
        """The learning rate of a step.

        Args:
            step: the step, from 0.
            steps: number of steps of the run.
            lr: `optim.lr`, the highest learning rate.
        """

    def problems(self, steps: int, lr: float) -> list[str]:
        """List the settings that do not fit the run. Each message begins with its whole key, such as `schedule.warmup`.

        Args:
            steps: number of steps of the run.
            lr: `optim.lr`.
        """
        return []

    def before_restart(self, steps: int) -> ScheduleSection:
        """The schedule of the steps before a restart (`finetune.restart_schedule`): this one, if it has no warm-up.

        Args:
            steps: number of these steps.
        """
        return self

    def warning(self, steps: int) -> str:
        """A warning about a schedule that is adapted to the number of steps; else an empty text."""
        return ""
