"""Errors as a user sees them: the message, the exit status, and the files that must not change."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from faults.catalogue import assert_seen

from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    COMMANDS,
    TRAIN,
    Ended,
    Program,
    assert_same_tensors,
    checkpoint,
    rank_environments,
    records,
    snapshot,
    tensors,
    wait_for_step,
)

# -- wrong requests: status 2, one message, no traceback, nothing trained ------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A request that is refused, and parts of its message."""

    name: str
    overrides: tuple[str, ...]
    said: tuple[str, ...]


WRONG = [
    Wrong(
        "several problems at once",
        ("train.stpes=3", "optim.lr=-1", "model.name=unett", "data.fold=two"),
        (
            "train.stpes (command line: train.stpes=3)",
            "optim.lr (command line: optim.lr=-1): expected a value above 0, got -1",
            "there is no network 'unett'; did you mean unet?",
            "data.fold (command line: data.fold=two): 'two' is the name of a group, and there are no groups",
        ),
    ),
    Wrong(
        "no equals sign",
        ("train.steps",),
        ("'train.steps' on the command line: expected key.path=value",),
    ),
    Wrong("no data set", ("data.root=null",), ("data.root is not set: add data.root=/path/to/dataset",)),
    Wrong("no such data set", ("data.root=/nowhere/at/all",), ("data.root=/nowhere/at/all: does not exist",)),
    Wrong("no such fold", ("data.fold=7",), ("data.fold=7", "with data.folds=5 it goes from 0 to 4")),
    Wrong(
        "more folds than cases",
        ("data.folds=9",),
        ("data.folds=9", "has only 5 cases to split", "set data.folds to 5 or less"),
    ),
    Wrong("micro-batch", ("train.global_batch=3", "train.micro_batch=2"), ("choose micro_batch from [1, 3]",)),
    Wrong(
        "patch",
        ("data.patch=[15, 16, 16]",),
        ("data.patch", "needs multiples of 2", "not [15, 16, 16]: try [16, 16, 16]"),
    ),
    Wrong(
        "swin patch",
        ("model.name=swin_unetr",),
        ("data.patch", "needs multiples of 32, at least 64 in one axis"),
    ),
    Wrong("no GPU", ("device=cuda",), ("device: cuda", "set device: cpu")),
    Wrong(
        "cache without GPU",
        ("cache.device=accelerator",),
        ("cache.device: is accelerator", "set it to auto or host"),
    ),
    Wrong(
        "cache too small",
        ("cache.device=host", "cache.memory_fraction=1.0e-9"),
        ("cache: does not fit", "set cache.device: disk", "raise cache.memory_fraction"),
    ),
    Wrong(
        "init_from missing",
        ("init_from=/nowhere/at/all",),
        ("/nowhere/at/all: holds no checkpoints/best.pt",),
    ),
    Wrong("precision", ("train.precision=fp8",), ("train.precision", "unknown value 'fp8'; did you mean fp")),
    Wrong(
        "activation checkpoints",
        ("train.checkpoint_activations=true",),
        ("train.checkpoint_activations", "(resenc_unet, swin_unetr have it)"),
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_wrong_request(train: Train, tmp_path: Path, wrong: Wrong) -> None:
    ended = train(tmp_path / "run", *wrong.overrides)

    refused(ended, *wrong.said)
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_unknown_key_is_reported_with_file_and_line(program: Program, tmp_path: Path, balls: Path) -> None:
    base, config = tmp_path / "base.yaml", tmp_path / "run.yaml"
    base.write_text(f"model: {{name: unet}}\n\ndata:\n  root: {balls}\n  spacng: [1, 1, 1]\n")
    config.write_text("extends: base.yaml\ntrain:\n  steps: many\n")

    ended = program.warm(TRAIN, "--config", config, f"output={tmp_path / 'runs'}").wait()

    refused(ended, f"data.spacng ({base}, line 5): unknown key; did you mean spacing?")
    assert f"train.steps ({config}, line 3): expected an integer, got 'many'" in ended.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("unknown-key")
def test_unknown_key(train: Train, tmp_path: Path) -> None:
    ended = train(tmp_path / "run", "train.stpes=3")
    assert_seen("unknown-key", ended, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_configuration_file(program: Program, config_file: Path) -> None:
    ended = program.warm(TRAIN, "--config", config_file.parent / "tniy.yaml").wait()
    refused(ended, "tniy.yaml: there is no such configuration file", "holds tiny.yaml")


def test_init_from_another_network(train: Train, tmp_path: Path, trained: Path) -> None:
    ended = train(tmp_path / "run", f"init_from={trained}", "model.channels=[6, 12]")
    refused(
        ended,
        "% of the network's parameters",
        "at least 50 %",
        "(model (6, 1, 3, 3, 3), file (4, 1, ",
    )
    assert not (tmp_path / "run/checkpoints").exists()


# -- the launch ----------------------------------------------------------------------------------------------


@pytest.mark.fault("batch-does-not-divide")
def test_global_batch_that_is_no_multiple(program: Program, config_file: Path, tmp_path: Path) -> None:
    """torchrun has its own exit status and traceback; the message of each rank comes before them."""
    command = arguments(config_file, tmp_path / "run", "train.global_batch=3")
    ended = program.torchrun(2, *command).wait()

    assert_seen("batch-does-not-divide", ended, tmp_path / "run", torchrun=True)
    assert "UserError" not in ended.err
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.fault("request-wrong-on-all-ranks")
def test_wrong_request_ends_every_rank(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Only rank 0 opens the run folder; rank 1 must not wait for it forever."""
    ranks = program.ranks(2, *arguments(config_file, tmp_path / "run", "data.root=/nowhere/at/all"))
    first, second = (rank.wait(60) for rank in ranks)
    refused(first, "error: data.root=/nowhere/at/all")
    assert_seen("request-wrong-on-all-ranks", second, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # refused before anything is written


@pytest.mark.fault("launch-incomplete")
def test_incomplete_launch_environment(program: Program, config_file: Path, tmp_path: Path) -> None:
    command = arguments(config_file, tmp_path / "run")
    ended = program.warm(TRAIN, *command, env={"RANK": "0"}).wait()
    refused(ended, "or unset them")
    assert_seen("launch-incomplete", ended, tmp_path / "run")

    environ = {**rank_environments(1)[0], "WORLD_SIZE": "two"}
    refused(
        program.warm(TRAIN, *command, env=environ).wait(),
        "expected integers",
        "WORLD_SIZE=two",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("started-twice")
def test_two_starts_in_one_folder(program: Program, config_file: Path, train: Train, tmp_path: Path) -> None:
    """Two processes that write the same checkpoints would destroy both runs."""
    run = tmp_path / "run"
    long = ("train.steps=2000", "data.patch=[32, 32, 32]", "validate.every=2000", "checkpoint.every=2000")
    first = program.warm(TRAIN, *arguments(config_file, run, *long))
    wait_for_step(run, 1, [first])

    holder = f"another process (process {first.pid} on {socket.gethostname()}, "
    second = train(run, *long)
    assert_seen("started-twice", second)
    refused(second, f"{run}: {holder}")

    assert first.status is None
    first.send(signal.SIGKILL)
    first.wait()
    assert not records(run, "end")
    numbers = [record["step"] for record in records(run, "train")]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.fault("ctrl-c-twice")
def test_interrupting_twice_ends_at_once(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Ctrl-C twice: the user does not want to wait for the end of the step."""
    run = tmp_path / "run"
    # Many micro-batches: the second signal comes before the step ends.
    slow = ("data.patch=[96, 96, 96]", "model.channels=[16, 32]", "train.steps=50", "checkpoint.every=50")
    batch = ("train.global_batch=32", "train.micro_batch=1")
    process = program.warm(TRAIN, *arguments(config_file, run, *slow, *batch))
    wait_for_step(run, 1, [process])
    process.send(signal.SIGINT)
    time.sleep(0.1)
    process.send(signal.SIGINT)
    ended = process.wait()

    assert_seen("ctrl-c-twice", ended, run)
    assert ended.err.rstrip().endswith("interrupted")
    end = records(run)[-1]
    assert (end["kind"], end["status"]) == ("end", "failed")
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").glob(".partial*"))


@pytest.mark.fault("disk-full-at-a-checkpoint")
def test_full_disk_ends_the_run_and_keeps_its_checkpoints(
    program: Program, config_file: Path, train: Train, tmp_path: Path
) -> None:
    """A limit of the file size takes the place of a full disk; the resumed run has no limit."""
    run, options = tmp_path / "run", ("model.channels=[24, 48]", "train.steps=200", "checkpoint={every: 5, retry_s: 0}")
    process = program.warm(TRAIN, *arguments(config_file, run, *options))
    wait_for_step(run, 11, [process])
    size = (run / "checkpoints/step_00000005.pt").stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    ended = process.wait()

    assert_seen("disk-full-at-a-checkpoint", ended, run)
    message = re.search(
        r"stopped: .*/run/checkpoints: a checkpoint could not be written .* from (step_\d+\.pt)", ended.err
    )
    assert message is not None and (run / "checkpoints" / message[1]).exists()
    assert records(run)[-1]["status"] == "failed" and "could not be written" in records(run)[-1]["reason"]

    again = train(run, *options).expect(0)
    assert f"resuming from {run}/checkpoints/{message[1]}" in again.err
    assert records(run)[-1]["status"] == "completed"


# -- broken data ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`balls` with a truncated image, as after a full disk, and a label with a value that is no class."""
    root = tmp_path_factory.mktemp("broken") / "Task91_broken"
    shutil.copytree(balls, root)
    image = root / "imagesTr/case_001.nii.gz"
    image.write_bytes(image.read_bytes()[:-2000])
    path = root / "labelsTr/case_003.nii.gz"
    label = nibabel.load(path)
    values = np.asarray(label.dataobj).copy()
    values[0, 0, 0] = 9
    nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    return root


@pytest.mark.fault("image-or-label-broken")
def test_training_on_broken_data_is_refused(train: Train, tmp_path: Path, broken: Path) -> None:
    ended = train(tmp_path / "run", f"data.root={broken}", f"data.prepared={tmp_path / 'prepared'}")

    assert_seen("image-or-label-broken", ended)
    refused(
        ended,
        f"case_001: {broken}/imagesTr/case_001.nii.gz: cannot be read: ",
        f"case_003: {broken}/labelsTr/case_003.nii.gz: the label holds [9], and the data set's labels are 0 to 2",
    )
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.fault("broken-cases-skipped")
def test_broken_cases_are_skipped_on_request(train: Train, tmp_path: Path, broken: Path) -> None:
    options = (f"data.root={broken}", f"data.prepared={tmp_path / 'prepared'}", "data.skip_broken=true")
    ended = train(tmp_path / "run", *options, "data.folds=2", "log.samples=true")

    assert_seen("broken-cases-skipped", ended, tmp_path / "run")
    assert "cache: 3 cases" in ended.err
    used = {sample["case"] for record in records(tmp_path / "run", "train") for sample in record["samples"]}
    assert used
    assert not used & {"case_001", "case_003"}


def test_prepare_sets_broken_cases_aside(
    program: Program, config_file: Path, tmp_path: Path, broken: Path, balls: Path
) -> None:
    """The other cases are prepared. After a repair, only the repaired cases are prepared."""
    prepared, root = tmp_path / "prepared", tmp_path / "data"
    shutil.copytree(broken, root)
    command = ("prepare", "--config", config_file, f"data.root={root}", f"data.prepared={prepared}")

    ended = program.warm(COMMANDS, *command).wait().expect(1)
    assert "3 prepared, 0 already there, 2 set aside" in ended.out
    assert f"case_001: {root}/imagesTr/case_001.nii.gz" in ended.out
    assert sorted(path.name for path in (prepared / "cases").iterdir()) == [
        "case_000",
        "case_002",
        "case_004",
    ]

    for file in ("imagesTr/case_001.nii.gz", "labelsTr/case_003.nii.gz"):
        shutil.copy(balls / file, root / file)
    ended = program.warm(COMMANDS, *command).wait().expect(0)
    assert "2 prepared, 3 already there, 0 set aside" in ended.out


def test_check_lists_every_problem(program: Program, tmp_path: Path, broken: Path) -> None:
    report = tmp_path / "report.json"
    ended = program.warm(COMMANDS, "check", broken, "--workers", 1, "--json", report).wait().expect(1)

    assert "Errors (2)" in ended.out
    assert f"{broken}/imagesTr/case_001.nii.gz" in ended.out
    assert "the label holds [9], and the data set's labels are 0 to 2 (1 voxel)" in ended.out
    assert "5 cases, 2 errors" in ended.out
    written = json.loads(report.read_text())
    assert {(problem["case"], problem["code"]) for problem in written["errors"]} == {
        ("case_001", "truncated"),
        ("case_003", "label-value"),
    }
    assert all(problem["remedy"] for problem in written["errors"] + written["warnings"])


@pytest.mark.fault("killed-in-preparation")
def test_run_continues_after_a_killed_preparation(
    program: Program, config_file: Path, train: Train, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    """Killed worker processes leave neither a lock nor a partial case."""
    root = make_dataset(tmp_path / "data", cases=8, shape=(80, 80, 80))
    run = tmp_path / "run"
    options = (
        f"data.root={root}",
        f"data.prepared={tmp_path / 'prepared'}",
        "train.steps=2",
        "validate.every=2",
    )
    process = program.warm(TRAIN, *arguments(config_file, run, *options, "data.workers=2"))
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("prepared/cases/[!.]*/case.json")) and time.monotonic() < limit:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send(signal.SIGKILL)
    process.wait()
    for worker in workers:  # they may outlive their parent
        with suppress(psutil.NoSuchProcess):
            worker.kill()

    ended = train(run, *options)

    assert_seen("killed-in-preparation", ended)
    assert 1 <= int(re.search(r"preparing (\d) of 8 cases", ended.err)[1]) < 8
    assert records(run)[-1]["status"] == "completed"


# -- non-finite numbers --------------------------------------------------------------------------------------

# A sample whose intensities are shifted by up to 3e38 has a loss that is not finite. The other steps are normal.
OVERFLOWS = ("augment={shift_intensity: {prob: 0.15, offset: 3.0e+38}}", "checkpoint={every: 1, keep: 100}")


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("adamw", "fp32"),
        ("adam", "fp32"),
        ("sgd", "fp32"),
        ("novograd", "fp32"),
        ("adamw", "fp16"),
        ("novograd", "fp16"),
    ],
)
@pytest.mark.fault("loss-not-finite")
def test_step_with_a_non_finite_loss_is_skipped(train: Train, tmp_path: Path, optimizer: str, precision: str) -> None:
    run = tmp_path / "run"
    options = (f"optim={{name: {optimizer}, lr: 0.01}}", f"train.precision={precision}", "train.steps=20")

    assert_seen("loss-not-finite", train(run, *OVERFLOWS, *options), run)

    found = records(run, "train")
    skipped = [record["step"] for record in found if record["loss"] is None]
    assert 0 < len(skipped) < 10
    assert skipped[0] > 1
    assert [record["skipped"] for record in found] == [sum(s <= record["step"] for s in skipped) for record in found]
    assert all(record["grad_norm"] is None for record in found if record["step"] in skipped)
    for step in range(2, 21):
        before, after = checkpoint(run, f"step_{step - 1:08d}.pt"), checkpoint(run, f"step_{step:08d}.pt")
        if step in skipped:
            assert_same_tensors(after["model"], before["model"])
            assert_same_tensors(after["train_step"]["optimizer"]["state"], before["train_step"]["optimizer"]["state"])
        else:
            one, other = tensors(after["model"]), tensors(before["model"])
            assert any(not (one[name] == other[name]).all() for name in one)
    assert all(tensor.isfinite().all() for tensor in tensors(checkpoint(run)["model"]).values())
    assert records(run)[-1]["status"] == "completed"


@pytest.mark.fault("loss-not-finite-on-one-rank")
def test_all_ranks_skip_a_step_that_is_not_finite_on_one(
    program: Program, config_file: Path, train: Train, tmp_path: Path
) -> None:
    """The sample of one rank overflows and both ranks skip the step, like a single process with both samples."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    options = (*OVERFLOWS, "train.steps=20", "log.samples=true", "train.precision=fp16")
    train(alone, *options).expect(0)
    ended = [rank.wait().expect(0) for rank in program.ranks(2, *arguments(config_file, pair, *options))]
    assert_seen("loss-not-finite-on-one-rank", ended[0], pair)

    ours, theirs = records(pair, "train"), records(alone, "train")
    assert [record["skipped"] for record in ours] == [record["skipped"] for record in theirs]
    assert [record["loss"] is None for record in ours] == [record["loss"] is None for record in theirs]
    assert ours[-1]["skipped"] > 0
    losses = [[record["loss"] for record in found if record["loss"] is not None] for found in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.fault("diverged")
def test_diverged_training_ends(program: Program, config_file: Path, tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    options = ("optim.lr=1.0e+30", "train={steps: 50, clip_grad: null, max_skipped: 3}", "log.samples=true")
    environments = rank_environments(2) if processes == 2 else [{}]
    started = [program.warm(TRAIN, *arguments(config_file, run, *options), env=env) for env in environments]
    ended = [process.wait().expect(1) for process in started]

    assert "Traceback" not in "".join(one.err for one in ended)
    assert_seen("diverged", ended[0], run)
    found = records(run)
    last = [record for record in found if record["kind"] == "train"][-1]
    assert last["step"] < 50
    message = "3 steps in a row had a non-finite loss (train.max_skipped); the cases in them: "
    named = ended[0].err.split(message)[1].split(":")[0].split(", ")
    used = {s["case"] for r in found if r["kind"] == "train" and r["loss"] is None for s in r.get("samples", [])}
    assert named
    assert set(named) <= {f"case_{number:03d}" for number in range(5)}
    assert used <= set(named)
    assert "lower optim.lr" in ended[0].err
    assert (found[-1]["kind"], found[-1]["status"]) == ("end", "failed")
    assert message in found[-1]["reason"]


def test_failed_run_with_another_learning_rate_is_refused(train: Train, tmp_path: Path) -> None:
    """Another learning rate is another training; the folder stays unchanged."""
    run = tmp_path / "run"
    options = ("optim.lr=1.0e+30", "train={steps: 50, clip_grad: null, max_skipped: 3}")
    train(run, *options, "checkpoint.every=1").expect(1)
    before = snapshot(run)

    refused(train(run, *options, "optim.lr=0.01", "checkpoint.every=1"), "optim.lr: 1e+30 -> 0.01")

    assert snapshot(run) == before


# -- prediction and evaluation -------------------------------------------------------------------------------


def test_predict_without_a_run(program: Program, tmp_path: Path, balls: Path) -> None:
    ended = program.warm(
        COMMANDS,
        "predict",
        tmp_path / "no_run",
        "--input",
        balls / "imagesTr",
        "--output",
        tmp_path / "masks",
    ).wait()
    refused(
        ended,
        f"{tmp_path / 'no_run'}: holds no checkpoints/best.pt",
        "give the folder of a run that has trained",
    )
    assert not (tmp_path / "masks").exists()


def test_predict_without_images(program: Program, tmp_path: Path, trained: Path) -> None:
    command = ("predict", trained, "--output", tmp_path / "masks")
    (tmp_path / "empty").mkdir()
    refused(program.warm(COMMANDS, *command, "--input", tmp_path / "empty").wait(), "empty", "image")
    refused(program.warm(COMMANDS, *command, "--input", tmp_path / "nothing").wait(), "no such file or folder")
    assert not (tmp_path / "masks").exists()


def test_predict_never_replaces_its_inputs(program: Program, tmp_path: Path, trained: Path, balls: Path) -> None:
    shutil.copytree(balls / "imagesTr", tmp_path / "scans")
    before = snapshot(tmp_path / "scans")

    command = ("predict", trained, "--input", tmp_path / "scans", "--output", tmp_path / "scans")
    refused(program.warm(COMMANDS, *command).wait(), "the masks would replace the input images")

    assert snapshot(tmp_path / "scans") == before


@pytest.mark.fault("broken-image-in-a-prediction")
def test_predict_continues_after_a_broken_input(program: Program, tmp_path: Path, trained: Path, broken: Path) -> None:
    masks = tmp_path / "masks"
    command = ("predict", trained, "--input", broken / "imagesTr", "--output", masks)
    ended = program.warm(COMMANDS, *command).wait()

    assert_seen("broken-image-in-a-prediction", ended)
    assert f"error: {broken}/imagesTr/case_001.nii.gz: cannot be read" in ended.err
    written = sorted(path.name for path in masks.iterdir())
    assert written == [*(f"case_{number:03d}.nii.gz" for number in (0, 2, 3, 4)), "prediction.json"]
    assert "4 masks" in ended.err


def test_predict_with_a_wrong_number_of_channels(
    program: Program, tmp_path: Path, trained: Path, make_dataset: Callable[..., Path]
) -> None:
    root = make_dataset(tmp_path / "two", cases=1, channels=2)
    command = ("predict", trained, "--input", root / "imagesTr", "--output", tmp_path / "masks")
    ended = program.warm(COMMANDS, *command).wait().expect(1)
    assert "has 2 channels (expected 1, the network reads MR0)" in ended.err


def test_all_wrong_options_of_predict_are_listed(program: Program, tmp_path: Path, trained: Path) -> None:
    command = ("predict", trained, "--input", tmp_path, "--output", tmp_path / "masks")
    ended = program.warm(COMMANDS, *command, "--overlap", 1, "--memory", 0).wait()
    refused(
        ended, "--overlap: expected a number from 0 to below 1, such as 0.5, got 1.0", "--memory: expected a number"
    )


def test_evaluate_with_other_labels(
    program: Program, tmp_path: Path, trained: Path, make_dataset: Callable[..., Path]
) -> None:
    root = make_dataset(tmp_path / "other", cases=1, classes=4)
    ended = program.warm(COMMANDS, "evaluate", trained, "--dataset", root).wait()
    refused(ended, f"{root}: has the labels ['background', 'ball1', 'ball2', 'ball3']", "the run was trained on")
    refused(program.warm(COMMANDS, "evaluate", tmp_path).wait(), f"{tmp_path}: is no run folder")


def test_ensemble_of_runs_with_different_labels(
    program: Program, tmp_path: Path, train: Train, trained: Path, make_dataset: Callable[..., Path]
) -> None:
    root = make_dataset(tmp_path / "other", cases=3, classes=2)
    train(tmp_path / "run", f"data.root={root}", f"data.prepared={tmp_path / 'prepared'}", "data.folds=3").expect(0)
    command = (
        "predict",
        trained,
        tmp_path / "run",
        "--input",
        root / "imagesTr",
        "--output",
        tmp_path / "masks",
    )
    refused(program.warm(COMMANDS, *command).wait(), "an ensemble needs the same channels and labels")


def test_foreign_and_damaged_checkpoints_are_refused(program: Program, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:-10])
    command = ("--input", tmp_path, "--output", tmp_path / "masks")
    refused(
        program.warm(COMMANDS, "predict", tmp_path / "other.pt", *command).wait(),
        "is no checkpoint of a fusionseg",
    )
    refused(
        program.warm(COMMANDS, "predict", tmp_path / "torn.pt", *command).wait(),
        "torn.pt: damaged checkpoint",
    )


def refused(ended: Ended, *said: str) -> None:
    """Assert exit status 2, and a message with these parts, without a traceback."""
    ended.expect(2)
    assert "Traceback" not in ended.err
    assert "error: " in ended.err
    for part in said:
        assert part in ended.err
