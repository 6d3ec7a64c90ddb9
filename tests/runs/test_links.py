"""Links in a run folder from elsewhere: nothing is written through them, and nothing of their targets is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg import cli
from fusionseg.config import RunConfig, dump_config
from fusionseg.runs.job_events import JobEvent, write_event
from fusionseg.runs.trust.links import refuse_links
from fusionseg.training.start import train
from fusionseg.utils.errors import UserError, WriteError
from fusionseg.utils.locks.folder_lock import LOCK, FolderLock
from fusionseg.utils.locks.owner import OWNER

PRECIOUS = "a file of the user\n"


@pytest.fixture(scope="module")
def trained(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path]:
    """A run of one step, and its configuration."""
    folder = tmp_path_factory.mktemp("theirs")
    config = tiny_config(balls, folder, train={"steps": 1}, validate={"every": 1})
    train(config)
    return config, folder / "tiny"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that a link in a run folder leads to."""
    path = tmp_path / "victim.txt"
    path.write_text(PRECIOUS)
    return path


def linked(path: Path, target: Path) -> None:
    """Put a link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_a_command_writes_and_publishes_nothing_through_links(
    trained: tuple[RunConfig, Path], victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, original = trained
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(original, run)
    names = ["log.txt", "metrics.jsonl", "jobs.jsonl", OWNER, "gpu_n1.csv", "pictures/validation_00000001.png"]
    for name in names:
        linked(run / name, victim)
    linked(run / "history.jsonl", tmp_path / "not_there")
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(config.model_copy(update={"output": str(run.parent)})))
    commands = [
        ["train", "--config", str(file), "train.steps=2", "--extend"],
        ["evaluate", str(run)],
        ["report", str(run)],
        ["report", str(run.parent)],
        ["card", str(run)],
        ["export", str(run), "--format", "fseg", "-o", str(tmp_path / "m.fseg")],
        ["export", str(run), "--format", "onnx", "-o", str(tmp_path / "model")],
    ]
    before = sorted(tmp_path.rglob("*"))
    for words in commands:
        assert cli.main(words) == 2, words
        message = capsys.readouterr().err
        for name in [*names, "history.jsonl"]:
            assert f"{run / name}: is a link to" in message, words
        assert "put a copy of the file in its place" in message
    assert victim.read_text() == PRECIOUS
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written at all"


def test_links_that_stay_inside_and_links_of_checkpoints_are_no_fault(
    trained: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    _, original = trained
    run = tmp_path / "tiny"
    shutil.copytree(original, run)
    linked(run / "checkpoints" / "best.pt", original / "checkpoints" / "best.pt")
    linked(run / "gpu.csv", Path("metrics.jsonl"))
    linked(run / "notes.md", tmp_path / "notes of the user")
    shutil.move(run / "pictures", tmp_path / "larger_disk")
    linked(run / "pictures", tmp_path / "larger_disk")
    refuse_links(run)
    linked(tmp_path / "link_to_run", run)
    refuse_links(tmp_path / "link_to_run")
    refuse_links(tmp_path / "not_there", run / "checkpoints" / "last.pt")


@pytest.mark.parametrize("inside", ["checkpoints", "evaluation", "evaluation_b/masks"])
def test_a_folder_of_another_run_is_not_the_folder_of_this_one(
    trained: tuple[RunConfig, Path], tmp_path: Path, inside: str
) -> None:
    """Old checkpoints of the other run would be deleted, and its masks replaced."""
    _, original = trained
    run, other = tmp_path / "tiny", tmp_path / "other"
    for folder in (run, other):
        shutil.copytree(original, folder)
    (other / inside).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run / inside, ignore_errors=True)
    (run / inside).parent.mkdir(exist_ok=True)
    linked(run / inside, other / inside)
    with pytest.raises(UserError, match="belongs to another run") as refused:
        refuse_links(run)
    assert str(run / inside) in str(refused.value)


def test_a_lock_and_the_events_of_jobs_follow_no_link(victim: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    linked(run / OWNER, victim)
    lock = FolderLock(run)
    lock.acquire()
    lock.release()
    linked(run / LOCK, tmp_path / "made_elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        FolderLock(run).acquire()
    linked(run / "jobs.jsonl", victim)
    with pytest.raises(
        WriteError, match=r"is a link to .*victim\.txt, through which nothing is written: remove the link"
    ):
        write_event(run, JobEvent.SUBMITTED, job="1")
    assert victim.read_text() == PRECIOUS
    assert not os.path.lexists(tmp_path / "made_elsewhere")
