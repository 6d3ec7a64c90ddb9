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
