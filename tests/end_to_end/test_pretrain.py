"""Masked pre-training through its entry point, and segmentation with its encoder."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.catalogue import assert_seen
from matplotlib.image import imread

from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    COMMANDS,
    PRETRAIN,
    TRAIN,
    Ended,
    Program,
    assert_same_run,
    checkpoint,
    records,
    snapshot,
    wait_for_step,
)
from fusionseg.config import dump_config, validate

Pretrain = Callable[..., Ended]

SWIN = {"name": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 2}
UNETR = (
    "model={name: unetr, feature_size: 8, hidden_size: 24, mlp_dim: 48, num_heads: 3}",
    "pretrain.block=16",
)
STEPS = 8


@pytest.fixture(scope="module")
def scans(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training cases, one of them without a label, and a test image."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "Task91_scans", cases=7, classes=2)
    description = json.loads((folder / "dataset.json").read_text())
    del description["training"][5]["label"]
    description["test"] = [description["training"].pop(6)["image"]]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def pretrain_file(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pre-training on `scans`: a second or two."""
    path = tmp_path_factory.mktemp("configs") / "pretrain.yaml"
    raw = {
        "device": "cpu",
        "data": {
            "root": str(scans),
            "prepared": str(tmp_path_factory.mktemp("prepared") / "scans"),
            "patch": [64, 32, 32],
            "workers": 1,
        },
        "model": SWIN,
        "pretrain": {"ratio": 0.5, "block": 8, "decoder": {"width": 8, "depth": 1}, "loss": {"ssim": 1.0, "l1": 1.0}},
        "optim": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "global_batch": 2, "precision": "fp32", "threads": 1},
        "validate": {"every": 4},
        "checkpoint": {"every": 2},
        "log": {"every": 1, "samples": True, "tensorboard": False},
    }
    path.write_text(dump_config(validate(raw)))
    return path


@pytest.fixture(scope="module")
def pretrain(program: Program, pretrain_file: Path) -> Pretrain:
    """`pretrain(folder, "key=value", ...)`: pre-train in `folder` to the end."""

    def start(run: Path, *overrides: str) -> Ended:
        return program.warm(PRETRAIN, *arguments(pretrain_file, run, *overrides)).wait()

    return start


