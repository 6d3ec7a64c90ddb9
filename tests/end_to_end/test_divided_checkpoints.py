"""Checkpoints that are divided among two ranks (`checkpoint.sharded`): resumed, damaged, killed, refused by a disk."""

from __future__ import annotations

import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from faults.catalogue import assert_seen
from training.spiky_loss import write_spiky_loss

from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    COMMANDS,
    TRAIN,
    Ended,
    Program,
    Started,
    assert_same_run,
    assert_same_training,
    checkpoint,
    rank_environments,
    ranks_of,
    records,
    wait_for_step,
)
from fusionseg.runs.accounts.faults import read_faults

RUN = (
    "train={steps: 20, global_batch: 4, micro_batch: 1, clip_grad: 1.0, ema: 0.9}",
    "validate.every=10",
    "checkpoint={every: 3, keep: 3}",
    "log={every: 1, samples: true}",
    "model.channels=[5, 9]",  # two ranks have unequal parts of the weights
    "distributed.parallel=fsdp",
)
DIVIDED, WHOLE = "checkpoint.sharded=true", "checkpoint.sharded=false"


def train_ranks(program: Program, config_file: Path, run: Path, *settings: str) -> list[Ended]:
    return [rank.wait().expect(0) for rank in program.ranks(2, *arguments(config_file, run, *RUN, *settings))]


def kill_at(step: int, run: Path, ranks: Sequence[Started]) -> list[Ended]:
    wait_for_step(run, step, ranks)
    for rank in ranks:
        rank.send(signal.SIGKILL)
    return [rank.wait() for rank in ranks]


