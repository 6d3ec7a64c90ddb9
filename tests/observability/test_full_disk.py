"""A full disk: records and checkpoints stop a training, which can be resumed; what is only to look at does not."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end.runs import Ended
from faults.catalogue import assert_seen

from fusionseg import train
from fusionseg.config import dump_config
from fusionseg.observability.pictures import PictureFolder
from fusionseg.observability.sinks.sink import RunEnd, RunStart, Sinks
from fusionseg.observability.sinks.tensorboard import TensorBoardSink
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.records import Record, RecordKind, RecordWriter
from fusionseg.utils.errors import TrainingStopped
from fusionseg.utils.logs import log_to_file, start_logging

PICTURE = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)


def fill(disk: Path) -> None:
    """Take all that is left of a disk."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


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


@pytest.mark.fault("disk-full-at-the-log")
def test_log_txt_on_a_full_disk(small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    disk = small_disk("16k")
    start_logging()
    handler = log_to_file(disk / "log.txt")
    try:
        fill(disk)
        for number in range(300):
            logging.getLogger("fusionseg").info("step %d, %s", number, "x" * 100)
    finally:
        logging.getLogger("fusionseg").removeHandler(handler)
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


@pytest.mark.fault("disk-full-for-any-file")
def test_a_training_on_a_disk_that_fills_up_can_be_resumed(
    balls: Path, tmp_path: Path, tiny_config, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from step 3 on, as another user's job may fill it."""
    disk = small_disk("1m")
    config = tiny_config(
        balls,
        disk,
        data={"prepared": str(tmp_path / "prepared")},
        train={"steps": 8},
        validate={"every": 8},
        log={"tensorboard": True},
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    write = RecordWriter.write

    def fill_up(self: RecordWriter, kind: RecordKind, step: int, **fields: object) -> Record:
        record = write(self, kind, step, **fields)
        if step == 3:
            fill(disk)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordWriter, "write", fill_up)
        status = train.main(["--config", str(tmp_path / "c.yaml")])
    said = capsys.readouterr().err
    assert_seen("disk-full-for-any-file", Ended(status, "", said), disk / "tiny")
    assert "stopped: " in said and "could not be written (" in said and "goes on from step_00000002.pt" in said
    assert "Traceback" not in said
    (disk / "filler").unlink()
    gc.collect()  # the process ends, as it were: the first start lets go of its folder
    assert not list((disk / "tiny").rglob(".partial-*"))
    assert train.main(["--config", str(tmp_path / "c.yaml")]) == 0
    assert "resuming from" in capsys.readouterr().err
    steps = [json.loads(line) for line in (disk / "tiny/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == list(range(1, 9))