@pytest.fixture(scope="module")
def pretrained(program: Program, pretrain_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training by `python -m fusionseg.pretrain`."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    program.fresh("-m", PRETRAIN, *arguments(pretrain_file, run)).wait().expect(0)
    return run


def test_pretraining_learns_from_all_images(pretrained: Path) -> None:
    validated = records(pretrained, "val")
    assert [record["step"] for record in validated] == [4, 8]
    for record in validated:
        for key in ("ssim", "psnr", "ssim_hidden", "psnr_hidden"):
            assert {key, f"{key}_mean_fill", f"{key}_linear_fill"} <= record.keys()
        assert record["cases"] == 1
        assert record["ssim_hidden"] < record["ssim"] < 1  # visible voxels are those of the image
    assert validated[0]["ssim_mean_fill"] == validated[1]["ssim_mean_fill"]  # the same blocks are hidden
    losses = [record["loss"] for record in records(pretrained, "train")]
    assert losses[-1] < 0.8 * losses[0]
    assert records(pretrained, "end")[-1]["best_ssim"] == max(record["ssim"] for record in validated)
    # Five labelled cases without the validation case, one case without a label, and one test image.
    used = {sample["case"] for record in records(pretrained, "train") for sample in record["samples"]}
    assert len(used) == 6
    assert {"case_005", "case_006"} <= used


def test_validation_picture(pretrained: Path) -> None:
    pictures = sorted((pretrained / "pictures").iterdir())
    assert [path.name for path in pictures] == ["validation_00000004.png", "validation_00000008.png"]
    # Axial slices of the whole volume, which is smaller than the patch; the second axis points up.
    strip = imread(pictures[0])[..., 0]
    assert strip.shape[0] < 32 and strip.shape[1] < 3 * 64
    original, masked, reconstruction = np.split(strip, 3, axis=1)
    hidden = masked == 0
    assert (original[~hidden] == masked[~hidden]).all()
    assert (original[hidden] > 0.1).any() and (masked > 0.1).any()
    assert reconstruction.std() > 0


@pytest.mark.fault("killed-pre-training")
def test_killed_pretraining_continues_exactly(
    program: Program, pretrain_file: Path, pretrain: Pretrain, pretrained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = program.warm(PRETRAIN, *arguments(pretrain_file, run))
    wait_for_step(run, 5, [process])
    process.send(signal.SIGKILL)
    assert_seen("killed-pre-training", process.wait(), run)
    pretrain(run).expect(0)
    assert_same_run(run, pretrained)


def test_patch_scores_of_an_older_version_are_ignored(pretrain: Pretrain, pretrained: Path, tmp_path: Path) -> None:
    """An older version scored padded patches; its scores are too high to compare with whole volumes."""
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    state = checkpoint(run, "step_00000006.pt")
    del state["grid"]
    state |= {"best": {"ssim": 0.999, "step": 4}, "history": [(4, 0.999)]}
    for file in ("step_00000008.pt", "last.pt"):
        (run / "checkpoints" / file).unlink()
    torch.save(state, run / "checkpoints/step_00000006.pt")
    ended = pretrain(run).expect(0)
    assert "scored patch by patch by an older version" in ended.err
    assert [record["step"] for record in records(run, "val")] == [8]
    assert records(run, "end")[-1]["best_ssim"] == records(run, "val")[-1]["ssim"]


def test_two_processes_hide_the_same_blocks(
    program: Program, pretrain_file: Path, pretrained: Path, tmp_path: Path
) -> None:
    for rank in program.ranks(2, *arguments(pretrain_file, tmp_path / "pair"), module=PRETRAIN):
        rank.wait().expect(0)
    for kind in ("train", "val"):
        for ours, alone in zip(records(tmp_path / "pair", kind), records(pretrained, kind), strict=True):
            assert ours.get("samples") == alone.get("samples")
            for key in {"loss", "ssim", "psnr_hidden", "ssim_linear_fill"} & alone.keys():
                assert ours[key] == pytest.approx(alone[key], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ("pretrain.method=token",),
        ("pretrain.method=mae", "pretrain.block=32", "data.patch=[64, 64, 32]", "pretrain.ratio=0.75"),
        ("pretrain.loss={ssim: 0.5, l1: 0.2, l2: 0.3, over: masked}", "train.precision=bf16", "train.micro_batch=2"),
        (*UNETR,),
        (*UNETR, "pretrain.method=token"),
        (*UNETR, "pretrain.method=mae", "pretrain.ratio=0.75"),
    ],
    ids=lambda options: " ".join(options)[:60],
)
def test_encoder_of_every_method_can_be_fine_tuned(
    pretrain: Pretrain, train: Train, scans: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    pretrain(tmp_path / "pre", *options, "train.steps=2", "validate.every=2").expect(0)
    assert 0 < records(tmp_path / "pre", "val")[-1]["ssim"] < 1

    model = next((option for option in options if option.startswith("model=")), f"model={json.dumps(SWIN)}")
    patch = next((option for option in options if option.startswith("data.patch=")), "data.patch=[64, 32, 32]")
    wanted = ("train.steps=1", "optim.lr=1e-12", "optim.weight_decay=0", "validate.every=1")
    run = tmp_path / "run"
    where = (f"data.root={scans}", f"data.prepared={tmp_path / 'prepared'}")
    ended = train(run, model, patch, *where, *wanted, f"init_from={tmp_path / 'pre'}").expect(0)

    assert "of the encoder (100.0 % of its parameters" in ended.err
    encoder = "vit." if "unetr, feature_size: 8" in model else "swinViT."
    before, after = checkpoint(tmp_path / "pre", "best.pt")["model"], checkpoint(run)["model"]
    shared = [name for name in before if name.startswith(encoder)]
    assert len(shared) > 10
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_several_data_sets(
    pretrain: Pretrain, make_dataset: Callable[..., Path], tmp_path: Path, program: Program, pretrain_file: Path
) -> None:
    other = make_dataset(tmp_path / "Task92_other", cases=5, seed=1)
    shutil.rmtree(other / "labelsTr")
    description = json.loads((other / "dataset.json").read_text())
    description["training"] = [entry["image"] for entry in description["training"]]
    (other / "dataset.json").write_text(json.dumps(description))
    also = f"data.also=[{{root: {other}, spacing: [2, 2, 2], intensity: {{mode: window, clip: [0, 300]}}}}]"

    dry = program.warm(PRETRAIN, *arguments(pretrain_file, tmp_path / "run", also), "--dry-run").wait().expect(0)
    assert "balls (msd): 6 to train, 1 to validate on\nballs (msd)" in dry.out.replace("data         ", "")
    assert not (tmp_path / "run").exists()

    pretrain(tmp_path / "run", also, "train.steps=10").expect(0)
    used = {sample["case"] for record in records(tmp_path / "run", "train") for sample in record["samples"]}
    assert len(used) == 10
    assert {name.split("/")[0] for name in used} == {"balls", "balls-2"}  # both data sets have the name balls
    assert records(tmp_path / "run", "val")[-1]["cases"] == 2


@pytest.mark.parametrize(
    ("module", "options", "messages"),
    [
        (TRAIN, (), ("has a `pretrain` section", "python -m fusionseg.pretrain")),
        (PRETRAIN, ("pretrain=null",), ("has no `pretrain` section", "python -m fusionseg.train")),
        (PRETRAIN, ("model={name: unet}",), ("unet has no encoder that can be pre-trained",)),
        (
            PRETRAIN,
            ("model={name: resenc_unet}", "pretrain.method=token", "pretrain.decoder.width=16"),
            (
                "resenc_unet has none (expected blackout, got token); set it to blackout",
                "pretrain.decoder.width (command line",
                "has no effect, because resenc_unet reconstructs with its own decoder",
            ),
        ),
        (PRETRAIN, ("pretrain.block=12",), ("blocks of 12 do not tile data.patch [64, 32, 32]",)),
        (PRETRAIN, ("pretrain.method=mae",), ("expected a multiple of 32 for method mae",)),
        (PRETRAIN, ("pretrain.ratio=0.001",), ("expected at least one hidden and one visible block",)),
        (PRETRAIN, ("pretrain.ratio=1.5", "pretrain.loss.over=some"), ("pretrain.ratio", "pretrain.loss.over")),
        (PRETRAIN, ("pretrain.loss={ssim: 0, l1: 0}",), ("pretrain.loss.ssim", "all weights are 0")),
        (TRAIN, ("pretrain=null", "data.also=[{root: /elsewhere}]"), ("data.also", "pre-training only")),
        (PRETRAIN, ("data.also=[{root: /nowhere}]",), ("/nowhere",)),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else None,
)
def test_what_cannot_be(
    program: Program,
    pretrain_file: Path,
    tmp_path: Path,
    module: str,
    options: tuple[str, ...],
    messages: tuple[str, ...],
) -> None:
    ended = program.warm(module, *arguments(pretrain_file, tmp_path / "run", *options)).wait().expect(2)
    for message in messages:
        assert message in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_other_channels_are_refused(
    program: Program, pretrain_file: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "two_channels", cases=5, channels=2)
    options = (f"data.also=[{{root: {other}}}]",)
    ended = program.warm(PRETRAIN, *arguments(pretrain_file, tmp_path / "run", *options)).wait().expect(2)
    assert "MR0, MR1" in ended.err and "pre-train on them apart" in ended.err


def test_it_segments_nothing(program: Program, pretrained: Path, scans: Path, tmp_path: Path) -> None:
    options = ("--input", scans / "imagesTr", "--output", tmp_path / "masks")
    before = snapshot(pretrained)
    ended = program.warm(COMMANDS, "predict", pretrained, *options).wait().expect(2)
    assert "is of a pre-training" in ended.err and "init_from" in ended.err
    assert snapshot(pretrained) == before
