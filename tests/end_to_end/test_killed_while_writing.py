"""A process that is killed in the middle of a file that it writes: the next start has the file before it, or none."""

from __future__ import annotations

import io
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import Train, arguments
from end_to_end.runs import TRAIN, Program, assert_same_run

OPTIONS = ("train.steps=12", "validate.every=4", "checkpoint.every=4")


def train_until_killed(what: str, argv: list[str]) -> None:
    """Train; the process kills itself when it has written half of a checkpoint, of best.pt or of a record."""
    import torch

    from fusionseg.runs import checkpoint_writer
    from fusionseg.runs.records import RecordWriter

    write, append = checkpoint_writer.write_torch, RecordWriter._append

    def write_half(state: Any, path: Path) -> None:
        if not path.name.endswith(what):
            write(state, path)
            return
        content = io.BytesIO()
        torch.save(state, content)
        path.write_bytes(content.getvalue()[: content.tell() // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def append_half(self: RecordWriter, line: bytes) -> None:
        if f'"train", "step": {what},'.encode() in line:
            self._file.write(line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, line)

    checkpoint_writer.write_torch = write_half
    RecordWriter._append = append_half  # type: ignore[method-assign]
    sys.argv = [TRAIN, *argv]
    runpy.run_module(TRAIN, run_name="__main__", alter_sys=True)


@pytest.mark.fault(
    "killed-while-writing-a-checkpoint", "killed-while-writing-the-best", "killed-while-writing-a-record"
)
def test_killed_in_the_middle_of_each_file(program: Program, config_file: Path, train: Train, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(whole, *OPTIONS).expect(0)
    for fault, what in (
        ("killed-while-writing-the-best", "best.pt"),
        ("killed-while-writing-a-record", "7"),
        ("killed-while-writing-a-checkpoint", "step_00000008.pt"),
    ):
        ended = program.function(train_until_killed, (what, arguments(config_file, run, *OPTIONS))).wait()
        assert_seen(fault, ended, run)
        is_torn = not (run / "metrics.jsonl").read_bytes().endswith(b"\n")
        assert is_torn == (what == "7") and bool(list((run / "checkpoints").glob(f".partial-*{what}"))) != is_torn

    train(run, *OPTIONS).expect(0)

    assert_same_run(run, whole)
    assert not list(run.rglob(".partial-*"))
