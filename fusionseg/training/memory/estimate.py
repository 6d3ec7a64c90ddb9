"""Estimate of the memory of a training, without data and without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import outside_parts
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.models.implementation import describe_implementation
from fusionseg.training.memory.shard_units import find_units
from fusionseg.training.memory.simulated_shards import SimulatedShards, part_bytes
from fusionseg.training.memory.simulated_step import simulate_step, simulate_validation
from fusionseg.training.network import build_weightless_network
from fusionseg.training.numerics.weight_averages import averaged_tensors, open_averages
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Task

DRIVER_BYTES = {"cpu": 0, "cuda": 600_000_000}
"""Memory that no tensor uses, by the type of the device: on a GPU the context of CUDA with its loaded kernels, and the
workspaces of cuBLAS and cuDNN. A constant, not measured for each GPU."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected memory of each rank at the peak of a step, in bytes, beside the cache of the data.

    `weights`, `optimizer`, `batch`, `activations`, `backward` and `validation` are the parts of `tensors`.
    """

    implementation: str
    """Implementation of the network that the step was counted for, in words; see `describe_implementation`."""
    parameters: int
    """Number of parameters, not bytes."""
    weights: int
    """Parameters, their averages (`train.ema`), their copies in 16 bits for the step, and buffers. With fsdp this
    rank's parts of parameters and averages, and the whole parameters of the network's own unit, which stay from the
    forward pass to the backward pass."""
    optimizer: int
    """States of the optimizer; with fsdp those of this rank."""
    batch: int
    """Inputs and target of a micro-batch; twice with `train.cuda_graph`, whose graphs read a copy."""
    activations: int
    """Tensors that the forward pass and the loss of one micro-batch keep for the backward pass, and the output of the
    micro-batch before, if there is one."""
    backward: int
    """Gradients, and temporary tensors of the backward pass, as far as they are there at the peak. With ddp the buckets
    of the gradients, with fsdp the units that are gathered."""
    gradients: int
    """Gradients of all weights that learn; with fsdp this rank's parts."""
    validation: int
    """Memory of a validation beyond that of a step. With `train.cuda_graph` its forward pass, which cannot use the
    memory of the graphs. With fsdp what is more than a step: a validation has the whole weights. Else 0."""
    driver: int
    """A constant for the memory that no tensor uses, see `DRIVER_BYTES`."""

    @property
    def tensors(self) -> int:
        """Bytes of all tensors at the peak."""
        return self.weights + self.optimizer + self.batch + self.activations + self.backward + self.validation

    @property
    def total(self) -> int:
        """Bytes of all tensors at the peak, and of the driver."""
        return self.tensors + self.driver


def estimate_memory(
    task: Task, config: RunConfig, in_channels: int, out_channels: int, *, precision: Precision, world_size: int = 1
) -> MemoryEstimate:
    """Estimate the memory of one rank, without the cache of the data.

    The real training step runs on the meta device, and the bytes of its tensors are counted. That takes as long for
    every patch: about a second for a U-Net and 3 to 6 s for a Swin network on an idle core, twice as long for a step
    that accumulates. With fsdp the units of the network are found in a step of their own. A network or a loss from
    outside that cannot run there runs on the CPU instead, which takes the time and the memory of a step. The estimate
    does not know `train.compile`, which needs less memory.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        precision: precision of the forward pass. Its `device_type` names the device: "cuda" needs no GPU here.
        world_size: number of ranks.
    """
    model = build_weightless_network(task, config, in_channels, out_channels)
    try:
        return _estimate(task, config, model, in_channels, out_channels, precision, world_size)
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        # A network or a loss from outside may read values, which the meta device does not have.
        recompute = config.train.checkpoint_activations
        model = task.build_network(in_channels, out_channels, checkpoint_activations=recompute)
        return _estimate(task, config, model, in_channels, out_channels, precision, world_size)


def _estimate(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    in_channels: int,
    out_channels: int,
    precision: Precision,
    world_size: int,
) -> MemoryEstimate:
    accumulation = accumulation_steps(config, world_size)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_divided = world_size > 1 and config.distributed.parallel == "fsdp"
    shards, buckets = None, 0
    if is_divided:
        kind = precision.device_type
        units = find_units(task, config, in_channels=in_channels, out_channels=out_channels, device_type=kind)
        bf16 = config.distributed.gradients == "bf16"
        shards = SimulatedShards(model, units, world_size, bf16_gradients=bf16)
    elif world_size > 1:
        buckets = sum(parameter.nbytes for parameter in learning)
        if accumulation == 1:
            _drop_gradients(learning)
    step = simulate_step(
        task,
        config,
        model,
        in_channels,
        precision,
        accumulation,
        cast_weights=not is_divided,
        # On several ranks the differences of a divided network are smaller than what a unit gathers.
        averages=None if is_divided else open_averages(config.train, model),
    )
    parts = world_size if is_divided else 1
    gradients = part_bytes(learning, parts)
    earlier = gradients if accumulation > 1 else 0
    averages = 0 if config.train.ema is None else part_bytes(averaged_tensors(model).values(), parts)
    constant = part_bytes(model.parameters(), parts) + averages + sum(buffer.nbytes for buffer in model.buffers())
    recorded = config.train.cuda_graph and precision.device_type == "cuda"
    estimate = MemoryEstimate(
        implementation=describe_implementation(model, config.model.implementation, precision.device_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=constant + step.casts + (0 if shards is None else shards.root_bytes),
        optimizer=round(config.optim.states_per_parameter() * gradients),
        batch=step.batch * (2 if recorded else 1),
        activations=step.kept - step.batch - earlier,
        backward=step.peak - step.kept + earlier + buckets,
        gradients=gradients,
        validation=0,
        driver=DRIVER_BYTES[precision.device_type],
    )
    if not (recorded or is_divided):
        return estimate
    if shards is not None:
        shards.remove()
    validation = simulate_validation(task, config, model, in_channels, precision)
    if not recorded:
        whole = world_size * part_bytes(model.parameters(), world_size)
        validation = max(0, constant + whole + estimate.optimizer + gradients + validation - estimate.tensors)
    return replace(estimate, validation=validation)


def _drop_gradients(weights: list[nn.Parameter]) -> None:
    """Drop each gradient as soon as it is complete: DDP copies it into its bucket, whose memory stays."""

    def drop(weight: nn.Parameter) -> None:
        weight.grad = None

    for weight in weights:
        weight.register_post_accumulate_grad_hook(drop)
