"""The interface of a task: what a run trains for. The training loop is the same for all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from fusionseg.config.parts.task import TaskInfo

if TYPE_CHECKING:  # the descriptions of the tasks are read without torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fusionseg.config import RunConfig
    from fusionseg.data.labels.scheme import LabelScheme
    from fusionseg.distributed.world import World
    from fusionseg.training.data import TrainingData
    from fusionseg.training.precision import Precision

Inputs: TypeAlias = "tuple[Tensor, ...]"
"""The arguments of the network's forward pass; the image (B, C, X, Y, Z) is the first."""

Loss: TypeAlias = "Callable[[Any, Any], Tensor]"
"""(output of the network, target) -> the mean over the micro-batch, a scalar in float32."""

BatchFunction: TypeAlias = "Callable[[int, range], tuple[Inputs, Any]]"
"""(step, indices k of samples in the global batch of that step) -> the network's inputs and the loss's target, on the
training device. The result is a function of the arguments and the seed alone, so that a run can be resumed exactly."""


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation; it is the same on every rank, except for the picture, which rank 0 has."""

    score: float
    """The score that best.pt is chosen by; higher is better, nan is unknown."""
    fields: dict[str, Any]
    """The fields of the val record. `cases` is the number of validation cases."""
    summary: str
    """One line for the log."""
    picture: NDArray[np.float32] | None = None
    """(3, H, W) in [0, 1]."""


ValidationFunction: TypeAlias = "Callable[[nn.Module], ValidationResult]"
"""Validates the network, which is in evaluation mode and not wrapped by DDP. All ranks call it."""


class Task(ABC):
    """Network, loss, samples and validation of a run.

    A task is made from the configuration alone: it reads no data. The dry run, the memory estimate and the prediction
    use the network without any data; a training also builds the batches and the validation.
    """

    info: ClassVar[TaskInfo]

    scheme: LabelScheme | None = None
    """The classes and the outputs of the data set; None where they are not known. `build_task` sets it."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def build_network(self, in_channels: int, out_channels: int, *, checkpoint_activations: bool = False) -> nn.Module:
        """Build the network with new weights, on the current default device.

        Args:
            in_channels: channels of the images of the data set.
            out_channels: outputs of the data set (`LabelScheme.num_outputs`): classes, background included, or regions.
            checkpoint_activations: recompute the activations in the backward pass, where the network can do so.
        """

    @abstractmethod
    def build_loss(self) -> Loss:
        """Build the loss."""

    @abstractmethod
    def example(self, in_channels: int) -> tuple[Inputs, Any]:
        """Make a micro-batch of the right shapes and types, for the memory estimate and for the trial of a task from
        outside. Its values do not matter.

        The current default device is the meta device, where nothing is computed or allocated. It is a real device for a
        network that cannot run there.
        """

    @abstractmethod
    def build_batches(self, data: TrainingData, world: World) -> BatchFunction:
        """Build the function that makes training samples from the data of a run."""

    @abstractmethod
    def build_validation(self, data: TrainingData, precision: Precision, world: World) -> ValidationFunction:
        """Build the function that validates a network on the cases `data.validation_cases`.

        It is not called for a run with `data.fold: all`, which validates nothing.
        """

    def predicted_values(self, model: nn.Module, image: Tensor) -> Mapping[str, str | int | float]:
        """Predict the values of one image, such as its class, by the names of their columns in a table.

        `fusionseg predict` calls it if `info.gives_values` is True. `scheme` has the names of the classes.

        Args:
            model: the network, in evaluation mode. Autocast and no_grad are on.
            image: (1, C, X, Y, Z), prepared as for the training, on the device of the network.
        """
        raise NotImplementedError

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Group the parameters that learn, for the optimizer.

        `lr_scale` of a group multiplies the learning rate, and the group does not learn for the first `frozen_steps`
        steps. The groups and their order depend on the configuration alone, so that the state of an optimizer can be
        loaded.
        """
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [{"params": trainable, "lr_scale": 1.0, "frozen_steps": 0}]

    def outdated_scores(self, checkpoint: Mapping[str, Any]) -> str | None:
        """Say why the scores in a checkpoint of an older version cannot be compared with new ones; None if they can."""
        return None