@pytest.fixture(scope="module")
def whole(program: Program, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks whose checkpoints are files that rank 0 has gathered."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_ranks(program, config_file, run, WHOLE)
    assert {path.suffix for path in (run / "checkpoints").iterdir()} == {".pt"}
    return run


@pytest.fixture
def stopped(program: Program, config_file: Path, tmp_path: Path) -> Path:
    """A run of two ranks with divided checkpoints that was killed after step 13."""
    run = tmp_path / "run"
    ranks = program.ranks(2, *arguments(config_file, run, *RUN, DIVIDED, "train.steps=20"))
    kill_at(14, run, ranks)
    return run


def folders(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir() and path.name != "last.pt")


def test_a_killed_run_ends_as_one_with_whole_checkpoints(
    program: Program, config_file: Path, stopped: Path, whole: Path
) -> None:
    newest = folders(stopped)[-1]
    assert newest.name == "step_00000012"
    assert sorted(path.name for path in newest.iterdir()) == [
        "index.json",
        "rank_00000.safetensors",
        "rank_00001.safetensors",
    ]
    assert os.readlink(stopped / "checkpoints/last.pt") == newest.name
    said = train_ranks(program, config_file, stopped, DIVIDED)
    assert f"resuming from {newest} (step 12 of 20)" in said[0].err
    assert_same_run(stopped, whole)
    assert [path.name for path in folders(stopped)] == ["step_00000015", "step_00000018", "step_00000020"]
    assert not list(stopped.rglob(".partial-*"))


def test_it_goes_on_with_ddp_and_on_one_rank(
    program: Program, config_file: Path, train: Train, stopped: Path, whole: Path
) -> None:
    ddp = "distributed.parallel=ddp"
    ranks = program.ranks(2, *arguments(config_file, stopped, *RUN, DIVIDED, ddp))
    said = kill_at(17, stopped, ranks)
    assert "the network is not divided among ranks (expected distributed.parallel: fsdp" in said[0].err
    assert (stopped / "checkpoints/last.pt").is_file()
    train(stopped, *RUN, DIVIDED).expect(0)
    assert_same_training(stopped, whole)
    assert checkpoint(stopped).keys() == checkpoint(whole).keys()


def test_a_file_becomes_a_folder_and_auto_keeps_files(program: Program, config_file: Path, whole: Path) -> None:
    ranks = program.ranks(2, *arguments(config_file, whole.parent / "changing", *RUN))
    kill_at(14, whole.parent / "changing", ranks)
    assert not folders(whole.parent / "changing")
    train_ranks(program, config_file, whole.parent / "changing", DIVIDED)
    assert_same_run(whole.parent / "changing", whole)
    assert (whole.parent / "changing/checkpoints/last.pt").is_symlink()


def train_until_killed(argv: list[str]) -> None:
    """Train; the process kills itself when it has written half of its part of the checkpoint of step 9."""
    from fusionseg.runs.divided import other_ranks

    write = other_ranks.write_part

    def write_half(path: Path, tensors: dict[str, torch.Tensor]) -> object:
        written = write(path, tensors)
        if "step_00000009" in path.parent.name:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    other_ranks.write_part = write_half  # type: ignore[assignment]
    sys.argv = [TRAIN, *argv]
    runpy.run_module(TRAIN, run_name="__main__", alter_sys=True)


@pytest.mark.fault("killed-while-writing-a-part")
def test_a_rank_is_killed_while_it_writes_its_part(
    program: Program, config_file: Path, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    argv = arguments(config_file, run, *RUN, DIVIDED)
    first, second = rank_environments(2)
    ranks = [program.warm(TRAIN, *argv, env=first), program.function(train_until_killed, (argv,), second)]
    began = time.monotonic()
    said = [rank.wait() for rank in ranks]
    assert said[1].status == -signal.SIGKILL and time.monotonic() - began < 60
    assert_seen("killed-while-writing-a-part", said[0], run)
    assert folders(run)[-1].name == "step_00000006"
    left = run / "checkpoints/.partial-000000000000-step_00000009"
    left.mkdir()
    (left / "rank_00001.safetensors").write_bytes(b"half")
    train_ranks(program, config_file, run, DIVIDED)
    assert_same_run(run, whole)
    assert not list(run.rglob(".partial-*"))


def test_all_ranks_are_killed_while_parts_are_written(
    program: Program, config_file: Path, tmp_path: Path, whole: Path
) -> None:
    """The temporary folder stays, and the next start removes it."""
    run = tmp_path / "run"
    argv = arguments(config_file, run, *RUN, DIVIDED)
    first, second = rank_environments(2)
    ranks = [program.warm(TRAIN, *argv, env=first), program.function(train_until_killed, (argv,), second)]
    while ranks[1].status is None:
        time.sleep(0.001)
    ranks[0].send(signal.SIGKILL)
    ranks[0].wait()
    (left,) = (run / "checkpoints").glob(".partial-*-step_00000009")
    assert left.is_dir()
    train_ranks(program, config_file, run, DIVIDED)
    assert_same_run(run, whole)
    assert not list(run.rglob(".partial-*"))


@pytest.mark.fault("part-damaged")
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(
    program: Program, config_file: Path, stopped: Path, whole: Path
) -> None:
    newest, before, _ = reversed(folders(stopped))
    part = newest / "rank_00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    (before / "rank_00000.safetensors").unlink()
    said = train_ranks(program, config_file, stopped, DIVIDED)
    assert_seen("part-damaged", said[0], stopped, newest=False)
    assert f"{newest}: damaged checkpoint (rank_00001.safetensors: its hash is wrong); it is skipped" in said[0].err
    assert f"{before}: damaged checkpoint (rank_00000.safetensors: is missing); it is skipped" in said[0].err
    assert_same_run(stopped, whole)


def test_predictions_and_exports_of_a_divided_checkpoint(
    program: Program, config_file: Path, balls: Path, stopped: Path, whole: Path, tmp_path: Path
) -> None:
    """They are those of the file with the same weights; a branch begins with the same files."""
    train_ranks(program, config_file, stopped, DIVIDED)
    for run, name in ((stopped, "divided"), (whole, "whole")):
        files = ("--input", balls / "imagesTr", "--output", tmp_path / name, "--checkpoint", "last")
        program.warm(COMMANDS, "predict", run, *files).wait().expect(0)
    masks = {path.name: path.read_bytes() for path in (tmp_path / "divided").glob("*.nii.gz")}
    assert masks
    program.warm(
        COMMANDS, "predict", folders(stopped)[-1], "--input", balls / "imagesTr", "--output", tmp_path / "folder"
    ).wait().expect(0)
    for name in masks:
        contents = [same_voxels(tmp_path / folder / name) for folder in ("divided", "whole", "folder")]
        assert contents[0] == contents[1] == contents[2]
    archive = tmp_path / "model.fseg"
    program.warm(
        COMMANDS, "export", stopped, "--format", "fseg", "--output", archive, "--checkpoint", "last"
    ).wait().expect(0)
    assert archive.stat().st_size > 1000
    program.warm(COMMANDS, "evaluate", stopped).wait().expect(0)
    branch = tmp_path / "branch"
    said = program.ranks(
        2, *arguments(config_file, branch, *RUN, DIVIDED, "train.steps=22"), "--branch", str(folders(stopped)[-1])
    )
    assert "(step 20 of 22)" in said[0].wait().expect(0).err
    said[1].wait().expect(0)
    assert os.stat(folders(branch)[0] / "index.json").st_ino == os.stat(folders(stopped)[-1] / "index.json").st_ino


def same_voxels(path: Path) -> bytes:
    import nibabel

    return bytes(nibabel.load(path).get_fdata().tobytes())


def wait_for_text(text: str, process: Started) -> None:
    limit = time.monotonic() + 60
    while text not in process.err.read_text(errors="replace"):
        assert process.status is None and time.monotonic() < limit, process.err.read_text(errors="replace")
        time.sleep(0.02)


@pytest.mark.fault("part-refused-by-the-disk")
def test_the_disk_of_one_rank_refuses_its_part(program: Program, config_file: Path, tmp_path: Path) -> None:
    """The training goes on, and afterwards it is the undisturbed one."""
    long = ("train={steps: 200, global_batch: 2}", "validate.every=100", "checkpoint.every=10")
    train_ranks(program, config_file, tmp_path / "whole", *long, WHOLE)
    run = tmp_path / "run"
    ranks = program.ranks(2, *arguments(config_file, run, *RUN, *long, DIVIDED))
    wait_for_step(run, 25, ranks)
    limits = resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    wait_for_text("(the part of rank 1 on ", ranks[0])
    wait_for_text("(File too large): raise the limit of a file's size (ulimit -f); the training goes on", ranks[0])
    step = max(record["step"] for record in records(run, "train"))
    wait_for_step(run, step + 15, ranks)
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, limits)
    wait_for_text("can be written again", ranks[0])
    said = [rank.wait().expect(0) for rank in ranks]
    assert_seen("part-refused-by-the-disk", said[0], run)
    assert "Traceback" not in said[1].err
    assert_same_run(run, tmp_path / "whole")
    (fault,) = read_faults(run)
    assert fault.reason == "File too large" and "the part of rank 1" in fault.what
    assert not list(run.rglob(".partial-*"))


def test_a_run_goes_back_before_a_spike(program: Program, config_file: Path, tmp_path: Path) -> None:
    """The checkpoint of a step is written again under another name, and the one before it is deleted."""
    spiky = write_spiky_loss(tmp_path / "spiky.py", (54, 58), first_sample=1)
    settings = (
        "train={steps: 64, spikes: {action: rewind}}",
        "validate.every=30",
        "checkpoint.every=4",
        f"loss.name={spiky}",
    )
    train_ranks(program, config_file, tmp_path / "whole", *settings, WHOLE)
    train_ranks(program, config_file, tmp_path / "run", *settings, DIVIDED)
    assert records(tmp_path / "run", "event")[0]["event"] == "rewind"
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [path.name for path in folders(tmp_path / "run")] == ["step_00000056", "step_00000060", "step_00000064"]


def test_the_ranks_save_without_torchrun(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Its store ends with it, and rank 0 writes one file."""
    run = tmp_path / "run"
    agent = program.torchrun(
        2, *arguments(config_file, run, *RUN, DIVIDED, "train.steps=100000", "checkpoint.every=10")
    )
    wait_for_step(run, 25, [agent])
    ranks = ranks_of(agent)
    agent.send(signal.SIGKILL)
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(gone) == 2 and not alive
    end = records(run)[-1]
    assert (end["kind"], end["status"]) == ("end", "interrupted")
    assert (run / f"checkpoints/step_{end['step']:08d}.pt").is_file() and checkpoint(run)["step"] == end["step"]
    assert "the ranks cannot reach their store any more: rank 0 writes one file" in agent.wait().err
