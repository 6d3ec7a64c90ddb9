"""A disk that refuses to write in the middle of a run of two ranks: full, then read-only, then for too long."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from full_disk import fill

from end_to_end.conftest import Train, arguments
from end_to_end.runs import COMMANDS, Program, Started, assert_same_run, records, wait_for_step
from fusionseg.runs.accounts.faults import read_faults

SETTINGS = (
    "train={steps: 240, global_batch: 4, micro_batch: 1, ema: 0.9}",
    "validate.every=80",
    "checkpoint={every: 10, keep: 2}",
    "log={every: 1, samples: true, tensorboard: false}",
)


def wait_for_text(text: str, process: Started, count: int = 1) -> None:
    limit = time.monotonic() + 60
    while process.err.read_text(errors="replace").count(text) < count:
        assert process.status is None and time.monotonic() < limit, process.err.read_text(errors="replace")
        time.sleep(0.02)


def remount(path: Path, options: str) -> None:
    """Change a bind mount. The kernel refuses to make it read-only in the moments in which a file is written there."""
    for _ in range(200):
        if not subprocess.run(["mount", "-o", f"remount,bind,{options}", str(path)], capture_output=True).returncode:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} could not be remounted {options}")


def last_step(run: Path) -> int:
    return max(record["step"] for record in records(run, "train"))


def test_a_run_goes_on_while_its_disk_refuses_to_write(
    program: Program, config_file: Path, train: Train, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """Afterwards it is the undisturbed run, bit for bit, and its folder says what happened."""
    for rank in program.ranks(2, *arguments(config_file, tmp_path / "whole", *SETTINGS)):
        rank.wait().expect(0)
    disk = small_disk("8m")
    run = disk / "run"
    ranks = program.ranks(2, *arguments(config_file, run, *SETTINGS))
    wait_for_step(run, 25, ranks)
    fill(disk)
    wait_for_text(
        "could not be written (No space left on device): free space on the disk; the training goes on", ranks[0]
    )
    kept = sorted(path.name for path in (run / "checkpoints").glob("*"))
    (disk / "filler").unlink()
    wait_for_text("can be written again", ranks[0])
    assert not [name for name in kept if name.startswith(".partial")] and "last.pt" in kept

    wait_for_step(run, 60, ranks)
    checkpoints = run / "checkpoints"
    subprocess.run(["mount", "--bind", str(checkpoints), str(checkpoints)], check=True)
    try:
        remount(checkpoints, "ro")
        wait_for_text("(Read-only file system): mount the disk for writing again", ranks[0])
        step = last_step(run)
        wait_for_step(run, step + 20, ranks)  # the records go on
        shown = program.warm(COMMANDS, "status", run).wait().out
        assert "a checkpoint could not be written" in shown and "since" in shown
        remount(checkpoints, "rw")
        for rank in ranks:
            assert "Traceback" not in rank.wait().expect(0).err
    finally:
        subprocess.run(["umount", "--lazy", str(checkpoints)], check=True)

    assert_same_run(run, tmp_path / "whole")
    faults = read_faults(run)
    assert {fault.reason for fault in faults} == {"No space left on device", "Read-only file system"}
    assert all(fault.ended is not None for fault in faults)
    told = program.warm(COMMANDS, "doctor", run).wait().expect(1).out
    assert "disk, " in told and "s long: a checkpoint could not be written to" in told


def test_all_ranks_end_together_when_the_disk_stays_full(
    program: Program, config_file: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("8m")
    run = disk / "run"
    settings = (*SETTINGS, "train.steps=100000", "checkpoint.retry_s=2")
    ranks = program.ranks(2, *arguments(config_file, run, *settings))
    wait_for_step(run, 25, ranks)
    fill(disk)
    said = [rank.wait().expect(1).err for rank in ranks]
    assert "stopped: " in said[0] and "tried for 2 s (checkpoint.retry_s): free space on the disk, and start" in said[0]
    assert "rank 1: stopped: rank 0 could not write the run folder" in said[1]
    assert not any("Traceback" in text for text in said)
    (disk / "filler").unlink()
    before = last_step(run)
    ranks = program.ranks(2, *arguments(config_file, run, *settings, "checkpoint.retry_s=2"))
    wait_for_step(run, before + 20, ranks)
    end_all(ranks)
    steps = [record["step"] for record in records(run, "train")]
    assert steps == list(range(1, len(steps) + 1))


def end_all(ranks: Sequence[Started]) -> None:
    ranks[1].send(15)
    for rank in ranks:
        rank.wait().expect(1)
