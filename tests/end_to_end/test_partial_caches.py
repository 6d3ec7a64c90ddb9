"""Runs whose ranks hold some of the cases: they are resumed exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

from end_to_end.conftest import arguments
from end_to_end.runs import Program, assert_same_run, records

STEPS = 12
RUN = (
    f"train.steps={STEPS}",
    "train.micro_batch=1",
    "train.global_batch=2",
    "validate.every=6",
    "checkpoint.every=3",
    "checkpoint.keep=9",
    "log.samples=true",
    "data.samples_per_volume=1",
)


def interrupted(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run as it was after a step."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    return copy


def test_shares_of_two_ranks(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Four training cases: two for each rank, divided anew after two steps."""
    options = (*RUN, "cache.placement=sharded", "cache.share_epochs=1")
    whole = tmp_path / "whole"
    ended = [rank.wait().expect(0) for rank in program.ranks(2, *arguments(config_file, whole, *options))]
    assert "2 of 4 training cases for each of 2 ranks, divided anew every 2 steps" in ended[0].err
    for first, second in zip(*[iter(records(whole, "train"))] * 2, strict=True):
        cases = [sample["case"] for record in (first, second) for sample in record["samples"]]
        assert len(set(cases)) == 4

    resumed = interrupted(whole, tmp_path / "resumed", step=3)  # within a period
    for rank in program.ranks(2, *arguments(config_file, resumed, *options)):
        rank.wait().expect(0)
    assert_same_run(resumed, whole)

    alone = interrupted(whole, tmp_path / "alone", step=9)
    (ended_alone,) = program.ranks(1, *arguments(config_file, alone, *options))
    assert "divides the cases over 1 ranks now, and over 2 before" in ended_alone.wait().expect(0).err


def test_a_window_that_moves_on(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Two of four training cases, one of which is replaced after each step; the same on any number of ranks."""
    options = (*RUN, "cache.placement=rotating", "cache.window_fraction=0.5", "cache.replace_fraction=0.5")
    whole = tmp_path / "whole"
    (alone,) = program.ranks(1, *arguments(config_file, whole, *options))
    ended = alone.wait().expect(0)
    assert "2 of 4 training cases at a time, of which 1 are replaced every 1 steps" in ended.err
    drawn = [[sample["case"] for sample in record["samples"]] for record in records(whole, "train")]
    assert all(len(set(cases)) == 2 for cases in drawn)
    assert len({case for cases in drawn[:4] for case in cases}) == 4

    resumed = interrupted(whole, tmp_path / "resumed", step=6)
    (again,) = program.ranks(1, *arguments(config_file, resumed, *options))
    again.wait().expect(0)
    assert_same_run(resumed, whole)

    pair = tmp_path / "pair"
    for rank in program.ranks(2, *arguments(config_file, pair, *options)):
        rank.wait().expect(0)
    for one, other in zip(records(pair, "train"), records(whole, "train"), strict=True):
        assert one["samples"] == other["samples"]
