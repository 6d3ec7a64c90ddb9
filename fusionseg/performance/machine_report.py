"""What the benchmarks of `profiling/` share: the machine they ran on, and how they hand over what they found."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import load_config
from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.distributed.world import World
from fusionseg.performance.device_rates import timed
from fusionseg.runs.cases import open_run
from fusionseg.runs.folder import RunFolder
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json
from fusionseg.utils.machine import available_cpus


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a figure must be told with: the device, the processor, the versions, the date."""
    cuda = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The same in one line."""
    gpu = f"{machine['gpu']} (driver {machine['driver']}, CUDA {machine['cuda']}), " if machine["gpu"] else ""
    return (
        f"{machine['date']}, {gpu}{machine['cpus']} CPUs of {machine['processor']} ({machine['capability']}),"
        f" {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, torch {machine['torch']}"
    )


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The release of NVIDIA's kernel driver."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def step_arguments(parser: argparse.ArgumentParser, *, config: Path, steps: int, name: str = "steps") -> None:
    """The arguments of a benchmark of the training step; give them to `open_trainer`."""
    parser.add_argument("--config", default=str(config), help=f"YAML file of the run (default: {config.name})")
    parser.add_argument("--data", help="data set (default: synthetic CTs)")
    parser.add_argument(f"--{name}", type=int, default=steps, help=f"measured {name} (default: {steps})")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")


def open_trainer(config_file: str, overrides: list[str], data: str | None, folder: Path) -> Trainer:
    """The training of a configuration, ready for its first step, with its run folder under `folder`.

    Args:
        data: data set; None makes synthetic CTs.

    Raises:
        UserError: the configuration is wrong, or several ranks were started.
    """
    root = data or str(write_dataset(folder / "synth", cases=10, size=96).parent)
    config = load_config(config_file, [f"data.root={root}", f"output={folder / 'runs'}", *overrides])
    world = World.from_environment(config.device)
    if world.size > 1:
        world.close()
        raise UserError(f"this measures one rank, and {world.size} were started: run it without torchrun or srun")
    run = RunFolder(config)
    return Trainer(config, world, run, open_run(config, run))


@dataclass(frozen=True)
class Turns:
    """Times of loops that took turns, in seconds."""

    times: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def spread(self, name: str) -> float:
        """Standard deviation."""
        return statistics.stdev(self.times[name]) if len(self.times[name]) > 1 else 0.0

    def ratio(self, ours: str, theirs: str) -> float:
        """Median of the ratios within each turn."""
        pairs = zip(self.times[ours], self.times[theirs], strict=True)
        return statistics.median(one / other for one, other in pairs)


def take_turns(
    loops: Mapping[str, Callable[[], object]],
    device: torch.device,
    turns: int,
    *,
    warmup: int = 3,
    between: Callable[[], object] = lambda: None,
) -> Turns:
    """Time loops side by side: whatever else the machine does hits all of them alike.

    Args:
        between: called after each, not timed.
    """
    names = list(loops)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + warmup):
        # each loop is first, second, third in turn: what one leaves in the caches must not favour another
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = timed(loops[name], device)
            between()
            if turn >= warmup:
                times[name].append(seconds)
    return Turns(times)


def publish(result: dict[str, Any], markdown: str, json_file: Path | None) -> None:
    """Print the table; write the result as JSON where it is asked for."""
    print(markdown)
    if json_file is not None:
        write_json(json_file, result)
