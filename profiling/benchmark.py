"""What the engine is worth beside the recipes people would use instead, on the same data, in one run.

    python profiling/benchmark.py                                        # synthetic CTs
    python profiling/benchmark.py --data DATASET --json bench.json       # yours
    python profiling/benchmark.py --data DATASET --cases epoch start --recipes monai_fast --turns 20

Cases: *data* one step's samples; *step* a step on tensors that stay on the device; *epoch* a step with its data, which
is what an epoch is made of; *validation* of one case; *checkpoint*; *start* from the start of the process to the end of
the first step, the data being prepared; *pretraining* a step of it; *ranges* what naming the phases costs. The recipes
are in benchmark_recipes.py; `bare` is the engine's own network in a loop written by hand, on tensors that stay.
`fusionseg` is the engine with the tutorial's samples (flips and an intensity shift), `as configured` with the
configuration's own.

Loops take turns; a ratio is the median of the ratios within the turns, `fusionseg / recipe`: below 1 is faster than it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmark_recipes import RECIPES, PlainRecipe
from benchmark_setting import open_setting
from benchmark_step import bare_loop
from monai.data import set_track_meta

from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.inference.evaluation.table import markdown_table
from fusionseg.observability.ranges import annotate
from fusionseg.performance.benchmarking import Timings, open_trainer, publish, step_arguments, time_alternately
from fusionseg.performance.device_speed import timed
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.paths import RunPaths
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging

ROOT = Path(__file__).resolve().parent.parent
CASES = ("data", "step", "epoch", "validation", "checkpoint", "start", "pretraining", "ranges")
NEEDS = {"monai_trainer": "ignite", "fabric": "lightning_fabric"}
TUTORIAL_SAMPLES = (
    "augment={flip: 0.5, shift_intensity: {prob: 0.5, offset: 0.1}}",
    *(f"augment.{name}=null" for name in ("scale_intensity", "rotate", "scale", "elastic", "noise")),
)
# What each network is measured as; the Swin's patches are those of the recipe that people start from.
NETWORKS = {
    "unet": [],
    "swin_unetr": ["model={name: swin_unetr, feature_size: 24}", "data.patch=[64, 64, 64]", "optim.lr=1e-3"],
}
OURS = "fusionseg"
IN_A_ROW, TURN_S = 6, 1.5


class Bench:
    """The loops of one network, and their cases."""

    def __init__(self, config: str, overrides: list[str], data: str, recipes: list[str], turns: int, folder: Path):
        self.config, self.data, self.folder = config, data, folder
        self.turns = turns
        self.overrides = [*overrides, f"data.prepared={folder / 'prepared'}"]
        self.recipe_names = recipes
        self.ours = self._open("tutorial", *TUTORIAL_SAMPLES)
        self.configured = self._open("configured")
        self.device = self.ours.world.device
        setting = open_setting(self.ours.config)
        self.recipes: dict[str, PlainRecipe] = {name: RECIPES[name](setting) for name in recipes}
        # Threads of theirs work ahead: once they run, the global switch must not be touched.
        for recipe in sorted(self.recipes.values(), key=lambda recipe: not recipe.tracks_metadata):
            set_track_meta(recipe.tracks_metadata)
            recipe.train(1)
        set_track_meta(False)

    def _open(self, name: str, *overrides: str, config: str | None = None) -> Trainer:
        words = [*self.overrides, *overrides, f"name={name}"]
        return open_trainer(config or self.config, words, self.data, self.folder)

    def measure(self, case: str) -> dict[str, Any]:
        """A case's median and spread by recipe, in seconds, and our ratio to each."""
        return getattr(self, f"_{case}")()  # type: ignore[no-any-return]

    def _data(self) -> dict[str, Any]:
        steps = itertools.count()

        def ours(trainer: Trainer) -> Callable[[], object]:
            return lambda: [
                trainer.batch(step, micro) for step in [next(steps)] for micro in range(trainer.accumulation_steps)
            ]

        loops: dict[str, Callable[[], object]] = {OURS: ours(self.ours), "as configured": ours(self.configured)}
        loops |= {name: recipe.batch for name, recipe in self.recipes.items()}
        return self._in_a_row(loops, self.turns)

    def _step(self) -> dict[str, Any]:
        trainer = self.ours
        batches = [trainer.batch(0, micro) for micro in range(trainer.accumulation_steps)]
        lr = trainer.config.optim.lr

        def resident() -> None:
            trainer.step_fn(0, lambda step, micro: batches[micro], lr, lambda micro: micro)

        loops: dict[str, Callable[[], object]] = {OURS: resident, "bare": bare_loop(trainer, clip=True)}
        for name, recipe in self.recipes.items():
            if name != "monai_trainer":  # it has no step apart from its data
                image, label = recipe.batch()
                loops[name] = lambda recipe=recipe, image=image, label=label: recipe.step(image, label)  # type: ignore[misc]
        return self._in_a_row(loops, self.turns)

    def _epoch(self) -> dict[str, Any]:
        loops: dict[str, Callable[[], object]] = {OURS: self.ours.advance, "as configured": self.configured.advance}
        loops["bare"] = bare_loop(self.ours, clip=True)
        for name, recipe in self.recipes.items():
            loops[name] = lambda recipe=recipe: recipe.train(1)  # type: ignore[misc]
        return self._in_a_row(loops, self.turns)

    def _in_a_row(self, loops: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Any]:
        """Several short calls a turn: of threads that work ahead, all but the first work while their own loop runs."""
        loops[OURS]()  # the first call starts libraries, or compiles
        count = max(1, min(IN_A_ROW, int(TURN_S / timed(loops[OURS], self.device))))

        def repeated(loop: Callable[[], object]) -> Callable[[], object]:
            return lambda: [loop() for _ in range(count)]

        several = {name: repeated(loop) for name, loop in loops.items()}
        return _rows(time_alternately(several, self.device, turns, warmup=1), per=count)

    def _validation(self) -> dict[str, Any]:
        ours = self.ours
        cases = len(ours.data.validation_numbers)
        # The recipes that are loops by hand validate alike; one stands for them.
        name, recipe = next(iter(self.recipes.items()))
        loops = {OURS: lambda: ours.task.validate(ours.model), name: recipe.validate}
        return _rows(time_alternately(loops, self.device, max(2, self.turns // 4), warmup=1), per=cases)

    def _checkpoint(self) -> dict[str, Any]:
        trainer, numbers = self.ours, itertools.count()
        checkpoints = CheckpointWriter(RunPaths(self.folder).checkpoints, keep=2)

        def ours() -> None:
            state = {"model": trainer.model.state_dict(), "train_step": trainer.step_fn.state_dict()}
            checkpoints.save(next(numbers), state)

        def on_disk() -> None:
            ours()
            checkpoints.finish()

        def plain() -> None:
            optimizer = trainer.step_fn.optimizer
            state = {"model": trainer.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, self.folder / "plain.pt")

        loops = {
            OURS: ours,  # the rest goes on beside the steps
            "fusionseg, until it is on disk": on_disk,
            "torch.save (not forced to disk, not whole-or-nothing)": plain,
        }
        return _rows(time_alternately(loops, self.device, self.turns, between=checkpoints.finish))

    def _start(self) -> dict[str, Any]:
        words = [self.config, *self.overrides, f"data.root={self.data}"]
        loops = {OURS: lambda: self._seconds_to_first_step(words)}
        for name in self.recipe_names:
            loops[name] = lambda name=name: _seconds_to_first_line(name, words)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(max(2, self.turns // 5)):
            for name, seconds in loops.items():
                times[name].append(seconds())
        return _rows(Timings(times))

    def _pretraining(self) -> dict[str, Any]:
        config = str(ROOT / "configs/hippocampus_pretrain.yaml")
        trainer = open_trainer(config, ["name=pretraining"], self.data, self.folder)
        loops = {OURS: trainer.advance, "bare": bare_loop(trainer, clip=True)}
        return _rows(time_alternately(loops, self.device, self.turns))

    def _ranges(self) -> dict[str, Any]:
        """Seconds of all ranges of a step, beside the step."""
        counted = 0
        enter = annotate.__enter__

        def counting(entered: annotate) -> None:
            nonlocal counted
            counted += 1
            enter(entered)

        annotate.__enter__ = counting  # type: ignore[method-assign]
        try:
            self.ours.advance()
        finally:
            annotate.__enter__ = enter  # type: ignore[method-assign]

        def one() -> None:
            with annotate("forward", 1):
                pass

        each_s = min(timeit.repeat(one, number=10_000, repeat=5)) / 10_000
        step = time_alternately({OURS: self.ours.advance}, self.device, self.turns)
        seconds = {"a step": step.median(OURS), f"its {counted} ranges": counted * each_s}
        return {
            "median_s": seconds,
            "spread_s": {"a step": step.spread(OURS)},
            "ratio": {f"its {counted} ranges": counted * each_s / step.median(OURS)},
            "ratio_of": "share of the step",
        }

    def _seconds_to_first_step(self, words: list[str]) -> float:
        """Of `python -m fusionseg.train`, until the record of its first step is there."""
        config, *overrides = words
        name = f"start{time.time_ns()}"
        options = [f"output={self.folder / 'starts'}", f"name={name}", "log.every=1"]
        command = [sys.executable, "-m", "fusionseg.train", "--config", config, *overrides, *options]
        records = RunPaths(self.folder / "starts" / name).metrics
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as process:
            while not (records.exists() and records.stat().st_size):
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise UserError(f"{' '.join(command)}: ended with\n{process.stderr.read().decode()}")
                time.sleep(0.005)
            seconds = time.perf_counter() - begun
            process.kill()
        return seconds


def _seconds_to_first_line(recipe: str, words: list[str]) -> float:
    """Of a recipe in a process of its own, until it says that its first step is done."""
    config, *overrides = words
    script = str(ROOT / "profiling/benchmark_recipes.py")
    command = [sys.executable, script, recipe, "--config", config, "--steps", "1", *overrides]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if b"first_step" in line:
                seconds = time.perf_counter() - begun
                process.kill()
                return seconds
        raise UserError(f"{' '.join(command)}: ended with\n{process.stderr.read().decode()}")


def _rows(turns: Timings, per: int = 1) -> dict[str, Any]:
    others = [name for name in turns.times if name != OURS]
    return {
        "median_s": {name: turns.median(name) / per for name in turns.times},
        "spread_s": {name: turns.spread(name) / per for name in turns.times},
        "ratio": {name: turns.ratio(OURS, name) for name in others},
        "ratio_of": "fusionseg / recipe",
    }


def case_table(case: str, entry: dict[str, Any]) -> str:
    """A case as a table."""
    rows = [(case, "median ms", "spread ms", entry["ratio_of"])]
    for name, seconds in entry["median_s"].items():
        spread, ratio = entry["spread_s"].get(name), entry["ratio"].get(name)
        cells = (
            f"{1e3 * seconds:.4g}",
            "" if spread is None else f"{1e3 * spread:.2g}",
            "" if ratio is None else f"{ratio:.3g}",
        )
        rows.append((name, *cells))
    return markdown_table(rows)


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [machine_line(result["machine"]), ""]
    for network, measured in result["networks"].items():
        lines += [f"## {network}: {measured['about']}", ""]
        for case, entry in measured["cases"].items():
            lines += [case_table(case, entry), ""]
    lines += result["left_out"]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=10, name="turns")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore", module="(monai|lightning|torch|ignite).*")
    start_logging()
    for library in ("ignite", "lightning_fabric", "fusionseg"):
        logging.getLogger(library).setLevel(logging.WARNING)
    return run(lambda: _measure_all(arguments))


def _measure_all(arguments: argparse.Namespace) -> int:
    missing = {name for name in arguments.recipes if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None}
    recipes = [name for name in arguments.recipes if name not in missing]
    if not recipes:
        raise UserError("--recipes: none of these is installed: pip install -c constraints.txt -e '.[bench]'")
    result: dict[str, Any] = {
        "networks": {},
        "left_out": [f"left out: {name} (not installed: pip install -e '.[bench]')" for name in sorted(missing)],
    }
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or str(write_dataset(Path(folder) / "synth", cases=10, size=96).parent)
        data = os.path.abspath(data)
        for network in arguments.networks:
            own = Path(folder) / network
            overrides = [*NETWORKS[network], *arguments.overrides]
            bench = Bench(arguments.config, overrides, data, recipes, arguments.turns, own)
            config = bench.ours.config
            patch, precision = "x".join(map(str, config.data.patch)), bench.ours.precision.name
            batch = config.train.global_batch
            about = f"{config.model.name}, {batch} patches of {patch}, {precision}, {len(bench.ours.data.cache)} cases"
            measured: dict[str, Any] = {"about": about, "cases": {}}
            result["machine"] = machine_info(bench.device)
            result["networks"][network] = measured
            for case in arguments.cases:
                print(f"{network}: {case}", file=sys.stderr, flush=True)
                measured["cases"][case] = bench.measure(case)
                print(case_table(case, measured["cases"][case]), file=sys.stderr, flush=True)
    publish(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
