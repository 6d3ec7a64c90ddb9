"""The cases of benchmark.py, which measure the loops of one network. A case is a method of `Bench`."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmark_recipes import RECIPES, PlainRecipe
from benchmark_setting import open_setting
from benchmark_step import bare_loop
from monai.data import set_track_meta

from fusionseg.distributed.device_speed import timed
from fusionseg.observability.ranges import annotate
from fusionseg.performance.benchmarking import Timings, open_trainer, time_alternately
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.paths import RunPaths
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL_SAMPLES = (
    "augment={flip: 0.5, shift_intensity: {prob: 0.5, offset: 0.1}}",
    *(f"augment.{name}=null" for name in ("scale_intensity", "rotate", "scale", "elastic", "noise")),
)
OURS = "fusionseg"
MAX_CALLS, ROUND_S = 6, 1.5  # calls of a loop in a round: at most this many, in about this time


class Bench:
    """Loops of one network, with a method for each case."""

    def __init__(self, config: str, overrides: list[str], data: str, recipes: list[str], rounds: int, folder: Path):
        """Args:
        config: path of the configuration.
        overrides: `key.path=value` settings.
        data: folder of the data set.
        recipes: names of the other recipes.
        rounds: measured rounds.
        folder: folder for preprocessed data and runs.
        """
        self.config, self.data, self.folder = config, data, folder
        self.rounds = rounds
        self.overrides = [*overrides, f"data.prepared={folder / 'prepared'}"]
        self.recipe_names = recipes
        self.ours = self._open("tutorial", *TUTORIAL_SAMPLES)
        self.configured = self._open("configured")
        self.device = self.ours.world.device
        setting = open_setting(self.ours.config)
        self.recipes: dict[str, PlainRecipe] = {name: RECIPES[name](setting) for name in recipes}
        # The recipes load ahead in threads, which read MONAI's global switch. Set the switch before they start.
        for recipe in sorted(self.recipes.values(), key=lambda recipe: not recipe.tracks_metadata):
            set_track_meta(recipe.tracks_metadata)
            recipe.train(1)
        set_track_meta(False)

    def _open(self, name: str, *overrides: str, config: str | None = None) -> Trainer:
        settings = [*self.overrides, *overrides, f"name={name}"]
        return open_trainer(config or self.config, settings, self.data, self.folder)

    def measure(self, case: str) -> dict[str, Any]:
        """Measure a case: median and spread in seconds by loop, and the ratio of fusionseg to each."""
        return getattr(self, f"_{case}")()  # type: ignore[no-any-return]

    def _data(self) -> dict[str, Any]:
        steps = itertools.count()

        def ours(trainer: Trainer) -> Callable[[], object]:
            return lambda: list(trainer.micro_batches.of_step(next(steps)))

        loops: dict[str, Callable[[], object]] = {OURS: ours(self.ours), "as configured": ours(self.configured)}
        loops |= {name: recipe.batch for name, recipe in self.recipes.items()}
        return self._repeated(loops)

    def _step(self) -> dict[str, Any]:
        trainer = self.ours
        micro_batches = list(trainer.micro_batches.of_step(0))
        lr = trainer.config.optim.lr

        def resident() -> None:
            trainer.train_step(0, micro_batches, lr)

        loops: dict[str, Callable[[], object]] = {OURS: resident, "bare": bare_loop(trainer, clip=True)}
        for name, recipe in self.recipes.items():
            if name != "monai_trainer":  # its step always includes its data
                image, label = recipe.batch()
                loops[name] = lambda recipe=recipe, image=image, label=label: recipe.step(image, label)  # type: ignore[misc]
        return self._repeated(loops)

    def _epoch(self) -> dict[str, Any]:
        loops: dict[str, Callable[[], object]] = {
            OURS: self.ours.train_one_step,
            "as configured": self.configured.train_one_step,
        }
        loops["bare"] = bare_loop(self.ours, clip=True)
        for name, recipe in self.recipes.items():
            loops[name] = lambda recipe=recipe: recipe.train(1)  # type: ignore[misc]
        return self._repeated(loops)

    def _repeated(self, loops: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
        """Time several calls of each loop per round.

        Threads that load ahead have the first batch ready before the clock starts. With several calls they must load
        the others while their own loop is timed.
        """
        loops[OURS]()  # the first call starts libraries, or compiles
        count = max(1, min(MAX_CALLS, int(ROUND_S / timed(loops[OURS], self.device))))

        def repeated(loop: Callable[[], object]) -> Callable[[], object]:
            return lambda: [loop() for _ in range(count)]

        repeated_loops = {name: repeated(loop) for name, loop in loops.items()}
        return _rows(time_alternately(repeated_loops, self.device, self.rounds, warmup=1), per=count)

    def _validation(self) -> dict[str, Any]:
        ours = self.ours
        cases = len(ours.data.validation_cases)
        # All recipes validate in the same way, so one of them is enough.
        name, recipe = next(iter(self.recipes.items()))
        loops = {OURS: ours.validate, name: recipe.validate}
        return _rows(time_alternately(loops, self.device, max(2, self.rounds // 4), warmup=1), per=cases)

    def _checkpoint(self) -> dict[str, Any]:
        trainer, numbers = self.ours, itertools.count()
        checkpoints = CheckpointWriter(RunPaths(self.folder).checkpoints, keep=2)

        def ours() -> None:
            state = {"model": trainer.model.state_dict(), "train_step": trainer.train_step.state_dict()}
            checkpoints.save(next(numbers), state)

        def on_disk() -> None:
            ours()
            checkpoints.finish()

        def plain() -> None:
            optimizer = trainer.train_step.optimizer
            state = {"model": trainer.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, self.folder / "plain.pt")

        loops = {
            OURS: ours,  # the time for which the training stops; writing continues in the background
            "fusionseg, until it is on disk": on_disk,
            "torch.save (no fsync, not atomic)": plain,
        }
        return _rows(time_alternately(loops, self.device, self.rounds, between=checkpoints.finish))

    def _start(self) -> dict[str, Any]:
        settings = [*self.overrides, f"data.root={self.data}"]
        loops = {OURS: lambda: self._seconds_to_first_step(settings)}
        for name in self.recipe_names:
            loops[name] = lambda name=name: _recipe_seconds_to_first_step(name, self.config, settings)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(max(2, self.rounds // 5)):
            for name, seconds in loops.items():
                times[name].append(seconds())
        return _rows(Timings(times))

    def _pretraining(self) -> dict[str, Any]:
        config = str(ROOT / "configs/hippocampus_pretrain.yaml")
        trainer = open_trainer(config, ["name=pretraining"], self.data, self.folder)
        loops = {OURS: trainer.train_one_step, "bare": bare_loop(trainer, clip=True)}
        return _rows(time_alternately(loops, self.device, self.rounds))

    def _ranges(self) -> dict[str, Any]:
        """Measure the time of all named ranges of a step, and the step."""
        counted = 0
        enter = annotate.__enter__

        def counting(entered: annotate) -> None:
            nonlocal counted
            counted += 1
            enter(entered)

        annotate.__enter__ = counting  # type: ignore[method-assign]
        try:
            self.ours.train_one_step()
        finally:
            annotate.__enter__ = enter  # type: ignore[method-assign]

        def one() -> None:
            with annotate("forward", 1):
                pass

        each_s = min(timeit.repeat(one, number=10_000, repeat=5)) / 10_000
        step = time_alternately({OURS: self.ours.train_one_step}, self.device, self.rounds)
        seconds = {"a step": step.median(OURS), f"its {counted} ranges": counted * each_s}
        return {
            "median_s": seconds,
            "spread_s": {"a step": step.spread(OURS)},
            "ratio": {f"its {counted} ranges": counted * each_s / step.median(OURS)},
            "ratio_of": "share of the step",
        }

    def _seconds_to_first_step(self, settings: list[str]) -> float:
        """Seconds from the start of `python -m fusionseg.train` to the record of its first step."""
        name = f"start{time.time_ns()}"
        options = [f"output={self.folder / 'starts'}", f"name={name}", "log.every=1"]
        command = [sys.executable, "-m", "fusionseg.train", "--config", self.config, *settings, *options]
        records = RunPaths(self.folder / "starts" / name).metrics
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as process:
            while not (records.exists() and records.stat().st_size):
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise UserError(f"{' '.join(command)}: the program failed with\n{process.stderr.read().decode()}")
                time.sleep(0.005)
            seconds = time.perf_counter() - begun
            process.kill()
        return seconds


def _recipe_seconds_to_first_step(recipe: str, config: str, settings: list[str]) -> float:
    """Seconds from the start of the process of a recipe to the end of its first step."""
    script = str(ROOT / "profiling/benchmark_recipes.py")
    command = [sys.executable, script, recipe, "--config", config, "--steps", "1", *settings]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if b"first_step" in line:
                seconds = time.perf_counter() - begun
                process.kill()
                return seconds
        raise UserError(f"{' '.join(command)}: the program failed with\n{process.stderr.read().decode()}")


def _rows(timings: Timings, per: int = 1) -> dict[str, Any]:
    """Summarise timings of `per` calls each."""
    others = [name for name in timings.times if name != OURS]
    return {
        "median_s": {name: timings.median(name) / per for name in timings.times},
        "spread_s": {name: timings.spread(name) / per for name in timings.times},
        "ratio": {name: timings.ratio(OURS, name) for name in others},
        "ratio_of": "fusionseg / recipe",
    }
