"""Cost of frequent checkpoints: training steps with a checkpoint every few steps against the same steps without.

    python profiling/benchmark_checkpoints.py [--every 5] [--rounds 6] [train.threads=1 data.patch=[64,64,64]]

The network is Swin UNETR with a feature size of 48 (62 M parameters) and AdamW, and the checkpoints are those of the
training: weights, moments, configuration and split, written by the thread of `CheckpointWriter` with fsync.

The two kinds of block are timed alternately, so that other load on the machine affects both alike:

- *with*: a checkpoint is saved, `--every` steps follow, and then the block waits until the file is on disk. A training
  waits for that only when the next checkpoint is due, so that this is the most that a checkpoint can cost.
- *without*: the steps alone.

A ratio is that of the two blocks of a round. On a GPU the writing thread has a processor of its own. On a CPU it takes
one from the step, unless `train.threads` leaves one free.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fusionseg.distributed.device_speed import timed
from fusionseg.performance.benchmarking import measure_and_publish, open_trainer, step_arguments
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.paths import LAST
from fusionseg.training.observers.recorder import Spent
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "model={name: swin_unetr, feature_size: 48}"


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the blocks; the result has JSON values."""
    trainer = open_trainer(
        arguments.config, [NETWORK, *arguments.overrides], arguments.data, arguments.folder or folder
    )
    checkpoints, device = trainer.checkpoints, trainer.world.device
    waits: list[float] = []
    on_disk: list[float] = []
    processor: list[float] = []

    def steps() -> None:
        for _ in range(arguments.every):
            trainer.train_one_step()

    def steps_with_checkpoint() -> None:
        start = time.perf_counter()
        checkpoints.save(trainer.state, Spent())
        waits.append(time.perf_counter() - start)
        steps()
        checkpoints.writer.finish()

    def alone() -> None:
        checkpoints.save(trainer.state, Spent())
        checkpoints.writer.finish()

    blocks = {"with": steps_with_checkpoint, "without": steps}
    times: dict[str, list[float]] = {name: [] for name in blocks}
    trainer.train_one_step()
    for index in range(arguments.rounds + 1):
        before = time.process_time()
        on_disk.append(timed(alone, device))
        processor.append(time.process_time() - before)
        for name in list(blocks) if index % 2 else list(reversed(blocks)):
            times[name].append(timed(blocks[name], device) / arguments.every)
        if not index:  # the first round makes the optimizer's state and the buffers of the copy
            for values in (waits, on_disk, processor, *times.values()):
                values.clear()
    ratios = [one / other for one, other in zip(times["with"], times["without"], strict=True)]
    return {
        "config": arguments.config,
        "overrides": arguments.overrides,
        "machine": machine_info(device),
        "parameters": sum(each.numel() for each in trainer.model.parameters()),
        "every": arguments.every,
        "rounds": arguments.rounds,
        "megabytes": (checkpoints.writer.folder / LAST).stat().st_size / 1e6,
        "step_s": {name: median(values) for name, values in times.items()},
        "ratios": ratios,
        "wait_s": median(waits),
        "on_disk_s": median(on_disk),
        "processor_s": median(processor),
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    ratios = result["ratios"]
    rows = [
        ("step without checkpoints", f"{result['step_s']['without']:.3f} s"),
        (f"step with a checkpoint every {result['every']}", f"{result['step_s']['with']:.3f} s"),
        ("with / without: median", f"{median(ratios):.4f}"),
        ("with / without: mean", f"{fmean(ratios):.4f}"),
        ("with / without: lowest to highest", f"{min(ratios):.4f} to {max(ratios):.4f}"),
        ("wait of the training for a save", f"{result['wait_s']:.3f} s"),
        ("a save until it is on disk, nothing else at work", f"{result['on_disk_s']:.3f} s"),
        ("processor time of a save", f"{result['processor_s']:.3f} s"),
    ]
    return (
        f"{result['config']} {result['overrides']} ({result['parameters'] / 1e6:.1f} M parameters,"
        f" {result['megabytes']:.0f} MB a checkpoint, {result['rounds']} rounds)\n"
        f"{machine_line(result['machine'])}\n\n{markdown_table([('measurement', 'value'), *rows])}"
    )


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "parse_fusion_od.yaml", steps=6, names=("rounds",))
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints (default: 5)")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_intermixed_args()
    start_logging()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
