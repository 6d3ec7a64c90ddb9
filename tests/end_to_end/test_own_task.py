"""A task from a file outside the package: it trains on two ranks, is killed, and resumes exactly."""

from __future__ import annotations

import json
import sys
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
    program.torchrun(2, *arguments(config_file, broken, *common), cwd=tmp_path).wait().expect(0)
    assert_same_run(whole, broken)

    (end,) = records(whole, "end")
    assert end["status"] == "completed" and 0 <= end["best_accuracy"] <= 1
    assert [record["cases"] > 0 for record in records(whole, "val")] == [True, True]
    assert checkpoint(whole)["config"]["task"]["found_in"] == str(tmp_path)

    # A finished run advises to evaluate it; that repeats the last validation.
    assert main(["train", *map(str, arguments(config_file, whole, *common))]) == 0
    assert f"fusionseg evaluate {whole}" in capsys.readouterr().err
    assert main(["evaluate", str(whole)]) == 0
    last = records(whole, "val")[-1]
    assert f"| accuracy | {last['accuracy']:.4f} |" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((whole / "evaluation/summary.json").read_text())
    assert summary["step"] == 8 and summary["fields"] == {key: last[key] for key in ("accuracy", "cases")}
    assert main(["evaluate", str(whole), "--tta", "--volumes"]) == 2
    assert "--tta, --volumes" in capsys.readouterr().err
    assert main(["predict", str(whole), "--input", str(tmp_path), "--output", str(tmp_path / "masks")]) == 2
    assert "predicts no masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (("", ""), "tasks_under_test.py:Brighness", "did you mean Brightness?"),
        (("", ""), "{name: tasks_under_test.py:Brightness, args: {treshold: 1}}", "did you mean threshold?"),
        (("info = TaskInfo", "description = TaskInfo"), "tasks_under_test.py:Brightness", "TaskInfo"),
        (("def build_loss", "def make_loss"), "tasks_under_test.py:Brightness", "lacks methods of a task (build_loss)"),
        (("class Brightness(Task)", "class Brightness"), "tasks_under_test.py:Brightness", "subclass of"),
        (("torch.empty(batch, in_channels", "torch.empty(batch, 3"), "tasks_under_test.py:Brightness", "RuntimeError"),
        (("torch.empty(batch,", "torch.empty(batch + 1,"), "tasks_under_test.py:Brightness", "train.micro_batch"),
        (("torch.int64)", "torch.int64), None"), "tasks_under_test.py:Brightness", "expected ((image, ...), target)"),
        (("float(), classes)", "float(), classes, reduction='none')"), "tasks_under_test.py:Brightness", "one number"),
        (("logits.float(), classes)", "logits.detach(), classes)"), "tasks_under_test.py:Brightness", "gradient"),
        (('score="accuracy"', 'score="accuracy", evaluation="masks"'), "tasks_under_test.py:Brightness", "logits"),
    ],
)
def test_task_that_is_wrong_is_refused_before_there_is_a_run(
    change: tuple[str, str],
    name: str,
    expected: str,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert change[0] in TASK
    text = TASK.replace(*change).replace("super().__init__(config)", "self.config = config")
    (tmp_path / "tasks_under_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tasks_under_test", raising=False)
    run = tmp_path / "run"
    assert main(["train", *map(str, arguments(config_file, run, f"task={name}"))]) == 2
    error = capsys.readouterr().err
    assert "task." in error and expected in error and "Traceback" not in error
    assert not run.exists()
