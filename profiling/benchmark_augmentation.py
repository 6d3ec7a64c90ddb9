"""Benchmark of the augmentation preset `nnunet` against batchgeneratorsv2 and MONAI, and its share of a training step.

    python profiling/benchmark_augmentation.py [--config configs/hippocampus_unet.yaml] [--data DATASET] [--rounds 12]

Needs `pip install 'fusionseg[bench]'`. All programs make patches of the size of the configuration from the same
volumes, which are in memory, on the CPU, with one thread each (nnU-Net's worker processes have one thread each, too).
The times of fusionseg include the sampling plan, the crop and the conversion of the label. Those of the other
programs do not include the crop. They are CPU times, so that other processes on the machine matter little, and are
measured alternately; a ratio is the median of the ratios within the rounds.

The share of a step is the time of its batch with the preset, less that with `augment: none`, divided by the time of the
whole training step. It is measured by the clock, with all threads that the training uses; `--steps 0` leaves it out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augmentation_recipes import Transform, batchgenerators_recipe, monai_recipe

from fusionseg.config import AugmentConfig
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.performance.benchmarking import measure_and_publish, open_trainer, step_arguments, time_alternately
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.training.data import TrainingData
from fusionseg.training.trainer import Trainer
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
MARGIN = 1.3
"""Edge of the region that batchgeneratorsv2 gets, over that of the patch: nnU-Net reads a larger region too."""


class Ours:
    """Patches by fusionseg, one after the other.

    Args:
        data: the data of a training.
        augment: the section `augment`.
        patch: size in voxels.
    """

    def __init__(self, data: TrainingData, augment: AugmentConfig, patch: tuple[int, int, int]) -> None:
        cases = data.plan.cases
        self.plan = SamplePlan(
            cases, augment, seed=0, patch=patch, global_batch=1, samples_per_volume=1,
            foreground=data.plan.foreground, channels=data.cache.channels,
        )  # fmt: skip
        self.augmenter = PatchAugmenter(data.cache, augment, patch, CPU)
        self.step = 0

    def __call__(self, count: int) -> None:
        """Make patches; each call makes other ones."""
        for _ in range(count):
            self.augmenter(self.plan.samples(self.step, [0]))
            self.step += 1


class Theirs:
    """Patches by transforms of another library, one after the other.

    Args:
        data: the data of a training.
        transforms: applied in their order.
        shape: of the region that the first transform gets.
    """

    def __init__(self, data: TrainingData, transforms: Sequence[Transform], shape: Sequence[int]) -> None:
        self.transforms = transforms
        self.regions = [self._region(data, index, shape) for index in range(len(data.plan.cases))]
        self.next = 0

    def __call__(self, count: int) -> None:
        """Make patches, each from the region of another case."""
        for _ in range(count):
            image, label = self.regions[self.next % len(self.regions)]
            self.next += 1
            sample = {"image": image.clone(), "segmentation": label.clone()}
            for transform in self.transforms:
                sample = transform(sample)

    @staticmethod
    def _region(data: TrainingData, index: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The middle of a case, with background around it where the case is smaller."""
        volume, mask = data.cache.volume(index)
        image = data.cache.background(index).expand(-1, *shape).clone()
        label = torch.zeros((1, *shape), dtype=torch.int16)
        ends = [(max(0, (a - b) // 2), max(0, (b - a) // 2), min(a, b)) for a, b in zip(mask.shape, shape, strict=True)]
        x, y, z = (slice(first, first + size) for first, _, size in ends)
        to_x, to_y, to_z = (slice(first, first + size) for _, first, size in ends)
        image[:, to_x, to_y, to_z] = volume[:, x, y, z].float()
        label[0, to_x, to_y, to_z] = mask[x, y, z].short()
        return image, label


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure times and ratios; the result has JSON values."""
    trainer = open_trainer(
        arguments.config, ["augment=nnunet", *arguments.overrides, "device=cpu"], arguments.data, folder
    )
    data, config = trainer.data, trainer.config
    patch, threads = config.data.patch, torch.get_num_threads()
    region = [round(MARGIN * edge) for edge in patch]
    programs: dict[str, Callable[[int], None]] = {
        "fusionseg": Ours(data, AugmentConfig.model_validate("nnunet"), patch),
        "batchgeneratorsv2": Theirs(data, list(batchgenerators_recipe(patch).values()), region),
        "batchgeneratorsv2, labels by nearest": Theirs(
            data, list(batchgenerators_recipe(patch, mode_seg="nearest").values()), region
        ),
        "MONAI": Theirs(data, list(monai_recipe(patch).values()), patch),
    }
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    functions = {name: (lambda make=make: make(arguments.patches)) for name, make in programs.items()}
    timings = time_alternately(functions, CPU, arguments.rounds, warmup=2, clock=time.process_time)
    torch.set_num_threads(threads)
    return {
        "config": arguments.config,
        "patch": list(patch),
        "channels": data.cache.channels,
        "classes": len(data.labels),
        "machine": machine_info(CPU),
        "rounds": arguments.rounds,
        "patches": arguments.patches,
        "ms_per_patch": {name: 1e3 * float(np.mean(timings.times[name])) / arguments.patches for name in programs},
        "spread_ms": {name: 1e3 * timings.spread(name) / arguments.patches for name in programs},
        "over_fusionseg": {name: timings.ratio(name, "fusionseg") for name in programs if name != "fusionseg"},
        "of_step": share_of_step(trainer, arguments.steps) if arguments.steps else None,
    }


def share_of_step(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Measure the time of a training step, and the time that the augmentation of its batch takes.

    Args:
        trainer: ready for a step.
        rounds: measured steps.
    """
    data, config = trainer.data, trainer.config
    plain, augmented = (
        Ours(data, AugmentConfig.model_validate(name), config.data.patch) for name in ("none", "nnunet")
    )
    batch = config.train.global_batch
    steps = time_alternately(
        {
            "step": trainer.train_one_step,
            "none": lambda: plain(batch),
            "preset": lambda: augmented(batch),
        },
        CPU,
        rounds,
    )
    # Means, because most of the time is spent on the few patches that are rotated or zoomed.
    step, none, preset = (1e3 * float(np.mean(steps.times[name])) for name in ("step", "none", "preset"))
    return {"step_ms": step, "augmentation_ms": preset - none, "share": (preset - none) / step}


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    rows = [("program", "CPU ms per patch", "spread of a round", "/ fusionseg")]
    for name, ms in result["ms_per_patch"].items():
        ratio = f"{result['over_fusionseg'][name]:.1f}" if name in result["over_fusionseg"] else ""
        rows.append((name, f"{ms:.1f}", f"{result['spread_ms'][name]:.1f}", ratio))
    size = " x ".join(map(str, result["patch"]))
    step = result["of_step"]
    share = (
        ""
        if step is None
        else (
            f"\n\na step takes {step['step_ms']:.0f} ms; of it the augmentation {step['augmentation_ms']:.1f} ms"
            f" ({step['share']:.1%})"
        )
    )
    return (
        f"{result['config']}: {size}, {result['channels']} channels, {result['classes']} classes, {result['rounds']}"
        f" rounds of {result['patches']} patches, one thread\n{machine_line(result['machine'])}\n\n"
        f"{markdown_table(rows)}{share}"
    )


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=20)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of all programs (default: 12)")
    parser.add_argument("--patches", type=int, default=32, help="patches of each program in a round (default: 32)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_intermixed_args()
    start_logging()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
