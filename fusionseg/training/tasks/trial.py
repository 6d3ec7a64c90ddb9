"""Trial of a task from outside before a run begins: its example goes through its network and its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.config.outside import PartError
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Task


def on_meta_first(trial: Callable[[torch.device], None], device: torch.device) -> None:
    """Call a trial with the meta device if that is possible, else with the real one.

    The meta device costs no memory and no time. A part that asks for values (`.item()`) cannot run there.

    Args:
        trial: takes the device; it raises PartError for a wrong result.
        device: the device of the training.
    """
    try:
        trial(torch.device("meta"))
    except PartError:
        raise
    except Exception:  # the meta device may be the reason, so the real device decides
        trial(device)


def try_task(config: RunConfig, device: torch.device, in_channels: int, scheme: LabelScheme) -> None:
    """Run the network and the loss of a task on its example, in training and in evaluation mode.

    Args:
        config: the configuration, which names the task.
        device: of the training.
        in_channels: channels of the volumes.
        scheme: the classes and the outputs of the data set.

    Raises:
        PartError: the task is no `Task`, or a method gives a result of another form or shape than its contract.
    """
    task = build_task(config, scheme)
    if not isinstance(task, Task):
        raise PartError(
            f"{_name(config)} is no task (expected a subclass of fusionseg.training.tasks.task.Task); derive it from"
            " Task"
        )
    on_meta_first(lambda place: _run_task(task, config, place, in_channels, scheme.num_outputs), device)


def check_outputs(name: str, outputs: list[Any], expected: tuple[int, ...]) -> None:
    """Refuse outputs of a network that are no logits of the right shapes.

    Args:
        name: of the network or of its task.
        outputs: the outputs, one for each resolution, the full one first.
        expected: the shape at full resolution: batch, outputs, X, Y, Z.

    Raises:
        PartError: an output has another form or shape.
    """
    kinds = [type(output).__name__ for output in outputs if not isinstance(output, Tensor)]
    if kinds or not outputs:
        raise PartError(
            f"{name} gives a {kinds[0] if kinds else 'list of nothing'} (expected a tensor of logits, or in training a"
            " list of them); change its output"
        )
    shapes = [tuple(output.shape) for output in outputs]
    if shapes[0] != expected:
        raise PartError(
            f"{name} gives logits of shape {shapes[0]} (expected {expected}: batch, outputs, data.patch); change"
            " model.args or data.patch"
        )
    wrong = [shape for shape in shapes if len(shape) != len(expected) or shape[:2] != expected[:2]]
    if wrong:
        raise PartError(
            f"{name} gives further logits of shape {wrong[0]} (expected {expected[:2]} and three sizes); change its"
            " output"
        )


def _run_task(task: Task, config: RunConfig, device: torch.device, in_channels: int, out_channels: int) -> None:
    """Build the network, the example and the loss of a task on a device, and call them as a training step does."""
    name, batch = _name(config), config.train.micro_batch_samples
    with device:
        network = task.build_network(
            in_channels, out_channels, checkpoint_activations=config.train.checkpoint_activations
        )
        if not isinstance(network, torch.nn.Module):
            raise PartError(f"{name}: build_network gives a {type(network).__name__} (expected a torch.nn.Module)")
        inputs, target = _example(task, name, batch, in_channels)
    network.to(device).train()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise PartError(f"{name}: the network of build_network has no parameters to train; correct it")
    loss = task.build_loss()(network(*inputs), target)
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise PartError(f"{name}: the loss of build_loss gives {found} (expected one number); reduce it")
    if not loss.requires_grad:
        raise PartError(f"{name}: the loss of build_loss does not depend on the network by a gradient; correct it")
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        output = network.eval()(*inputs)
        if task.info.gives_values:
            _check_values(name, task.predicted_values(network, inputs[0][:1]))
    if task.info.evaluation == "masks":
        check_outputs(name, [output], (batch, out_channels, *inputs[0].shape[2:]))


def _check_values(name: str, values: Any) -> None:
    """Refuse values that are no columns of a table.

    Raises:
        PartError: there is another form than a dictionary of numbers and strings.
    """
    form = isinstance(values, Mapping) and values and all(isinstance(key, str) for key in values)
    if not form or not all(isinstance(value, str | int | float) for value in values.values()):
        raise PartError(
            f"{name}: predicted_values gives {values!r} (expected a dictionary of numbers and strings); correct it"
        )


def _example(task: Task, name: str, batch: int, in_channels: int) -> tuple[tuple[Tensor, ...], Any]:
    """Make the example of a task: the inputs of its network, and the target of its loss.

    Raises:
        PartError: the example is no pair of a tuple of tensors and a target, or it is no micro-batch.
    """
    example = task.example(in_channels)
    pair = isinstance(example, tuple) and len(example) == 2
    if not pair or not isinstance(example[0], tuple) or not all(isinstance(each, Tensor) for each in example[0]):
        raise PartError(f"{name}: example gives {_form(example)} (expected ((image, ...), target)); correct it")
    shapes = [tuple(each.shape) for each in example[0]]
    if not shapes or len(shapes[0]) != 5 or any(shape[:1] != (batch,) for shape in shapes):
        raise PartError(
            f"{name}: example gives inputs of shapes {', '.join(map(str, shapes)) or 'nothing'} (expected an image"
            f" (B, C, X, Y, Z) first, and B = {batch}, which is train.micro_batch); correct it"
        )
    return example


def _form(value: Any) -> str:
    """Describe the form of an example: "(Tensor, Tensor)"."""
    return f"({', '.join(map(_form, value))})" if isinstance(value, tuple) else type(value).__name__


def _name(config: RunConfig) -> str:
    assert config.task is not None
    return config.task.name
