"""The lock of a run folder at a start: patience for the process before, and messages about a folder that is lost."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionseg.runs.folder import PREDECESSOR_S, RunFolder, patience_of_start
from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.locks.owner import OWNER

HOLD = """
import sys, time
from pathlib import Path
from fusionseg.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("held", flush=True)
time.sleep(1.5)
"""


def test_a_restarted_run_waits_for_the_process_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"\(process {process.pid} on .* is training in this folder"):
            run.lock()
        start = time.monotonic()
        with caplog.at_level(logging.INFO, "fusionseg"):
            run.lock(30)
        assert time.monotonic() - start < 20
    assert caplog.text.count("is in this folder: waiting up to 30 s for its end") == 1
    run.unlock()


@pytest.mark.parametrize(
    ("environ", "waits"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "1", "SLURM_RESTART_COUNT": ""}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"SLURM_RESTART_COUNT": "1"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "2"}, True),
    ],
)
def test_patience(environ: dict[str, str], waits: bool) -> None:
    assert patience_of_start(environ) == (PREDECESSOR_S if waits else 0.0)


def test_message_about_a_folder_that_was_taken_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.lock()
    run.check_ours()
    (run.path / OWNER).write_text(json.dumps({"token": "x", "host": "node7", "pid": 12}))
    with pytest.raises(
        TrainingStopped, match=r"taken over by another process \(process 12 on node7\).* no checkpoint$"
    ):
        run.check_ours()
    run.last_saved = run.paths.checkpoints / "step_00000010.pt"
    with pytest.raises(TrainingStopped) as stopped:
        run.check_ours()
    assert str(stopped.value).endswith(f"the last checkpoint is {run.last_saved}")
    assert run.is_taken_over and not run.is_ours
    run.unlock()
    run.check_ours()  # without a lock there is nothing to lose


@pytest.mark.parametrize("name", [".lock", OWNER, "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    """A start would wait for a writer that never comes."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is no file: move it away"):
        RunFolder(tmp_path).lock()
