"""What the engine's step costs beside a bare loop, side by side in one run.

    python profiling/benchmark_step.py [--config configs/hippocampus_unet.yaml] [--data DATASET] [--steps 40]

*engine*: the training step as `fusionseg.train` runs it: plan, crop and augmentation, accumulation, the check for
non-finite values, clipping, ranges, counters. *bare*: the same network from the same weights on one resident batch:
forward, loss, backward, clipping as configured, optimizer. *bare without clipping* leaves that out too. The loops take
turns step by step, so that whatever else the machine does hits all of them alike; the ratio is the median of the
ratios within each turn. Without --data it makes synthetic CTs.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from fusionseg.distributed.rank_info import peak_memory_gb
from fusionseg.inference.evaluation.table import markdown_table
from fusionseg.performance.benchmarking import open_trainer, publish, step_arguments, time_alternately
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.training.network import build_loss
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.trainer import Trainer
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging

ROOT = Path(__file__).resolve().parent.parent


def bare_loop(trainer: Trainer, *, clip: bool) -> Callable[[], None]:
    """The step that one would write by hand, on tensors that stay where they are."""
    config = trainer.config
    model = copy.deepcopy(trainer.model)
    if config.train.compile:  # a copy is not compiled
        model.compile()
    loss_fn = build_loss(config)
    optimizer = build_optimizer(config.optim, model.parameters())
    batches = [trainer.batch(0, micro) for micro in range(trainer.accumulation_steps)]
    scaler = torch.amp.GradScaler(trainer.world.device.type, enabled=trainer.precision.scales_loss)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for inputs, target in batches:
            with trainer.precision.autocast():
                output = model(*inputs)
            loss = loss_fn(output, target) / len(batches)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        if clip and config.train.clip_grad is not None:
            clip_grad_norm_(model.parameters(), config.train.clip_grad)
        scaler.step(optimizer)
        scaler.update()

    return step


def measure(config_file: str, overrides: list[str], data: str | None, steps: int, folder: Path) -> dict[str, Any]:
    """Times and ratios as a plain dictionary."""
    trainer = open_trainer(config_file, overrides, data, folder)
    device = trainer.world.device
    loops: dict[str, Callable[[], object]] = {
        "engine": trainer.advance,
        "bare": bare_loop(trainer, clip=True),
        "bare without clipping": bare_loop(trainer, clip=False),
    }
    turns = time_alternately(loops, device, steps)
    return {
        "config": config_file,
        "overrides": overrides,
        "machine": machine_info(device),
        "precision": trainer.precision.name,
        "peak_memory_gb": peak_memory_gb(device),
        "steps": steps,
        "median_ms": {name: 1e3 * turns.median(name) for name in loops},
        "spread_ms": {name: 1e3 * turns.spread(name) for name in loops},
        "engine_over": {name: turns.ratio("engine", name) for name in loops if name != "engine"},
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
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
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=40)
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_intermixed_args()
    start_logging()

    def work() -> int:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments.config, arguments.overrides, arguments.data, arguments.steps, Path(folder))
        publish(result, markdown(result), arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
