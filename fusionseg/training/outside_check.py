"""Trial of the parts from outside before a run begins: a wrong result is one message, not a traceback in step 1."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig, validate
from fusionseg.config.outside import PartError, failure_text, is_outside
from fusionseg.config.outside_part import OutsidePart, outside_parts, source_changes, without_sources
from fusionseg.config.parts.metric import MetricConfig
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.losses.segmentation import PartialLabel, Target, build_loss
from fusionseg.metrics.configured import MetricError, build_metric
from fusionseg.models import build_model
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.tasks.trial import check_outputs, on_meta_first, try_task
from fusionseg.utils.errors import Problems, UserError, some_of

log = logging.getLogger("fusionseg")
_TRIAL_EDGE = 32


def with_present_sources(config: RunConfig) -> RunConfig:
    """Return the configuration with the versions of its parts from outside as they are now.

    A configuration that a run has written has those of that run. A difference is a warning.
    """
    if next(outside_parts(config), None) is None:
        return config
    plain = config.to_dict()
    for warning in source_changes(plain, config):
        log.warning("%s", warning)
    return validate(without_sources(plain, ["version"]))


def check_outside_parts(
    config: RunConfig, device: torch.device, *, in_channels: int, scheme: LabelScheme, partial: bool = False
) -> None:
    """Try the task, the network, the loss and the optimizer from outside, and the metrics.

    Args:
        device: the device of the training, for parts that the meta device cannot run.
        in_channels: channels of the volumes.
        scheme: the classes and the outputs of the data set.
        partial: True if some cases annotate only some of the classes.

    Raises:
        UserError: with the problems of all parts.
    """
    masks = config.task_info.evaluation == "masks"
    problems = Problems()
    if config.task is not None and is_outside(config.task.name):
        with problems.collect(), _failures_of("task", config.task):
            try_task(config, device, in_channels, scheme)
    if isinstance(config.optim, OutsidePart):
        with problems.collect(), _failures_of("optim", config.optim):
            _try_optimizer(config)
    if masks and isinstance(config.model, OutsidePart):
        with problems.collect(), _failures_of("model", config.model):
            on_meta_first(lambda place: _run_network(config, place, in_channels, scheme.num_outputs), device)
    if masks and isinstance(config.loss, OutsidePart):
        with problems.collect(), _failures_of("loss", config.loss):
            _try_loss(config, device, scheme, partial=partial)
    for index, metric in enumerate(config.metrics if masks else ()):
        with problems.collect(), _failures_of(f"metrics.{index}", metric):
            _try_metric(metric, 2 if scheme.sigmoid else scheme.num_classes)
    if problems.found:
        raise UserError(problems.found)


@contextmanager
def _failures_of(key: str, part: OutsidePart) -> Iterator[None]:
    """Convert an exception of a part to a message with its key, its name and the user's line of code.

    Raises:
        UserError: the body has raised an exception.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except PartError as error:
        raise UserError(f"{key}.name: {error}") from error
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{key}.name: {part.name} fails on a trial: {failure_text(error)}; correct it") from error


def _run_network(config: RunConfig, device: torch.device, in_channels: int, out_channels: int) -> None:
    """Run the network on a device, and check its output and its gradients.

    Raises:
        PartError: the output is no logits of the expected shape.
    """
    patch, batch = config.data.patch, config.train.micro_batch_samples
    with device:
        network = build_model(config.model, in_channels=in_channels, out_channels=out_channels, patch=patch)
        image = torch.zeros(batch, in_channels, *patch)
    network.to(device).train()
    expected = (batch, out_channels, *patch)
    output = network(image)
    check_outputs(config.model.name, output if isinstance(output, list) else [output], expected)
    _check_gradients(config, network, output if isinstance(output, list) else [output])
    with torch.no_grad():
        check_outputs(config.model.name, [network.eval()(image)], expected)


def _check_gradients(config: RunConfig, network: nn.Module, outputs: list[Tensor]) -> None:
    """Warn of parameters that the output does not depend on: they keep their initial values.

    Raises:
        PartError: no parameter can be trained.
    """
    trainable = {name: each for name, each in network.named_parameters() if each.requires_grad}
    if not trainable:
        raise PartError(f"{config.model.name} has no parameters to train; name another network")
    sum(output.float().mean() for output in outputs).backward()  # type: ignore[union-attr]
    if idle := [name for name, each in trainable.items() if each.grad is None]:
        log.warning(
            "model.name: the output of %s does not depend on %s: these parameters are not trained",
            config.model.name,
            some_of(idle, 5),
        )


def _try_loss(config: RunConfig, device: torch.device, scheme: LabelScheme, *, partial: bool) -> None:
    """Call the loss with logits and labels of every class, with voxels and outputs without annotation if there are any.

    Raises:
        PartError: the result is not one finite number with a gradient; or the loss lacks the argument `mask`.
    """
    size = [min(edge, _TRIAL_EDGE) for edge in config.data.patch]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, scheme.num_outputs, *size, generator=generator).to(device).requires_grad_()
    label = torch.randint(scheme.num_classes, (2, 1, *size), generator=generator).to(device)
    if scheme.ignore is not None:
        label[..., : size[-1] // 2] = IGNORE
    target: Target = label
    if partial:
        annotated = torch.ones(2, scheme.num_outputs, dtype=torch.bool, device=device)
        annotated[0, 0] = False
        target = PartialLabel(label, annotated)
    loss = build_loss(config.loss, scheme)(logits, target)
    name = config.loss.name
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise PartError(f"{name} gives {got} (expected one number); reduce it, for instance by loss.args.reduction")
    if not loss.isfinite():
        raise PartError(f"{name} gives {loss.item()} for random logits (expected a finite number); correct it")
    if not loss.requires_grad:
        raise PartError(f"{name} gives a number without a gradient for the logits; correct it")
    loss.backward()  # type: ignore[no-untyped-call]


def _try_optimizer(config: RunConfig) -> None:
    """Take one step, and load the state as a resumed run does.

    Raises:
        PartError: the part is no optimizer.
    """
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.ones_like(weight)
    optimizer = build_optimizer(config.optim, [weight])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PartError(
            f"{config.optim.name} gives a {type(optimizer).__name__} (expected a torch.optim.Optimizer); name another"
        )
    optimizer.step()
    build_optimizer(config.optim, [weight]).load_state_dict(optimizer.state_dict())


def _try_metric(config: MetricConfig, num_classes: int) -> None:
    """Apply the metric to two small random masks of all classes. With sigmoid outputs, each is tried as two classes.

    Raises:
        PartError: the result is not one number for each foreground class.
    """
    generator = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(num_classes, (2, 8, 8, 8), generator=generator)
    try:
        build_metric(config)(prediction, label, num_classes, (1.0, 1.0, 1.0))
    except MetricError as error:
        raise PartError(f"{error}; change the metric or its args") from error
