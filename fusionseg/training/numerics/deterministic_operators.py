"""Operators of a training step that have no deterministic algorithm on a GPU, found before the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusionseg.config import RunConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.training.memory.simulated_step import run_weightless_step
from fusionseg.training.network import build_weightless_network
from fusionseg.training.precision import Precision, choose_precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Task
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

# Those that raise in torch 2.13 (`torch.use_deterministic_algorithms`), by their name in ATen: those of backward
# passes, then the others. Max pooling, replication padding, `gather`, `index_select` and `scatter_add` have such an
# algorithm.
_NOT_DETERMINISTIC = {
    "avg_pool3d_backward": "average pooling",
    "_adaptive_avg_pool2d_backward": "adaptive average pooling",
    "_adaptive_avg_pool3d_backward": "adaptive average pooling",
    "adaptive_max_pool2d_backward": "adaptive max pooling",
    "fractional_max_pool2d_backward": "fractional max pooling",
    "fractional_max_pool3d_backward": "fractional max pooling",
    "upsample_linear1d_backward": "linear interpolation",
    "upsample_bilinear2d_backward": "bilinear interpolation",
    "upsample_bicubic2d_backward": "bicubic interpolation",
    "upsample_trilinear3d_backward": "trilinear interpolation",
    "reflection_pad1d_backward": "reflection padding",
    "reflection_pad2d_backward": "reflection padding",
    "reflection_pad3d_backward": "reflection padding",
    "grid_sampler_2d_backward": "grid_sample",
    "grid_sampler_3d_backward": "grid_sample",
    "_ctc_loss_backward": "the CTC loss",
    "_embedding_bag_dense_backward": "an embedding bag",
    "max_unpool2d": "max unpooling",
    "max_unpool3d": "max unpooling",
    "put": "Tensor.put_",
    "put_": "Tensor.put_",
    "histc": "histc",
}
_IF: dict[str, tuple[str, Callable[[Sequence[Any]], bool]]] = {
    # With the reduction "none" each voxel has a place of its own.
    "nll_loss2d_forward": ("the mean or sum of a cross-entropy or NLL loss of voxels", lambda args: args[3] != 0),
    "bincount": ("bincount with weights", lambda args: len(args) > 1 and args[1] is not None),
    "cumsum": ("cumsum", lambda args: args[0].is_floating_point() or args[0].is_complex()),
    "median": ("median along an axis", lambda args: len(args) > 1),
    "scatter_reduce": ("scatter_reduce with prod", lambda args: len(args) > 4 and args[4] == "prod"),
}


def unfit_operators(
    task: Task, config: RunConfig, *, in_channels: int, out_channels: int, precision: Precision
) -> list[str]:
    """The operators of a step's forward pass, loss and backward pass that have no deterministic algorithm on a GPU.

    The step runs on the meta device, where nothing is computed: a second for a U-Net, 3 to 6 s for a Swin network.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        precision: precision of the forward pass, for a device of type "cuda".

    Returns:
        For each what it computes and its name in torch: "average pooling (avg_pool3d_backward)".
    """
    model = build_weightless_network(task, config, in_channels, out_channels)
    found = _Operators()
    run_weightless_step(task, config, model, in_channels, precision, micro_steps=1, mode=found)
    return [f"{what} ({name})" for name, what in sorted(found.unfit.items())]


def refuse_unfit_operators(config: RunConfig, device: torch.device, *, in_channels: int, scheme: LabelScheme) -> None:
    """Refuse a deterministic training on a GPU whose step cannot be deterministic; see `unfit_operators`.

    Without `train.deterministic`, or on a CPU, nothing is done.

    Args:
        config: the configuration of the run.
        device: of this rank.
        in_channels: channels of the images.
        scheme: the classes and the outputs of the data set.

    Raises:
        UserError: an operator of the step has no deterministic algorithm.
    """
    if not config.train.deterministic or device.type != "cuda":
        return
    precision = choose_precision(config.train.precision, device)
    task, out_channels = build_task(config, scheme), scheme.num_outputs
    try:
        found = unfit_operators(task, config, in_channels=in_channels, out_channels=out_channels, precision=precision)
    except Exception as error:  # a network or a loss from outside may read values, which the meta device does not have
        log.warning("train.deterministic: the step cannot be looked at before the training (%s)", error)
        return
    if found:
        raise UserError(
            f"train.deterministic: on a GPU torch has no deterministic algorithm for {', '.join(found)}, which"
            f" {config.model.name} or its loss uses in a step; choose another model.name (the table in configuration.md"
            " names those that can be deterministic), or set train.deterministic=false"
        )


class _Operators(TorchDispatchMode):
    """Notes the operators without a deterministic algorithm that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.unfit: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if what := operator_without_algorithm(name, args):
            self.unfit[name] = what
        return func(*args, **(kwargs or {}))


def operator_without_algorithm(name: str, args: Sequence[Any]) -> str:
    """Name what an operator computes if it has no deterministic algorithm on a GPU; else return an empty text.

    Args:
        name: in ATen, without the overload.
        args: its positional arguments.
    """
    if name in _NOT_DETERMINISTIC:
        return _NOT_DETERMINISTIC[name]
    what, applies = _IF.get(name, ("", lambda args: False))
    return what if applies(args) else ""
