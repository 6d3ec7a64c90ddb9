"""Parts shared by the benchmarks of `profiling/`: arguments, a ready trainer, interleaved timing, output."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import load_config
from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.distributed.device_speed import timed
from fusionseg.distributed.world import World
from fusionseg.runs.cases.opening import open_cases
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.training.start import build_trainer
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import write_json


def step_arguments(
    parser: argparse.ArgumentParser, *, config: Path, steps: int, names: tuple[str, ...] = ("steps",)
) -> None:
    """Add the arguments of a benchmark of the training step; `open_trainer` takes their values.

    Args:
        parser: parser of the benchmark.
        config: default configuration file.
        steps: default number of measured steps.
        names: names of the option for the number of steps, without dashes; the first one names the attribute.
    """
    parser.add_argument("--config", default=str(config), help=f"YAML file of the run (default: {config.name})")
    parser.add_argument("--data", help="folder of the data set (default: synthetic CTs)")
    flags = (f"--{name}" for name in names)
    parser.add_argument(*flags, dest=names[0], type=int, default=steps, help=f"measured {names[0]} (default: {steps})")
    cudnn_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")


def cudnn_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--cudnn-benchmark`, for all loops of the benchmark alike; it takes effect when the arguments are read."""
    parser.add_argument(
        "--cudnn-benchmark", action=_SetCudnnBenchmark, nargs=0, default=False,
        help="cuDNN measures its algorithms and takes the fastest (torch.backends.cudnn.benchmark)",
    )  # fmt: skip


class _SetCudnnBenchmark(argparse.Action):
    def __call__(self, parser: object, namespace: argparse.Namespace, *_: object) -> None:
        torch.backends.cudnn.benchmark = True
        setattr(namespace, self.dest, True)


def open_trainer(config_file: str, overrides: list[str], data: str | None, folder: Path) -> Trainer:
    """Open the training of a configuration, ready for its first step.

    Args:
        config_file: path of the YAML file.
        overrides: `key.path=value` settings.
        data: folder of the data set; None writes synthetic CTs to `folder`.
        folder: the run folder is created below it.

    Raises:
        UserError: the configuration is invalid, or several ranks were started.
    """
    root = data or str(write_dataset(folder / "synth", cases=10, size=96).parent)
    searched = f"train.cudnn_benchmark={str(torch.backends.cudnn.benchmark).lower()}"  # see `cudnn_argument`
    config = load_config(config_file, [f"data.root={root}", f"output={folder / 'runs'}", searched, *overrides])
    world = World.from_environment(config.device)
    if world.size > 1:
        world.close()
        raise UserError(
            f"world size: this program measures one rank (expected 1, got {world.size}); start it without torchrun or"
            " srun"
        )
    run_folder = RunFolder(run_folder_of(config))
    return build_trainer(config, world, run_folder, open_cases(config, run_folder))


@dataclass(frozen=True)
class Timings:
    """Times of functions that were measured alternately, in seconds: for each name one time per round."""

    times: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median time in seconds."""
        return statistics.median(self.times[name])

    def spread(self, name: str) -> float:
        """Standard deviation in seconds."""
        return statistics.stdev(self.times[name]) if len(self.times[name]) > 1 else 0.0

    def ratio(self, ours: str, theirs: str) -> float:
        """Median over the rounds of the ratio of two times of one round."""
        pairs = zip(self.times[ours], self.times[theirs], strict=True)
        return statistics.median(one / other for one, other in pairs)


def time_alternately(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    *,
    warmup: int = 3,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time functions alternately, so that other load on the machine affects all of them alike.

    Args:
        functions: functions to time, by name. Each round calls every function once.
        device: device on which the functions work; it is synchronised before the clock is read.
        rounds: measured rounds.
        warmup: rounds before them that are not measured.
        between: called after each function, not timed.
        clock: see `timed`.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + warmup):
        # Rotate the order, so that no function always profits from what another one left in the caches.
        first = index % len(names)
        for name in names[first:] + names[:first]:
            seconds = timed(functions[name], device, clock)
            between()
            if index >= warmup:
                times[name].append(seconds)
    return Timings(times)


def measure_and_publish(
    measure: Callable[[Path], dict[str, Any]], markdown: Callable[[dict[str, Any]], str], json_file: Path | None
) -> int:
    """Measure, publish the result, and return the exit status.

    Args:
        measure: takes a temporary folder, which is removed afterwards, and returns JSON values.
        markdown: formats the result as a table.
        json_file: see `publish`.
    """

    def work() -> int:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder))
        publish(result, markdown(result), json_file)
        return 0

    return run(work)


def publish(result: dict[str, Any], markdown: str, json_file: Path | None) -> None:
    """Print the table of a benchmark, and write its result as JSON.

    Args:
        result: JSON values.
        markdown: the table.
        json_file: path of the JSON file; None writes none.
    """
    print(markdown)
    if json_file is not None:
        write_json(json_file, result)
