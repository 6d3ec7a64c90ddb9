"""`train.micro_batch: auto`: each start finds the largest micro-batch that fits, and trains as if it were stated."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from end_to_end.conftest import Train, arguments
from end_to_end.runs import REPOSITORY, TRAIN, Program, assert_same_run, rank_environments, records
from fusionseg.config import RunConfig, load_config
from fusionseg.runs.run_config import load_run_config, write_run_config
from fusionseg.training.memory import micro_batch_choice
from fusionseg.training.memory.micro_batch_choice import largest_fitting
from fusionseg.training.start import train as train_run
from fusionseg.training.step import TrainStep
from fusionseg.utils.errors import TrainingStopped, UserError

# Everything that draws random numbers, and everything that has a state.
RUN: dict[str, Any] = {
    "train": {"steps": 6, "global_batch": 8, "ema": 0.9},
    "validate": {"every": 3},
    "checkpoint": {"every": 2, "keep": 9},
    "log": {"every": 1, "samples": True},
    "model": {"dropout": 0.1},
    "augment": {"preset": "nnunet", "noise": {"prob": 0.5}, "rotate": {"prob": 0.5}},
}


def limited(patch: pytest.MonkeyPatch, most: int | Callable[[], int], error: Exception | None = None) -> list[int]:
    """Let this process choose as on a GPU whose memory holds micro-batches of at most `most` samples.

    The real step raises torch's own error for a larger one, in its backward pass, where its tensors are alive.

    Returns:
        The sizes of the micro-batches that were run, each with its step and whatever became of it; it grows.
    """
    run, sizes = TrainStep._run_micro_step, []

    def step(self: TrainStep, micro: int, frozen: Any, losses: Any, casts: Any, batch: Any) -> None:
        image = batch.inputs[0]
        if image.is_meta:  # the estimate
            run(self, micro, frozen, losses, casts, batch)
            return
        sizes.append(len(image))
        allowed = most if isinstance(most, int) else most()
        if len(image) > allowed:
            torch.rand(3)  # a trial draws random numbers
            self.model(*batch.inputs)
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        run(self, micro, frozen, losses, casts, batch)

    patch.setattr(TrainStep, "_run_micro_step", step)
    patch.setattr(micro_batch_choice, "tries_steps", lambda config, world: True)
    return sizes


def auto(tiny_config: Callable, data: Path, output: Path, name: str, micro_batch: int | str = "auto") -> RunConfig:
    values = {**RUN, "name": name, "train": {**RUN["train"], "micro_batch": micro_batch}}
    values["data"] = {"prepared": str(output / "prepared")}
    config: RunConfig = tiny_config(data, output, **values)
    return config


def chosen(run: Path) -> Any:
    """`train.micro_batch` in the configuration of a run, which `auto` has found."""
    train = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert train["micro_batch"] == train["micro_batch_found"]
    return train["micro_batch"]


def test_the_run_is_that_of_the_number(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials leave nothing behind: records and weights are those of a run that states the number, bit for bit."""
    train_run(auto(tiny_config, balls, tmp_path, "stated", 2))
    sizes = limited(monkeypatch, 2)
    step_failure, steps = micro_batch_choice.step_failure, weakref.WeakSet[TrainStep]()
    begin = TrainStep.__init__

    def watched(self: TrainStep, model: torch.nn.Module, *rest: Any, **settings: Any) -> None:
        begin(self, model, *rest, **settings)
        if not next(model.parameters()).is_meta:
            steps.add(self)

    def tried(*rest: Any, **settings: Any) -> str:
        failure = step_failure(*rest, **settings)
        assert not steps  # with its network and its tensors
        return failure

    monkeypatch.setattr(TrainStep, "__init__", watched)
    monkeypatch.setattr(micro_batch_choice, "step_failure", tried)
    train_run(auto(tiny_config, balls, tmp_path, "auto"))
    assert sizes[:7] == [8, 4, 2, 2, 2, 2, 2]
    assert len(sizes) == 2 + 4 + 6 * 4  # two trials that fail, one of two steps that hold, and the training
    assert_same_run(tmp_path / "auto", tmp_path / "stated")
    assert chosen(tmp_path / "auto") == 2
    said = (tmp_path / "auto/log.txt").read_text()
    assert "micro_batch: 2 of 8 (auto: a step of 4 ran out of memory, " in said and "are free on cpu)" in said
    assert "batch: global 8 = micro-batch 2 x 1 rank x accumulation 4" in said
    plain = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("auto", "stated")]
    assert plain[0]["train"].pop("micro_batch_found") == 2 and plain[0].pop("name") and plain[1].pop("name")
    assert plain[0] == plain[1]


@pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="the library of the pretended GPU needs g++",
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_are_tried_on_a_gpu(
    train: Train, program: Program, config_file: Path, tmp_path: Path, ranks: int
) -> None:
    """The calls of CUDA that the choice makes, on a pretended GPU. Its memory is that of an H100."""
    train(tmp_path / "prepares", "train.steps=1").expect(0)
    words = ("train.micro_batch=auto", f"train.global_batch={4 * ranks}", "device=cuda")
    script = REPOSITORY / "tests/training/pretended_choice.py"
    (_, file, *overrides) = arguments(config_file, tmp_path / "run", *words)
    found = json.loads(program.fresh(script, file, 2, ranks, *overrides).wait().expect(0).out)
    assert found == {"chosen": 2, "sizes": [4, *([2] * 6)]}  # two trials, and a step of two micro-batches


def test_a_resumed_run_keeps_its_number_on_the_same_device_alone(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [2]
    limited(monkeypatch, lambda: free[0])
    config = auto(tiny_config, balls, tmp_path, "run")
    train_run(auto(tiny_config, balls, tmp_path, "whole"))

    stopped = config.model_copy(update={"stop": config.stop.model_copy(update={"at": 3})})
    train_run(stopped)
    assert chosen(tmp_path / "run") == 2
    free[0] = 8  # more memory is free by chance: the bits of the run would change
    write_run_config(tmp_path / "run", config)  # as `submit` does when it continues a run
    train_run(config)
    assert (
        chosen(tmp_path / "run") == 2
        and "(auto, at most 2 as in config.yaml: " in (tmp_path / "run/log.txt").read_text()
    )
    assert_same_run(tmp_path / "run", tmp_path / "whole")

    moved = auto(tiny_config, balls, tmp_path, "moved")
    free[0] = 2
    train_run(moved.model_copy(update={"stop": moved.stop.model_copy(update={"at": 3})}))
    path = tmp_path / "moved/environment.json"
    path.write_text(path.read_text().replace('"name": "', '"name": "Tesla '))  # it has run elsewhere
    free[0] = 4
    again = load_run_config(tmp_path / "moved", ["stop.at=null"])  # a job of a sweep starts from the run folder
    assert again.train.micro_batch == 2 and again.train.chooses_micro_batch
    train_run(again)
    assert chosen(tmp_path / "moved") == 4
    ours, theirs = (records(tmp_path / name, "train") for name in ("moved", "whole"))
    assert [one["samples"] for one in ours] == [one["samples"] for one in theirs]
    assert [one["step"] for one in ours] == list(range(1, 7))


def test_a_start_after_a_training_without_memory_takes_less(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may run out later than in the trial; a start again must not end in the same way."""
    train_run(auto(tiny_config, balls, tmp_path, "stated", 4))
    later = [5]
    sizes = limited(monkeypatch, lambda: 8 if len(sizes) < later[0] else 4)
    config = auto(tiny_config, balls, tmp_path, "run")
    with pytest.raises(TrainingStopped, match=r"with train\.micro_batch 8 and .*") as raised:
        train_run(config)
    assert "train.micro_batch=4: about " in str(raised.value) and "the run goes on" in str(raised.value)
    assert "train.micro_batch=auto" not in str(raised.value)
    assert chosen(tmp_path / "run") == 8
    later[0] = 1000
    note = tmp_path / "run/profile/out_of_memory_rank0.txt"
    assert note.read_text() == f"{raised.value}\n" and "the same command again: " in note.read_text()
    note.rename(note.with_name("out_of_memory_rank3.txt"))  # the memory of another rank has run out
    train_run(config)
    assert not list(note.parent.iterdir())
    assert chosen(tmp_path / "run") == 4 and records(tmp_path / "run")[-1]["status"] == "completed"
    assert "(auto, below 8, with which the start before ran out" in (tmp_path / "run/log.txt").read_text()
    ours, theirs = (records(tmp_path / name, "train") for name in ("run", "stated"))
    assert [one["samples"] for one in ours] == [one["samples"] for one in theirs]


def test_a_size_that_no_kernel_takes_is_not_chosen(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 4, RuntimeError("expected less than INT_MAX elements\nmore lines"))
    train_run(auto(tiny_config, balls, tmp_path, "run"))
    assert chosen(tmp_path / "run") == 4
    said = (tmp_path / "run/log.txt").read_text()
    assert "(auto: a step of 8 failed (RuntimeError: expected less than INT_MAX elements), " in said


def test_the_number_of_another_run_is_no_limit(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 8)
    config = auto(tiny_config, balls, tmp_path, "run")
    found = config.model_copy(update={"train": config.train.with_micro_batch(2)})  # with its configuration
    train_run(found)
    assert chosen(tmp_path / "run") == 8


def test_a_run_may_go_on_from_auto_to_a_number_and_back(train: Train, tmp_path: Path) -> None:
    """The results do not depend on it, so no word is needed. From one number to another it still is."""
    run = tmp_path / "run"
    words = ("train.steps=6", "train.global_batch=4", "stop.at=2")
    train(run, *words, "train.micro_batch=auto").expect(0)
    assert chosen(run) == 4
    train(run, *words[:2], "stop.at=4", "train.micro_batch=2").expect(0)
    said = train(run, *words[:2], "stop.at=5", "train.micro_batch=1").expect(2).err
    assert "train.micro_batch: 2 -> 1" in said and "--extend" in said
    train(run, *words[:2], "train.micro_batch=auto").expect(0)
    assert chosen(run) == 4 and records(run)[-1]["status"] == "completed"
    assert "this run has finished" in train(run, *words[:2], "train.micro_batch=auto").expect(0).err
    assert json.loads((run / "history.jsonl").read_text().splitlines()[0])["event"] == "start"
    assert "extend" not in (run / "history.jsonl").read_text()


def train_with(limits: list[int], words: list[str]) -> None:
    """Train as on GPUs of which each holds micro-batches of at most so many samples."""
    from fusionseg.train import main

    with pytest.MonkeyPatch.context() as patch:
        limited(patch, limits[int(os.environ["RANK"])])
        raise SystemExit(main(words))


def test_the_ranks_take_what_fits_on_all(program: Program, config_file: Path, tmp_path: Path) -> None:
    words = ("train.steps=4", "train.global_batch=16", "log.samples=true")
    command = arguments(config_file, tmp_path / "auto", *words, "train.micro_batch=auto")
    started = [program.function(train_with, ([8, 2], command), env) for env in rank_environments(2)]
    ended = [process.wait().expect(0) for process in started]
    assert "micro_batch: 2 of 8 (auto on rank 1: a step of 4 ran out of memory" in ended[0].err
    assert chosen(tmp_path / "auto") == 2
    for rank in program.ranks(2, *arguments(config_file, tmp_path / "stated", *words, "train.micro_batch=2")):
        rank.wait().expect(0)
    assert_same_run(tmp_path / "auto", tmp_path / "stated")


def test_a_cpu_takes_what_the_estimate_allows(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is tried: a host without memory would kill the process."""
    asked: list[int] = []
    estimate = micro_batch_choice.estimate_memory

    def counted(task: Any, config: RunConfig, *rest: Any, **settings: Any) -> Any:
        asked.append(config.train.micro_batch_samples)
        return estimate(task, config, *rest, **settings)

    monkeypatch.setattr(micro_batch_choice, "estimate_memory", counted)
    monkeypatch.setattr(micro_batch_choice, "step_failure", None)
    train_run(auto(tiny_config, balls, tmp_path, "roomy"))
    assert chosen(tmp_path / "roomy") == 8 and asked == [8]

    said = (tmp_path / "roomy/log.txt").read_text()
    needed = float(said.split("8 needs about ")[1].split(" GB")[0]) * 1e9
    monkeypatch.setattr(micro_batch_choice, "available_memory_bytes", lambda: int(needed))
    train_run(auto(tiny_config, balls, tmp_path, "tight"))
    assert chosen(tmp_path / "tight") == 4
    said = (tmp_path / "tight/log.txt").read_text()
    assert "micro_batch: 4 of 8 (auto: 8 needs about " in said and "free on cpu, of which 80% may be taken)" in said

    monkeypatch.setattr(micro_batch_choice, "available_memory_bytes", lambda: 1000)
    train_run(auto(tiny_config, balls, tmp_path, "none"))
    assert chosen(tmp_path / "none") == 1
    assert "the training may run out of memory" in (tmp_path / "none/log.txt").read_text()


def test_a_dry_run_expects_a_number(program: Program, config_file: Path, tmp_path: Path) -> None:
    command = arguments(config_file, tmp_path / "run", "train.micro_batch=auto", "train.global_batch=6", "--dry-run")
    said = program.warm(TRAIN, *command).wait().expect(0).out
    assert "batch        global 6 = micro-batch 6 x 1 rank x accumulation 1" in said
    assert "micro_batch: auto: this number follows from the estimate below" in said
    assert "micro_batch: auto, precision" in said  # the configuration is shown as it was written


def test_what_depends_on_the_micro_batch_is_refused(
    program: Program, config_file: Path, tmp_path: Path, user_folder: Path
) -> None:
    words = (
        "train.micro_batch=auto",
        "model.norm=batch",
        "loss.batch_dice=true",
        "cache.placement=sharded",
        "train.global_batch=3",
    )
    said = program.warm(TRAIN, *arguments(config_file, tmp_path / "run", *words)).wait().expect(2).err
    for key in ("model.norm=batch", "loss.batch_dice=true", "cache.placement=sharded"):
        assert f"because {key} depends on micro_batch" in said
    with pytest.raises(UserError, match=r"train\.micro_batch.*'many'"):
        load_config(str(config_file), ["train.micro_batch=many"])

    (user_folder / "own_batch_norm.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, in_channels, out_channels):\n"
        "        super().__init__(nn.BatchNorm3d(in_channels), nn.Conv3d(in_channels, out_channels, 1))\n"
    )
    own = ("train.micro_batch=auto", "model={name: 'own_batch_norm:Net'}")
    command = arguments(config_file, tmp_path / "own", *own)
    said = program.warm(TRAIN, *command, env={"PYTHONPATH": str(user_folder)}, cwd=user_folder).wait().expect(2).err
    assert "own_batch_norm:Net has batch norm (0), whose statistics depend on micro_batch" in said
    ranks = program.ranks(2, *arguments(config_file, tmp_path / "odd", words[0], words[-1]))
    said = "".join(rank.wait().expect(2).err for rank in ranks)
    assert "3 samples cannot be divided among 2 ranks (expected a multiple of 2); start 1 or 3 ranks" in said


@pytest.mark.parametrize("most", range(9))
def test_the_largest_that_fits_is_found_with_few_questions(most: int) -> None:
    candidates = [16, 12, 8, 6, 4, 3, 2, 1]
    asked: list[int] = []

    def fits(samples: int) -> bool:
        asked.append(samples)
        return samples <= most

    assert largest_fitting(candidates, fits)[0] == next((one for one in candidates if one <= most), 1)
    assert len(asked) <= 4 and len(set(asked)) == len(asked) and 1 not in asked
