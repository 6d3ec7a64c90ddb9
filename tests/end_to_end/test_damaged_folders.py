"""Run folders as they are found: damaged, edited, with files of other programs. A message or a resume, no traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from faults.catalogue import assert_seen

from end_to_end.conftest import LEARNING, Train
from end_to_end.runs import assert_same_run, checkpoint
from fusionseg.cli import main
from fusionseg.config import RunConfig, load_config
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.utils.errors import UserError

OPTIONS = (*LEARNING, "log={every: 1, samples: true, tensorboard: true}")
DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "a number": b"12",
    "a list": b"- 1",
    "no UTF-8": b"name\xff\xfe: x",
    "no YAML": b"{name: [",
    "NUL": b"\0\0\0\0",
    "cut off": b"name: tiny\noutput",
}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.fixture
def half(run: Path) -> Path:
    """A copy of the run, as if it had been killed after step 100."""
    newest = run / "checkpoints/step_00000120.pt"
    newest.unlink()
    (run / "checkpoints/last.pt").unlink()
    shutil.copy(run / "checkpoints/step_00000100.pt", run / "checkpoints/last.pt")
    return run


def config_of(run: Path) -> RunConfig:
    return load_config(run / "config.yaml", [f"output={run.parent}", f"name={run.name}"])


@pytest.mark.fault("damaged-small-files")
def test_run_with_damaged_files_resumes_exactly(train: Train, half: Path, trained: Path) -> None:
    """An empty configuration (the checkpoints hold a copy), invalid records, files of other programs."""
    (half / "config.yaml").write_bytes(b"")
    with (half / "metrics.jsonl").open("ab") as file:
        file.write(b'12\n[]\n{"kind\xff\xfe": 1}\n{"kind": "train"}\n')
    torch.save({"state_dict": {}}, half / "checkpoints/step_00000119.pt")  # of another program
    torch.save([1, 2], half / "checkpoints/step_00000118.pt")
    (half / "checkpoints/step_1.pt").write_bytes(b"")
    (half / "checkpoints/notes").mkdir()
    os.mkfifo(half / "pipe")
    (half / "environment.json").write_text("7")

    ended = train(half, *OPTIONS)

    assert_seen("damaged-small-files", ended, half)
    assert f"{half}/config.yaml: is empty: the configuration is taken from " in ended.err
    assert "step_00000119.pt: is no checkpoint of a fusionseg training (step, " in ended.err
    assert "step_00000118.pt: is no checkpoint (expected a dictionary, got a list); it is skipped" in ended.err
    assert "4 lines are no records of this program, the first is line " in ended.err
    assert "(step 100 of 120)" in ended.err
    assert_same_run(half, trained)
    assert load_config(half / "config.yaml").train.steps == 120


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.fault("configuration-file-damaged")
def test_damaged_configuration_is_read_from_the_checkpoints(
    run: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """The same configuration resumes and another one is refused; `status` works too."""
    config = config_of(run)
    (run / "config.yaml").write_bytes(DAMAGES[damage])
    RunFolder(run_folder_of(config)).check(config)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(UserError, match=r"different configuration: .*\n  seed: 0 -> 5"):
        RunFolder(run_folder_of(other)).check(other)
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr()
    assert_seen("configuration-file-damaged", shown=shown.out)
    assert "| finished | 120" in shown.out
    assert "Traceback" not in shown.err


@pytest.mark.fault("no-configuration-left")
def test_folder_without_any_configuration_is_refused(run: Path) -> None:
    config = config_of(run)
    (run / "config.yaml").write_bytes(b"")
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError) as refused:
        RunFolder(run_folder_of(config)).check(config)
    assert_seen("no-configuration-left", str(refused.value))


@pytest.mark.fault("foreign-checkpoint")
def test_checkpoints_of_another_configuration_are_refused(train: Train, half: Path) -> None:
    """config.yaml alone is not enough: the checkpoints may be copies from another run."""
    for path in (half / "checkpoints").glob("*.pt"):
        state = checkpoint(half, path.name)
        state["config"]["optim"]["lr"] = 7.0
        torch.save(state, path)
    assert_seen("foreign-checkpoint", train(half, *OPTIONS))


@pytest.mark.fault("foreign-weights")
def test_weights_of_another_network_are_refused(train: Train, half: Path) -> None:
    path = half / "checkpoints/step_00000100.pt"
    state = checkpoint(half, path.name)
    state["model"] = dict(list(state["model"].items())[1:])
    torch.save(state, path)
    ended = train(half, *OPTIONS)
    assert_seen("foreign-weights", ended)
    assert "does not fit this network and optimizer (RuntimeError: " in ended.err


@pytest.mark.fault("obstacles-in-the-folder")
def test_obstacles_in_the_folder_are_listed_before_anything_is_written(run: Path) -> None:
    config = config_of(run)
    for name in ("step_00000140.pt", "best.pt"):
        (run / "checkpoints" / name).unlink(missing_ok=True)
        (run / "checkpoints" / name).mkdir()
    (run / "log.txt").unlink()
    os.mkfifo(run / "log.txt")
    (run / "metrics.jsonl").rename(run / "records")
    (run / "metrics.jsonl").mkdir()
    shutil.rmtree(run / "pictures", ignore_errors=True)
    (run / "pictures").write_text("")
    with pytest.raises(UserError) as refused:
        RunFolder(run_folder_of(config)).check(config)
    assert [problem.removeprefix(f"{run}/").partition(":")[0] for problem in refused.value.problems] == [
        "metrics.jsonl", "log.txt", "pictures", "checkpoints/best.pt", "checkpoints/step_00000140.pt",
    ]  # fmt: skip
    assert all("move it away" in problem for problem in refused.value.problems)
    assert_seen("obstacles-in-the-folder", str(refused.value))


def test_every_command_reports_unreadable_files(
    run: Path, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").write_bytes(b'12\n"x"\n{"kind": "val", "step": 1, "dice": "much"}\n\xff\n')
    (run / "environment.json").write_bytes(b"[1]")
    (run / "jobs.jsonl").write_bytes(
        b'{"event": "started", "job": 3}\n{"event": "started", "job": "local", "pid": -1}\n'
    )
    other = tmp_path / "sweep/other"
    shutil.copytree(run, other)
    (other / "config.yaml").write_bytes(b"\xff")

    def said(*words: str, status: int) -> str:
        assert main(list(words)) == status
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return shown.err + shown.out

    text = said("status", str(run), status=1)
    assert "4 lines are no records of this program" in text and "1 lines are no records" in text
    assert "lost" in text
    assert "cannot be read" in said("status", str(other.parent), status=1)
    assert "no job waits or runs" in said("cancel", str(other.parent), status=0)
    assert "none of the 1 runs has a validation to compare" in said("compare", str(run), status=2)
    torch.save({"model": {}, "config": {}, "labels": [], "channels": 3}, run / "checkpoints/best.pt")
    command = ("--input", str(balls / "imagesTr"), "--output", str(tmp_path / "masks"))
    assert "is no checkpoint of a fusionseg training" in said("predict", str(run), *command, status=2)
    torch.save([1], run / "checkpoints/best.pt")
    assert "is no checkpoint (expected a dictionary, got a list)" in said(
        "evaluate", str(run), "--checkpoint", "best", status=2
    )
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()
    assert "the configuration is taken from " in said("evaluate", str(run), "--checkpoint", "best", status=2)
