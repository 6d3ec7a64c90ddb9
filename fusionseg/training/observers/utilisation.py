"""Utilisation of the device by a run: model FLOP utilisation, and share of the roofline."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.device_speed import QuickRates, quick_rates
from fusionseg.training.memory.step_work import StepWork, count_step_work
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Task

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Utilisation:
    """The work of a step on one rank, and the rates of its device."""

    work: StepWork
    rates: QuickRates

    def fields(self, step_s: float) -> dict[str, float]:
        """Return the fields of a train record.

        `mfu` is the model FLOP utilisation (Chowdhery et al., "PaLM", 2022): counted operations of the network per
        second, as a share of the measured rate of matrix products. `roofline` is the least time of the step's operators
        at the measured rates, as a share of `step_s`.

        Args:
            step_s: wall time of a step in seconds.
        """
        return {
            "mfu": self.work.flops / (step_s * self.rates.flops_per_s),
            "roofline": self.work.bound_s / step_s,
        }


def measure_utilisation(
    task: Task,
    config: RunConfig,
    *,
    in_channels: int,
    out_channels: int,
    precision: Precision,
    accumulation_steps: int,
    device: torch.device,
) -> Utilisation | None:
    """Measure the rates of the device, and count the work of a step. This takes a second or two.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        precision: precision of the forward pass.
        accumulation_steps: micro-batches of a step on each rank.
        device: device of this rank.

    Returns:
        The utilisation; None, with the reason in the log, if the network does not run on the meta device or the memory
        of the device is full.
    """
    try:
        rates = quick_rates(device, precision.dtype, torch.get_num_threads())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # the measurement is no part of the training's peak
        work = count_step_work(
            task,
            config,
            in_channels=in_channels,
            out_channels=out_channels,
            precision=precision,
            accumulation_steps=accumulation_steps,
            rates=rates,
        )
    except Exception as error:  # the figures are not worth the end of a run
        log.info("no utilisation: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        return None
    log.info(
        "utilisation: a step has %.4g GFLOP and takes at least %.4g s; measured %.4g GFLOP/s (%s) and %.4g GB/s",
        work.flops / 1e9, work.bound_s, rates.flops_per_s / 1e9, precision.name, rates.bytes_per_s / 1e9,
    )  # fmt: skip
    return Utilisation(work, rates)
