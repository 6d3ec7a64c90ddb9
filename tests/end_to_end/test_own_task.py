"""A task from a file outside the package: it trains on two ranks, is killed, and resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from end_to_end.conftest import arguments
from end_to_end.runs import (
    REPOSITORY,
    TRAIN,
    Program,
    assert_same_run,
    checkpoint,
    rank_environments,
    records,
    wait_for_step,
)
from fusionseg.cli import main

TASK = (REPOSITORY / "docs/extending.md").read_text().split("# my_task.py\n")[1].split("```")[0]


def test_own_task_on_two_ranks_is_killed_and_resumes(
    program: Program, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    task = ("task={name: my_task.py:Brightness, args: {threshold: 0.1}}", "train.steps=8", "validate.every=4")
    common = (*task, "checkpoint.every=2", "log.every=1", "stop.plateau=null", f"data.prepared={tmp_path / 'prepared'}")

    def start(run: Path) -> list:
        words = arguments(config_file, run, *common)
        return [program.warm(TRAIN, *words, env=env, cwd=tmp_path) for env in rank_environments(2)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for rank in start(whole):
        rank.wait().expect(0)
    ranks = start(broken)
    wait_for_step(broken, 3, ranks)
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.wait()
    for rank in start(broken):
        rank.wait().expect(0)
    assert_same_run(whole, broken)

    (end,) = records(whole, "end")
    assert end["status"] == "completed" and 0 <= end["best_accuracy"] <= 1
    assert [record["cases"] > 0 for record in records(whole, "val")] == [True, True]
    assert checkpoint(whole)["config"]["task"]["found_in"] == str(tmp_path)

    assert main(["evaluate", str(whole)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert main(["predict", str(whole), "--input", str(tmp_path), "--output", str(tmp_path / "masks")]) == 2
    assert "predicts no masks" in capsys.readouterr().err


def test_class_that_is_no_task_is_refused(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "no_task.py").write_text("class Wrong:\n    def __init__(self, config):\n        pass\n")
    monkeypatch.chdir(tmp_path)
    words = arguments(config_file, tmp_path / "run", "task=no_task.py:Wrong")
    assert main(["train", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "task.name" in error and "TaskInfo" in error
