"""A full disk: records and checkpoints stop a training, which can be resumed; what is only to look at does not."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end.runs import Ended
from faults.catalogue import assert_seen
from full_disk import fill

from fusionseg import train
from fusionseg.config import dump_config
from fusionseg.observability.pictures import PictureFolder
from fusionseg.observability.sinks.sink import RunEnd, RunStart, Sinks
from fusionseg.observability.sinks.tensorboard import TensorBoardSink
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.checkpoints import read_checkpoint
from fusionseg.runs.disk import failures as failures_module
from fusionseg.runs.disk.failures import DiskFailures
from fusionseg.runs.json_files import append_line
from fusionseg.runs.records import Record, RecordKind, RecordWriter
from fusionseg.training.ending import end as end_module
from fusionseg.utils.errors import TrainingStopped
from fusionseg.utils.logs import log_to_file, start_logging

PICTURE = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)


def started_board(folder: Path) -> Sinks:
    """The TensorBoard file of a run in a folder, as a run has it."""
    sinks = Sinks([("log.tensorboard", lambda: TensorBoardSink(folder))])
    sinks.start(RunStart(folder, "run", 0, {}, "", {}, "dice"), [], lambda step: None)
    return sinks


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("fusionseg").propagate = True
    return caplog


@pytest.mark.fault("disk-full-at-a-record")
def test_a_record_is_written_whole_or_stops_the_training(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    writer = RecordWriter(disk / "run")
    writer.write(RecordKind.TRAIN, 1, loss=0.5)
    fill(disk)
    with pytest.raises(TrainingStopped) as caught:
        for step in range(2, 200):  # the first page has room
            writer.write(RecordKind.TRAIN, step, loss=0.25, text="x" * 100)
    assert_seen("disk-full-at-a-record", str(caught.value))
    assert str(caught.value).startswith(f"{disk}/run/metrics.jsonl: a record could not be written (No space left")
    assert "start the run again: it resumes from its last checkpoint" in str(caught.value)
    writer.close()
    records = [json.loads(line) for line in (disk / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1)) and len(records) > 10
    (disk / "filler").unlink()
    again = RecordWriter(disk / "run")
    again.write(RecordKind.TRAIN, len(records) + 1, loss=0.5)
    again.close()
    assert len((disk / "run/metrics.jsonl").read_text().splitlines()) == len(records) + 1


@pytest.mark.fault("disk-full-at-a-picture")
def test_pictures_and_tensorboard_are_given_up_with_one_warning(
    small_disk: Callable[[str], Path], log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("64k")
    hook = threading.excepthook
    pictures, board = PictureFolder(disk / "pictures"), started_board(disk)
    pictures.write("validation", PICTURE, 1)
    board.image("validation", PICTURE, 1)
    fill(disk)
    for step in range(2, 40):
        pictures.write("validation", PICTURE, step)
        board.image("validation", PICTURE, step)
        board.record({"kind": "gpu", "step": step, "busy": 1.0})
    board.finish(RunEnd({"step": 40, "best_dice": 0.5}, is_final=True))
    said = [record.getMessage() for record in log.records]
    assert len(said) == 2
    assert any(f"{disk}/pictures/validation_" in text and "without pictures" in text for text in said)
    assert any(text.startswith("log.tensorboard: ") and "No space left" in text for text in said)
    assert_seen("disk-full-at-a-picture", "\n".join(said))
    assert "Traceback" not in capfd.readouterr().err and threading.excepthook is hook
    assert len(os.listdir(disk / "pictures")) == 1


@pytest.mark.fault("tensorboard-not-writable")
def test_a_board_that_cannot_be_made(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    hook = threading.excepthook
    (tmp_path / "file").touch()
    board = started_board(tmp_path / "file" / "run")
    board.record({"kind": "train", "step": 1, "loss": 1.0})
    board.image("b", PICTURE, 1)
    board.finish(RunEnd({"step": 40, "best_dice": 0.5}, is_final=True))
    assert len(log.records) == 1
    assert_seen("tensorboard-not-writable", log.text)
    assert threading.excepthook is hook


@contextmanager
def logging_on_a_full_disk(disk: Path) -> Iterator[None]:
    """Log 300 lines to log.txt on a disk without room, and run the body while the file is open."""
    start_logging()
    handler = log_to_file(disk / "log.txt")
    try:
        fill(disk)
        for number in range(300):
            logging.getLogger("fusionseg").info("step %d, %s", number, "x" * 100)
        yield
    finally:
        logging.getLogger("fusionseg").removeHandler(handler)
        handler.close()


@pytest.mark.fault("disk-full-at-the-log")
def test_log_txt_on_a_full_disk(small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    disk = small_disk("16k")
    with logging_on_a_full_disk(disk):
        pass
    said = capfd.readouterr().err
    assert_seen("disk-full-at-the-log", said)
    assert said.count("log.txt: cannot be written") == 1 and "Traceback" not in said
    assert said.count("step ") == 300  # on the screen nothing is missing


def test_a_checkpoint_that_finds_no_space_leaves_the_one_before(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("256k")
    checkpoints = CheckpointWriter(disk / "checkpoints", keep=3)
    checkpoints.save(1, {"weights": torch.zeros(8000)})
    checkpoints.finish()
    fill(disk)
    checkpoints.save(2, {"weights": torch.ones(8000)})
    with pytest.raises(TrainingStopped, match=r"a checkpoint could not be written .*from step_00000001.pt"):
        checkpoints.finish()
    assert sorted(os.listdir(disk / "checkpoints")) == ["last.pt", "step_00000001.pt"]


def command_on(disk: Path, tmp_path: Path, tiny_config, balls: Path, steps: int, **sections: Any) -> list[str]:
    """The arguments of a training whose run folder lies on a disk. It validates once, at its end."""
    config = tiny_config(
        balls,
        disk,
        data={"prepared": str(tmp_path / "prepared")},
        train={"steps": steps},
        validate={"every": steps},
        **sections,
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    return ["--config", str(tmp_path / "c.yaml")]


def fill_after(disk: Path, step: int) -> None:
    """Fill a disk as soon as the checkpoint of a step is there."""
    limit = time.monotonic() + 60
    while not (disk / f"tiny/checkpoints/step_{step:08}.pt").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    fill(disk)


@pytest.mark.fault("disk-full-for-any-file")
def test_a_training_on_a_disk_that_fills_up_can_be_resumed(
    balls: Path, tmp_path: Path, tiny_config, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from step 3 on, as another user's job may fill it."""
    disk = small_disk("1m")
    command = command_on(disk, tmp_path, tiny_config, balls, 8, log={"tensorboard": True}, checkpoint={"retry_s": 0.0})
    write = RecordWriter.write

    def fill_up(self: RecordWriter, kind: RecordKind, step: int, **fields: object) -> Record:
        record = write(self, kind, step, **fields)
        if step == 3:
            fill_after(disk, 2)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordWriter, "write", fill_up)
        status = train.main(command)
    said = capsys.readouterr().err
    assert_seen("disk-full-for-any-file", Ended(status, "", said), disk / "tiny")
    assert "stopped: " in said and "could not be written (" in said and "goes on from step_00000002.pt" in said
    assert "Traceback" not in said
    (disk / "filler").unlink()
    gc.collect()  # the process ends, as it were: the first start lets go of its folder
    assert not list((disk / "tiny").rglob(".partial-*"))
    assert train.main(command) == 0
    assert "resuming from" in capsys.readouterr().err
    steps = [json.loads(line) for line in (disk / "tiny/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == list(range(1, 9))


def test_a_signal_is_heard_while_the_last_step_waits_for_the_disk(
    balls: Path, tmp_path: Path, tiny_config, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is interrupted, not failed, and does not wait for `checkpoint.retry_s`."""
    disk = small_disk("1m")
    command = command_on(
        disk, tmp_path, tiny_config, balls, 5, log={"tensorboard": False}, checkpoint={"every": 2, "retry_s": 600.0}
    )
    write = RecordWriter.write

    def fill_up(self: RecordWriter, kind: RecordKind, step: int, **fields: object) -> Record:
        if step == 5 and kind == RecordKind.TRAIN:
            fill_after(disk, 4)
            Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return write(self, kind, step, **fields)

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordWriter, "write", fill_up)
        patch.setattr(failures_module, "AFTER_SIGNAL_S", 0.5)
        patch.setattr(end_module, "AFTER_SIGNAL_S", 0.5)
        status = train.main(command)
    said = capsys.readouterr().err
    assert status == 1 and time.monotonic() - began < 60
    assert "interrupted (SIGTERM)" in said and "Traceback" not in said
    assert "goes on from step_00000004.pt" in said
    (disk / "filler").unlink()
    gc.collect()  # the process ends, as it were: the first start lets go of its folder
    assert train.main(command) == 0
    steps = [json.loads(line) for line in (disk / "tiny/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == list(range(1, 6))


def test_records_that_wait_are_not_written_into_the_folder_of_another_process(
    small_disk: Callable[[str], Path],
) -> None:
    disk = small_disk("64k")
    failures = DiskFailures(60.0, pause_s=0.0)

    def refuse() -> None:
        raise TrainingStopped("the run folder was taken over")

    writer = RecordWriter(disk / "run", failures, check=refuse)
    fill(disk)
    while not failures.failing:
        writer.write(RecordKind.TRAIN, 1, text="x" * 100)
    written = (disk / "run/metrics.jsonl").read_bytes()
    (disk / "filler").unlink()
    with pytest.raises(TrainingStopped, match="taken over"):
        writer.sync()
    with pytest.raises(TrainingStopped, match="taken over"):
        writer.write(RecordKind.TRAIN, 2)
    writer.close()
    assert (disk / "run/metrics.jsonl").read_bytes() == written


def test_records_wait_for_the_disk_and_keep_their_order(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    failures = DiskFailures(60.0, pause_s=0.0)
    writer = RecordWriter(disk / "run", failures)
    writer.write(RecordKind.TRAIN, 1, loss=0.5)
    fill(disk)
    for step in range(2, 200):
        writer.write(RecordKind.TRAIN, step, loss=0.25, text="x" * 100)
    assert failures.failing and not writer.sync() and not failures.has_given_up()
    written = (disk / "run/metrics.jsonl").read_bytes()
    assert written.endswith(b"\n") and 10 < written.count(b"\n") < 199
    (disk / "filler").unlink()
    writer.write(RecordKind.TRAIN, 200, loss=0.25)
    assert writer.sync() and not failures.failing
    lines = (disk / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 201))


def test_log_lines_wait_for_the_disk(small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    disk = small_disk("16k")
    with logging_on_a_full_disk(disk):
        (disk / "filler").unlink()
        (disk / "more").mkdir()
        subprocess.run(["mount", "-o", "remount,size=128k", str(disk)], check=True)
        logging.getLogger("fusionseg").info("the last line")
    lines = [line for line in (disk / "log.txt").read_text().splitlines() if line]
    steps = [line for line in lines if " step " in line and line.endswith("x" * 100)]
    assert [int(line.split(" step ")[1].split(",")[0]) for line in steps] == list(range(300))
    assert lines[-1].endswith("the last line") and capfd.readouterr().err.count("its lines wait for the disk") == 1


def test_a_checkpoint_is_tried_again_and_best_comes_first(small_disk: Callable[[str], Path]) -> None:
    """What is written after the disk has room again is what was saved, not what the weights are then."""
    disk = small_disk("256k")
    failures = DiskFailures(60.0, pause_s=0.0)
    checkpoints = CheckpointWriter(disk / "checkpoints", keep=3, failures=failures)
    weights = torch.zeros(8000)
    checkpoints.save(1, {"weights": weights})
    checkpoints.finish()
    fill(disk)
    checkpoints.save_best({"weights": weights.fill_(1)})
    checkpoints.save(2, {"weights": weights.fill_(2)})
    checkpoints.save(3, {"weights": weights.fill_(3)})
    weights.fill_(4)
    with pytest.raises(TrainingStopped, match=r"a checkpoint could not be written \(No space .*from step_00000001.pt"):
        checkpoints.finish(0.0)
    assert sorted(os.listdir(disk / "checkpoints")) == ["last.pt", "step_00000001.pt"]
    (disk / "filler").unlink()
    checkpoints.finish()
    assert sorted(os.listdir(disk / "checkpoints")) == ["best.pt", "last.pt", "step_00000001.pt", "step_00000003.pt"]
    found = {name: read_checkpoint(disk / "checkpoints" / name)["weights"][0].item() for name in ("best.pt", "last.pt")}
    assert found == {"best.pt": 1, "last.pt": 3} and not failures.failing
    times = [(disk / "checkpoints" / name).stat().st_mtime_ns for name in ("best.pt", "step_00000003.pt")]
    assert times == sorted(times)


def test_no_checkpoint_comes_before_its_records(tmp_path: Path) -> None:
    """A run that is killed resumes from its newest checkpoint: the records up to there must be on disk."""
    failures = DiskFailures(60.0, pause_s=0.0)
    checkpoints = CheckpointWriter(tmp_path, keep=3, failures=failures)
    error, answers = OSError(errno.EIO, "Input/output error"), [False, True]

    def write_records() -> bool:
        if not (answer := answers.pop(0)):
            failures.failed(tmp_path / "metrics.jsonl", "a record", error)
        else:
            failures.worked(tmp_path / "metrics.jsonl")
        return answer

    checkpoints.write_records = write_records
    checkpoints.save(1, {"weights": torch.zeros(3)})
    assert not os.listdir(tmp_path)
    checkpoints.finish()
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "step_00000001.pt"] and not answers


def test_a_limit_of_a_files_size_is_named(tmp_path: Path) -> None:
    """torch.save itself ends without an error if a write is cut off."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = CheckpointWriter(tmp_path, keep=3)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
        checkpoints.save(1, {"weights": torch.zeros(1_000_000)})
        with pytest.raises(TrainingStopped, match=r"\(File too large\): raise the limit of a file's size"):
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


def test_only_records_on_disk_end_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server may take bytes and refuse them at the next synchronisation: the run gives up all the same."""
    failures = DiskFailures(retry_s=0.3, pause_s=0.05)
    writer = RecordWriter(tmp_path, failures)

    def refuse(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    assert not writer.sync()
    limit = time.monotonic() + 60
    step = 0
    while not failures.has_given_up():
        assert time.monotonic() < limit and failures.failing
        writer.write(RecordKind.TRAIN, step := step + 1, loss=1.0)
        time.sleep(0.01)
    assert "Disk quota exceeded" in failures.verdict
    writer.close()


def test_a_checkpoint_that_waits_is_written_after_the_records_work_again(tmp_path: Path) -> None:
    """The fault was that of the records alone, and a record ended it before the checkpoint was tried again."""
    failures = DiskFailures(retry_s=1800, pause_s=0.01)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2, failures=failures)
    writer.write_records = lambda: False
    failures.failed(tmp_path / "metrics.jsonl", "a record", OSError(errno.ENOSPC, "No space left on device"))
    writer.save(500, {"step": 500})
    assert not (tmp_path / "checkpoints/step_00000500.pt").exists()
    writer.write_records = lambda: True
    failures.worked(tmp_path / "metrics.jsonl")
    writer.check()
    writer.finish()
    assert (tmp_path / "checkpoints/step_00000500.pt").exists()


def test_a_run_does_not_give_up_without_a_last_attempt(tmp_path: Path) -> None:
    """A validation may take longer than the time that is left."""
    failures = DiskFailures(retry_s=0.1, pause_s=0.01)
    refused = OSError(errno.ENOSPC, "No space left on device")
    failures.failed(tmp_path / "last.pt", "a checkpoint", refused)
    time.sleep(0.2)
    assert failures.is_due and not failures.has_given_up()
    failures.failed(tmp_path / "last.pt", "a checkpoint", refused)
    assert failures.has_given_up()


def test_a_torn_line_of_the_history_swallows_no_other(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"event": "start", "ti')
    append_line(tmp_path / "history.jsonl", '{"event": "fault"}\n')
    assert (tmp_path / "history.jsonl").read_text().splitlines()[1] == '{"event": "fault"}'
