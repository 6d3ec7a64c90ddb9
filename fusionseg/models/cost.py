"""Cost of networks: parameters, multiply-adds, activations. It is counted on the meta device, without computation.

A network from outside that the meta device cannot run is run on the CPU instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusionseg.config.outside_part import OutsidePart
from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.section import Triple
from fusionseg.models import build_model
from fusionseg.models.device_kind import device_kind
from fusionseg.models.implementation import implementation_of, set_implementation_


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network for one sample."""

    parameters: int
    """Number of parameters, frozen ones included."""
    multiply_adds: int
    """Multiply-adds of the convolutions, linear layers and attention of a forward pass in evaluation mode."""
    activation_bytes: int
    """Bytes that a forward pass in training mode keeps for the backward pass, in float32, without the loss. If the
    implementation for CPUs differs from that for GPUs, the value is that of GPUs."""
    implementation: str
    """Implementation of the backward passes, see `implementation_of`: fused, reference or plain."""


def network_cost(
    config: NetworkSection,
    patch: Triple,
    *,
    in_channels: int,
    out_channels: int,
    checkpoint_activations: bool = False,
) -> NetworkCost:
    """Count the cost of the network of a `model` section for one sample (1, in_channels, *patch).

    Args:
        config: `model` section.
        patch: X, Y, Z in voxels; `config.patch_problem(patch)` must be None.
        in_channels: channels of the volumes.
        out_channels: number of classes, the background included.
        checkpoint_activations: compute activations again in the backward pass.
    """
    channels = (in_channels, out_channels)
    try:
        return _cost_on(torch.device("meta"), config, patch, channels, checkpoint_activations)
    except Exception:
        if not isinstance(config, OutsidePart):
            raise
        # A network from outside may read values, which the meta device does not have.
        return _cost_on(torch.device("cpu"), config, patch, channels, checkpoint_activations)


def _cost_on(
    device: torch.device,
    config: NetworkSection,
    patch: Triple,
    channels: tuple[int, int],
    checkpoint_activations: bool,
) -> NetworkCost:
    in_channels, out_channels = channels
    with device:
        model = build_model(
            config,
            in_channels=in_channels,
            out_channels=out_channels,
            patch=patch,
            checkpoint_activations=checkpoint_activations,
        )
        image = torch.empty(1, in_channels, *patch)
    set_implementation_(model, config.implementation, device_kind(image))
    activations = saved_bytes(model.train(), lambda: model(image))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        activation_bytes=activations,
        implementation=implementation_of(model),
    )


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps for the backward pass. Each storage counts once, parameters do not count.

    Args:
        model: the network whose parameters do not count.
        forward: runs the forward pass of the network.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Views and detached tensors share a storage. Holding the tensor keeps its address from being reused.
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in parameters)
