"""The parts of the network of a run that `distributed.parallel: fsdp` gathers on their own."""

from __future__ import annotations

import logging

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import outside_parts
from fusionseg.models.sharding.units import UnitTrace
from fusionseg.training.memory.simulated_step import run_weightless_step
from fusionseg.training.network import build_weightless_network
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Task

log = logging.getLogger("fusionseg")


def find_units(
    task: Task, config: RunConfig, *, in_channels: int, out_channels: int, device_type: str
) -> tuple[str, ...]:
    """Find the units of the network of a run in a step on the meta device, which takes as long as a memory estimate.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        device_type: "cuda" or "cpu"; blocks compute in other ways on a CPU.

    Returns:
        The names of modules. None for a network from outside that cannot run on the meta device.
    """
    model = build_weightless_network(task, config, in_channels, out_channels)
    if not next(model.parameters()).is_meta:
        return ()
    trace = UnitTrace(model)
    # In 16 bits the step would cast all weights at once.
    precision = Precision("fp32", "to find the units", device_type)
    try:
        run_weightless_step(
            task, config, model, in_channels, precision, micro_steps=1, mode=trace, after_loss=trace.end
        )
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        return ()
    return tuple(trace.units())
