"""Runs without a working standard output, and runs whose terminal is closed."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import arguments
from end_to_end.runs import COMMANDS, REPOSITORY, TRAIN, Ended, Program, Started, checkpoint, records, wait_for_step

KEPT: list[object] = []
STEPS = ("train.steps=30", "validate.every=10")


def lose_output(how: str) -> None:
    """Close or break standard output and error of this process."""
    if how == "closed":
        KEPT.extend(
            (sys.stdin, sys.stdout, sys.stderr)
        )  # without a reference they would later close the descriptors of other files
        sys.stdin = sys.stdout = sys.stderr = None  # as at the start of Python with closed descriptors
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        return
    read, write = os.pipe()
    os.close(read)
    if how == "a full disk":
        write = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(write, descriptor)


def without_output(how: str, module: str, words: list[str]) -> None:
    lose_output(how)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        pytest.param("a broken pipe", "output-pipe-closed", marks=pytest.mark.fault("output-pipe-closed")),
        pytest.param("a full disk", "output-disk-full", marks=pytest.mark.fault("output-disk-full")),
        pytest.param("closed", "output-closed", marks=pytest.mark.fault("output-closed")),
    ],
)
def test_training_without_standard_output(
    program: Program, config_file: Path, tmp_path: Path, how: str, fault: str
) -> None:
    run = tmp_path / "run"
    words = [str(word) for word in arguments(config_file, run, *STEPS)]
    assert_seen(fault, program.function(without_output, (how, TRAIN, words)).wait(), run)
    assert records(run)[-1]["status"] == "completed"
    assert checkpoint(run)["step"] == 30
    # No printed text is in a file that got the descriptor of a closed stream.
    assert all(path.read_bytes()[:2] == b"PK" for path in (run / "checkpoints").iterdir())
    assert "step 30: validation" in (run / "log.txt").read_text()


def test_command_without_standard_output(program: Program, trained: Path, balls: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    words = ["predict", str(trained), "--input", str(balls / "imagesTr"), "--output", str(masks)]
    program.function(without_output, ("a broken pipe", COMMANDS, words)).wait().expect(0)
    assert len(list(masks.glob("*.nii.gz"))) == 5
    words[1] = str(tmp_path / "nothing")
    program.function(without_output, ("a broken pipe", COMMANDS, words)).wait().expect(2)


@pytest.mark.fault("terminal-closed-under-nohup")
def test_nohup_script_continues_after_the_terminal_is_closed(config_file: Path, tmp_path: Path) -> None:
    """SIGHUP goes to the whole process group: script, torchrun and ranks."""
    run = tmp_path / "run"
    words = [str(word) for word in arguments(config_file, run, "train.steps=400", "validate.every=400")]
    environ = {
        **os.environ, "PYTHON": sys.executable, "NPROC": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    output = tmp_path / "nohup"
    script = subprocess.Popen(
        ["nohup", "bash", str(REPOSITORY / "launch/one_node.sh"), *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,
    )
    wait_for_step(run, 20, [Started(script, output, output)])
    os.killpg(script.pid, signal.SIGHUP)
    ended = Ended(script.wait(timeout=120), output.read_text(), "")
    assert_seen("terminal-closed-under-nohup", ended, run)
    assert records(run)[-1]["status"] == "completed"
