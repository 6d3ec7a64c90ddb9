"""Records as they are found on disks: cut off, edited, of another program, or no files at all."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from fusionseg.runs import interrupted_by
from fusionseg.runs.job_events import read_events
from fusionseg.runs.json_files import TAIL_BYTES, read_object
from fusionseg.runs.records import last_records, read_records

TRAIN = {"kind": "train", "step": 3, "loss": 0.5, "samples_per_s": 7.0}
VAL = {"kind": "val", "step": 3, "dice": 0.8, "dice_per_class": {"a": 0.8, "b": None}}
END = {"kind": "end", "step": 3, "status": "completed", "reason": "step 3", "best_dice": 0.8, "phases_s": {"step": 1.0}}

NO_RECORDS = [
    b"12",
    b"null",
    b'"text"',
    b"[1, 2]",
    b"{}",
    b'{"kind": "train"}',
    b'{"step": 3}',
    b'{"kind": 3, "step": 3}',
    b'{"kind": "train", "step": "3"}',
    b'{"kind": "train", "step": true}',
    b'{"kind": "train", "step": -1}',
    b'{"kind": "train", "step": 1e400}',
    b'{"kind": "val", "step": 3, "dice": "0.8"}',
    b'{"kind": "val", "step": 3, "dice": 1e400}',
    b'{"kind": "val", "step": 3, "dice": {"a": 1}}',
    b'{"kind": "val", "step": 3, "dice_per_class": [0.8]}',
    b'{"kind": "end", "step": 3, "status": 1, "reason": "x"}',
    b'{"kind": "end", "step": 3, "status": "failed", "reason": "x", "best_dice": []}',
    b'{"kind\xff\xfe',
    b"\x00\x00\x00",
    b"[" * 20_000,  # deeper than Python reads
    b'{"kind": "train", "step": ' + b"9" * 30 + b"}",
]


@pytest.mark.parametrize("line", NO_RECORDS, ids=lambda line: line[:40].decode("ascii", "replace"))
def test_lines_that_are_no_records_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{json.dumps(TRAIN)}\n".encode() + line + f"\n\n{json.dumps(VAL)}\n{json.dumps(END)}\n".encode())
    with caplog.at_level(logging.WARNING, "fusionseg"):
        assert read_records(tmp_path) == [TRAIN, VAL, END]
        assert list(last_records(tmp_path)) == ["train", "val", "end"]
    first, second = caplog.messages
    assert first == f"{path}: 1 lines are no records of this program, the first is line 2: ignored"
    assert second.startswith(f"{path}: 1 lines are no records")


def test_what_a_kill_cut_off_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(TRAIN)}\n{json.dumps(VAL)[:20]}")
    assert read_records(tmp_path) == [TRAIN]
    with path.open("w") as file:  # the tail begins within a line
        file.writelines(f"{json.dumps({**TRAIN, 'step': step})}\n" for step in range(2 * TAIL_BYTES // 60))
    assert last_records(tmp_path)["train"]["step"] == 2 * TAIL_BYTES // 60 - 1
    assert caplog.messages == []


def test_nan_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "val", "step": 1, "dice": NaN}\n{"kind": "train", "step": 2, "loss": -Infinity}\n')
    assert [(record.get("dice"), record.get("loss")) for record in read_records(tmp_path)] == [
        (None, None),
        (None, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "7",
        "{}",
        '{"event": 3}',
        '{"event": "submitted"}',
        '{"event": "submitted", "job": ""}',
        '{"event": "started", "job": 12}',
        '{"event": "started", "job": "1", "pid": "12"}',
        '{"event": "submitted", "job": "1", "log": ["x"]}',
        '{"event": "failed", "reason": {"a": 1}}',
    ],
)
def test_events_that_are_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "jobs.jsonl"
    good = {"event": "submitted", "job": "12_0", "log": "x", "steps": 3}
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    assert read_events(tmp_path) == [good]


@pytest.mark.parametrize("what", ["nothing", "a folder", "a pipe", "a number", "a list", "no text", "empty"])
def test_what_is_no_object_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """A pipe is not waited for."""
    path = tmp_path / "metrics.jsonl"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what != "nothing":
        path.write_bytes({"a number": b"3", "a list": b"[]", "no text": b"\xff\xfe", "empty": b""}[what])
    assert read_object(path) == {}
    assert len(caplog.messages) == (what != "nothing")
    caplog.clear()
    assert read_records(tmp_path) == []
    assert len(caplog.messages) == (what not in ("nothing", "empty", "a number", "a list", "no text"))


def test_the_signal_that_interrupted_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(since: float, *found: dict[str, object]) -> str:
        (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in found))
        assert interrupted_by.main([str(tmp_path), str(since)]) == 0
        return capsys.readouterr().out.strip()

    end = {**END, "status": "interrupted", "reason": "SIGUSR2"}
    assert asked(0, TRAIN, end) == "SIGUSR2"
    assert asked(0, TRAIN, {**END, "status": "hung", "reason": "no progress for 900 s"}) == "hung"
    assert asked(time.time() + 60, TRAIN, end) == ""  # an earlier start's
    assert asked(0, end, TRAIN) == asked(0, END) == asked(0) == ""
