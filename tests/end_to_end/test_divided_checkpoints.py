"""Checkpoints that are divided among two ranks (`checkpoint.sharded`): resumed, damaged, killed, refused by a disk."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
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
    assert_same_tensors,
    assert_same_training,
    checkpoint,
    rank_environments,
    ranks_of,
    records,
    wait_for_step,
)
from fusionseg.runs.accounts.faults import read_faults
from fusionseg.runs.checkpoints import read_checkpoint

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


@pytest.fixture(scope="module")
def killed(program: Program, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with divided checkpoints that was killed after step 13."""
    run = tmp_path_factory.mktemp("runs") / "killed"
    kill_at(14, run, program.ranks(2, *arguments(config_file, run, *RUN, DIVIDED)))
    return run


@pytest.fixture
def stopped(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return Path(shutil.copytree(killed, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="module")
def divided(program: Program, config_file: Path, killed: Path) -> Path:
    """A copy of the killed run that has gone on to its end."""
    run = Path(shutil.copytree(killed, killed.parent / "divided", symlinks=True))
    said = train_ranks(program, config_file, run, DIVIDED)
    assert f"resuming from {run}/checkpoints/step_00000012 (step 12 of 20)" in said[0].err
    return run


def folders(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir() and path.name != "last.pt")


def test_a_killed_run_ends_as_one_with_whole_checkpoints(killed: Path, divided: Path, whole: Path) -> None:
    newest = folders(killed)[-1]
    assert newest.name == "step_00000012"
    names = ["index.json", "rank_00000.safetensors", "rank_00001.safetensors"]
    assert sorted(path.name for path in newest.iterdir()) == names
    assert os.readlink(killed / "checkpoints/last.pt") == newest.name
    assert_same_run(divided, whole)
    assert [path.name for path in folders(divided)] == ["step_00000015", "step_00000018", "step_00000020"]
    assert not list(divided.rglob(".partial-*"))


def test_it_goes_on_with_fewer_ranks_with_ddp_from_files_and_on_one_rank(
    program: Program, config_file: Path, train: Train, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    # Some of four ranks have no row of a weight.
    kill_at(7, run, program.ranks(4, *arguments(config_file, run, *RUN, DIVIDED)))
    assert len(list(folders(run)[-1].glob("rank_*.safetensors"))) == 4
    ddp = "distributed.parallel=ddp"
    said = kill_at(13, run, program.ranks(2, *arguments(config_file, run, *RUN, DIVIDED, ddp)))
    assert f"resuming from {folders(run)[0].parent}/step_0000000" in said[0].err
    assert "the network is not divided among ranks (expected distributed.parallel: fsdp" in said[0].err
    assert (run / "checkpoints/last.pt").is_file()
    kill_at(19, run, program.ranks(2, *arguments(config_file, run, *RUN, DIVIDED)))
    assert (run / "checkpoints/last.pt").is_symlink()
    train(run, *RUN, DIVIDED).expect(0)
    assert_same_training(run, whole)
    assert checkpoint(run).keys() == checkpoint(whole).keys()


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


def ranks_until_killed(program: Program, argv: list[str]) -> list[Started]:
    """Start two ranks, of which the second is killed while it writes its part."""
    first, second = rank_environments(2)
    return [program.warm(TRAIN, *argv, env=first), program.function(train_until_killed, (argv,), second)]


@pytest.mark.fault("killed-while-writing-a-part")
def test_a_rank_is_killed_while_it_writes_its_part(
    program: Program, config_file: Path, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    ranks = ranks_until_killed(program, arguments(config_file, run, *RUN, DIVIDED))
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
    ranks = ranks_until_killed(program, arguments(config_file, run, *RUN, DIVIDED))
    while ranks[1].status is None:
        time.sleep(0.001)
    ranks[0].send(signal.SIGKILL)
    ranks[0].wait()
    (left,) = (run / "checkpoints").glob(".partial-*-step_00000009")
    assert left.is_dir()
    train_ranks(program, config_file, run)  # `auto` keeps files for a state of this size
    assert_same_run(run, whole)
    assert (run / "checkpoints/last.pt").is_file() and not list(run.rglob(".partial-*"))


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
    program: Program, balls: Path, divided: Path, whole: Path, tmp_path: Path
) -> None:
    """They are those of the file with the same weights."""

    def predict(weights: Path, name: str) -> dict[str, bytes]:
        output = tmp_path / name
        command = ("predict", weights, "--input", balls / "imagesTr", "--output", output, "--checkpoint", "last")
        program.warm(COMMANDS, *command).wait().expect(0)
        return {path.name: voxels(path) for path in output.glob("*.nii.gz")}

    masks = predict(whole, "whole")
    assert masks and masks == predict(divided, "divided") == predict(folders(divided)[-1], "folder")
    archives = [tmp_path / f"{run.name}.fseg" for run in (whole, divided)]
    for run, archive in zip((whole, divided), archives, strict=True):
        command = ("export", run, "--format", "fseg", "--output", archive, "--checkpoint", "last")
        program.warm(COMMANDS, *command).wait().expect(0)
    assert_same_tensors(*(read_checkpoint(archive)["model"] for archive in archives))


def test_evaluation_and_branch_of_a_divided_checkpoint(
    program: Program, config_file: Path, divided: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(divided, tmp_path / "run", symlinks=True))
    program.warm(COMMANDS, "evaluate", run).wait().expect(0)
    assert json.loads((run / "evaluation/summary.json").read_text())["step"] == 20
    branch, origin = tmp_path / "branch", folders(run)[-1]
    longer = arguments(config_file, branch, *RUN, DIVIDED, "train.steps=22")
    said = [rank.wait().expect(0) for rank in program.ranks(2, *longer, "--branch", str(origin))]
    assert "(step 20 of 22)" in said[0].err
    assert [path.name for path in folders(branch)] == ["step_00000020", "step_00000021", "step_00000022"]
    assert (folders(branch)[0] / "index.json").samefile(origin / "index.json")


def voxels(path: Path) -> bytes:
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
    long = ("train={steps: 120, global_batch: 2}", "validate.every=60", "checkpoint.every=5")
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
