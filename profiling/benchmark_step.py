"""Benchmark of the training step against a minimal loop.

    python profiling/benchmark_step.py [--config configs/hippocampus_unet.yaml] [--data DATASET] [--steps 40]

- *engine*: the training step of `fusionseg.train`: sampling plan, crop and augmentation, accumulation, the check for
  non-finite values, clipping, ranges, counters.
- *bare*: the same network from the same weights on one batch that stays on the device: forward, loss, backward,
  clipping as configured, optimizer.
- *bare without clipping*: the same without clipping.

The loops are timed alternately, so that other load on the machine affects all of them alike. A ratio is the median of
the ratios within each round. Without --data the program makes synthetic CTs.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from fusionseg.distributed.rank_info import peak_memory_gb
from fusionseg.performance.benchmarking import measure_and_publish, open_trainer, step_arguments, time_alternately
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.trainer import Trainer
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent


def bare_loop(trainer: Trainer, *, clip: bool) -> Callable[[], None]:
    """Make a minimal training step on batches that stay on the device.

    Args:
        trainer: its network is copied; configuration and first batches are taken from it.
        clip: clip the gradients as configured.
    """
    config = trainer.config
    model = copy.deepcopy(trainer.model)
    if config.train.compile is not False:  # deepcopy does not copy the compiled forward
        model.compile(mode=config.train.compile, dynamic=False)
    loss_fn = trainer.task.build_loss()
    optimizer = build_optimizer(config.optim, model.parameters())
    micro_batches = list(trainer.micro_batches.of_step(0))
    scaler = torch.amp.GradScaler(trainer.world.device.type, enabled=trainer.precision.scales_loss)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches:
            with trainer.precision.autocast():
                output = model(*batch.inputs)
            loss = loss_fn(output, batch.target) / len(micro_batches)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        if clip and config.train.clip_grad is not None:
            clip_grad_norm_(model.parameters(), config.train.clip_grad)
        scaler.step(optimizer)
        scaler.update()

    return step


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure times and ratios; the result has JSON values."""
    trainer = open_trainer(arguments.config, arguments.overrides, arguments.data, folder)
    device = trainer.world.device
    loops: dict[str, Callable[[], object]] = {
        "engine": trainer.train_one_step,
        "bare": bare_loop(trainer, clip=True),
        "bare without clipping": bare_loop(trainer, clip=False),
    }
    timings = time_alternately(loops, device, arguments.steps)
    return {
        "config": arguments.config,
        "overrides": arguments.overrides,
        "machine": machine_info(device),
        "precision": trainer.precision.name,
        "peak_memory_gb": peak_memory_gb(device),
        "steps": arguments.steps,
        "median_ms": {name: 1e3 * timings.median(name) for name in loops},
        "spread_ms": {name: 1e3 * timings.spread(name) for name in loops},
        "engine_over": {name: timings.ratio("engine", name) for name in loops if name != "engine"},
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    rows = [("loop", "median ms", "spread ms", "engine / loop")]
    for name, median in result["median_ms"].items():
        ratio = f"{result['engine_over'][name]:.3f}" if name in result["engine_over"] else ""
        rows.append((name, f"{median:.1f}", f"{result['spread_ms'][name]:.1f}", ratio))
    return (
        f"{result['config']} {result['overrides']} ({result['precision']}, {result['steps']} steps,"
        f" peak memory of all loops {result['peak_memory_gb']:.1f} GB)\n"
        f"{machine_line(result['machine'])}\n\n{markdown_table(rows)}"
    )


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=40)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_intermixed_args()
    start_logging()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
