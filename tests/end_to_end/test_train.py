"""Training through its entry point: the run folder, the learning, the settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    TRAIN,
    Program,
    assert_same_tensors,
    checkpoint,
    records,
    results,
)

MEASURED = {
    "train": {"step_s", "data_s", "samples_per_s", "memory_gb", "mfu", "roofline"},
    "val": {"val_s"},
    "end": {"total_s", "phases_s"},
}
FIELDS = {
    "train": {"loss", "lr", "grad_norm", "skipped", "samples"},
    "val": {"dice", "dice_per_class", "loss", "cases", "grid"},
    "end": {"status", "reason", "best_dice", "grid"},
}


# -- the run folder, of a run by `python -m fusionseg.train` -------------------------------------------------


def test_files_of_the_run_folder(trained: Path) -> None:
    files = (path.relative_to(trained) for path in trained.rglob("*") if path.is_file())
    names = {path.as_posix() for path in files if not path.parts[0].startswith("evaluation")}  # of other tests
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events - {".lock"} == {
        "config.yaml",
        "environment.json",
        "split.json",
        "metrics.jsonl",
        "history.jsonl",
        "log.txt",
        *(f"checkpoints/{name}.pt" for name in ("best", "last", "step_00000080", "step_00000100", "step_00000120")),
        *(f"pictures/validation_{step:08d}.png" for step in (30, 60, 90, 120)),
    }


def test_records_are_as_documented(trained: Path) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    found = [json.loads(line, parse_constant=refuse) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for record in found:
        kind = record["kind"]
        assert record.keys() == {"kind", "step"} | FIELDS[kind] | MEASURED[kind]
        assert record.get("grid", "prepared") == "prepared"
        assert all(record[field] >= 0 for field in MEASURED[kind] - {"phases_s"})
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, 121))
    assert [r["step"] for r in found if r["kind"] == "val"] == [30, 60, 90, 120]
    assert [r["kind"] for r in found].count("end") == 1
    assert found[-1]["kind"] == "end"

    train = [record for record in found if record["kind"] == "train"]
    assert all(record["skipped"] == 0 and record["loss"] > 0 and record["grad_norm"] > 0 for record in train)
    # Warm-up over 5 steps to 0.02, then a cosine down to 0.
    expected = [0.02 * (s + 1) / 5 if s < 5 else 0.01 * (1 + cos(pi * (s - 5) / 115)) for s in range(120)]
    assert [record["lr"] for record in train] == pytest.approx(expected)
    for record in train:
        assert [sample["sample"] for sample in record["samples"]] == [0, 1]
        assert all(sample.keys() == {"sample", "case", "origin"} for sample in record["samples"])
        assert all(len(sample["origin"]) == 3 for sample in record["samples"])
    validated = [record for record in found if record["kind"] == "val"]
    for record in validated:
        assert record["dice_per_class"].keys() == {"ball1", "ball2"}
        assert record["dice"] == pytest.approx(sum(record["dice_per_class"].values()) / 2)
        assert record["cases"] == 1
    end = found[-1]
    assert (end["status"], end["step"]) == ("completed", 120)
    assert end["best_dice"] == max(record["dice"] for record in validated)
    assert {"start", "forward", "backward", "optimizer", "validate", "checkpoint", "other"} <= end["phases_s"].keys()
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in end["phases_s"].values())


def test_validation_cases_are_never_trained_on(trained: Path) -> None:
    used = {sample["case"] for record in records(trained, "train") for sample in record["samples"]}
    every = {f"case_{number:03d}" for number in range(5)}
    assert len(used) == 4
    assert used < every


def test_training_learns(trained: Path) -> None:
    dice = [record["dice"] for record in records(trained, "val")]
    assert dice[-1] > 0.9
    assert dice[-1] > dice[0] + 0.1
    losses = [record["loss"] for record in records(trained, "train")]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_content_of_the_checkpoints(trained: Path) -> None:
    last, best = checkpoint(trained), checkpoint(trained, "best.pt")
    assert last["step"] == 120
    assert_same_tensors(last["model"], checkpoint(trained, "step_00000120.pt")["model"])
    top = max(records(trained, "val"), key=lambda record: record["dice"])
    assert (best["step"], best["dice"]) == (top["step"], top["dice"])
    assert best["labels"] == last["labels"] == {"0": "background", "1": "ball1", "2": "ball2"}
    assert best["config"]["model"]["channels"] == [4, 8]


def test_environment_and_log(trained: Path) -> None:
    environment = json.loads((trained / "environment.json").read_text())
    assert environment.keys() == {
        "fusionseg", "commit", "python", "packages", "cuda", "command", "parameters", "implementation", "world_size",
        "ranks",
    }  # fmt: skip
    assert environment["parameters"] == sum(x.numel() for x in checkpoint(trained)["model"].values())
    assert environment["world_size"] == len(environment["ranks"]) == 1
    assert environment["ranks"][0]["device"] == "cpu"
    assert environment["ranks"][0]["threads"] == 1
    assert "--config" in environment["command"]
    log = (trained / "log.txt").read_text()
    score = next(record["dice"] for record in records(trained, "val") if record["step"] == 60)
    for part in (
        "batch: global 2 = micro-batch 2 x 1 rank x accumulation 1",
        f"step 60: validation Dice {score:.4f} on the prepared grid",
        f"best dice {records(trained, 'end')[-1]['best_dice']:.4f} on the prepared grid",
        "completed",
    ):
        assert part in log


def test_tensorboard_has_scalars_and_a_picture(trained: Path) -> None:
    board = EventAccumulator(str(trained), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "train/lr", "val/dice", "val/dice_per_class/ball1"} <= set(tags["scalars"])
    expected = [(record["step"], record["loss"]) for record in records(trained, "train")]
    found = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    (text,) = board.Tensors("val/grid/text_summary")
    assert b"prepared grid" in text.tensor_proto.string_val[0]
    pictures = board.Images("validation")
    assert [picture.step for picture in pictures] == [30, 60, 90, 120]
    assert min(pictures[0].width, pictures[0].height) > 10


def test_resolved_configuration_repeats_the_run(program: Program, tmp_path: Path, trained: Path) -> None:
    written = trained / "config.yaml"
    again = tmp_path / "again"
    program.warm(TRAIN, *arguments(written, again)).wait().expect(0)

    assert results(again) == results(trained)
    assert_same_tensors(checkpoint(again)["model"], checkpoint(trained)["model"])
    ours, theirs = (yaml.safe_load((run / "config.yaml").read_text()) for run in (again, trained))
    for config in (ours, theirs):
        del config["name"], config["output"]
    assert ours == theirs


# -- configurations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A configuration that is trained for a few steps."""

    name: str
    overrides: tuple[str, ...]
    said: str = ""
    """Expected text on the standard error."""


SWIN = "model={name: swin_fusion_od, feature_size: 12, window_size: 4, depths: [1, 1, 1, 1]}"
SWIN_PATCH = (
    "data.patch=[64, 32, 32]",
    "train={steps: 2, global_batch: 1}",
    "validate={every: 2, overlap: 0.0}",
)

VARIANTS = [
    Variant("adam", ("optim={name: adam, lr: 0.01}",)),
    Variant("sgd", ("optim={name: sgd, lr: 0.1, momentum: 0.9}",)),
    Variant("novograd", ("optim={name: novograd, lr: 0.01}",)),
    Variant("cosine", ("schedule={name: cosine, warmup: 2, min_lr: 1.0e-3}",)),
    Variant("polynomial", ("schedule={name: polynomial, warmup: 2}",)),
    Variant("dice", ("loss={name: dice, squared: true}",)),
    Variant("dice_focal", ("loss={name: dice_focal, gamma: 1.5}",)),
    Variant("cross_entropy", ("loss={name: cross_entropy}",)),
    Variant(
        "batch_dice",
        ("loss={name: dice_ce, batch_dice: true, include_background: true}", "train.micro_batch=2"),
    ),
    Variant("bf16", ("train.precision=bf16",), "precision bf16 (as configured)"),
    Variant("fp16", ("train.precision=fp16",), "precision fp16 (as configured)"),
    Variant("auto_precision", ("train.precision=auto",), "(auto: "),
    Variant("channels_last", ("train.channels_last=auto",), "memory format: channels-last"),
    Variant("no_clipping", ("train.clip_grad=null",)),
    Variant("batch_norm", ("model.norm=batch", "train.micro_batch=2")),
    Variant("segresnet", ("model={name: segresnet, init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}",)),
    Variant(
        "swin_fusion_od",
        (SWIN, *SWIN_PATCH, "train.checkpoint_activations=true"),
        "model: swin_fusion_od, 2,",
    ),
    Variant("cache_float16", ("cache.dtype=float16", "data.dtype=float16")),
    Variant("train_cases", ("data.train_cases=2",), "cache: 3 cases"),
    Variant("own_geometry", ("data.orientation=null",)),
    Variant(
        "spacing",
        ("data.spacing=[1.5, 1.5, 1.5]", "data.crop_foreground={threshold: 170, margin: 2}"),
        "preparing 5 of 5 cases",
    ),
    Variant("window", ("data.intensity={clip: [0, 500]}",)),
    Variant(
        "all_augmentation",
        (
            "augment={flip: 0.5, shift_intensity: {prob: 1}, scale_intensity: {prob: 1}, noise: {prob: 1},"
            " rotate: {prob: 1}, scale: {prob: 1}, elastic: {prob: 1}, blur: {prob: 1}, contrast: {prob: 1},"
            " low_resolution: {prob: 1}, gamma_inverted: {prob: 1}, gamma: {prob: 1}, cutout: {prob: 1}}",
        ),
    ),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_configuration_trains(train: Train, tmp_path: Path, variant: Variant) -> None:
    run = tmp_path / "run"
    own = [] if "data" not in "".join(variant.overrides) else [f"data.prepared={tmp_path / 'prepared'}"]

    ended = train(run, "train.steps=6", "validate.every=6", *variant.overrides, *own).expect(0)

    assert variant.said in ended.err
    assert "Traceback" not in ended.err
    found = records(run, "train")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert len(found) == config["train"]["steps"]
    assert all(record["loss"] is not None and record["grad_norm"] > 0 for record in found)
    assert found[-1]["loss"] < found[0]["loss"]
    assert records(run)[-1]["status"] == "completed"
    assert 0 <= records(run, "val")[-1]["dice"] <= 1


@pytest.mark.skipif(
    shutil.which("g++") is None and "g++" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_training_gives_the_same_losses(train: Train, tmp_path: Path) -> None:
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    train(plain, "train.steps=3").expect(0)
    train(compiled, "train.steps=3", "train.compile=true").expect(0)
    losses = [[record["loss"] for record in records(run, "train")] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_first_losses_of_all_precisions_are_close(train: Train, tmp_path: Path) -> None:
    """The first losses of bf16 and fp16 are that of fp32 within their precision."""
    first = {}
    for precision in ("fp32", "bf16", "fp16"):
        train(tmp_path / precision, "train.steps=1", f"train.precision={precision}").expect(0)
        first[precision] = records(tmp_path / precision, "train")[0]["loss"]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=1e-2)
    assert first["fp16"] == pytest.approx(first["fp32"], rel=1e-3)
    assert len(set(first.values())) == 3  # each is computed in its own precision


def test_activation_checkpointing_has_equal_losses(train: Train, tmp_path: Path) -> None:
    plain, saving = tmp_path / "plain", tmp_path / "saving"
    train(plain, SWIN, *SWIN_PATCH).expect(0)
    train(saving, SWIN, *SWIN_PATCH, "train.checkpoint_activations=true").expect(0)
    for one, other in zip(records(saving, "train"), records(plain, "train"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_init_from_starts_with_the_weights(train: Train, tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"

    ended = train(run, "train.steps=1", f"init_from={trained}", "optim.lr=1.0e-6").expect(0)

    assert f"init_from {trained}/checkpoints/best.pt: loaded 15 of 15 tensors" in ended.err
    assert records(run, "train")[0]["loss"] < 0.5  # 2.06 from random weights
    assert records(run, "val")[-1]["dice"] == pytest.approx(records(trained, "end")[-1]["best_dice"], abs=1e-3)


def test_plateau_stops_the_run(train: Train, tmp_path: Path) -> None:
    """With a learning rate near 0 nothing is gained in the second and third plateau interval."""
    run = tmp_path / "run"
    options = (
        "train.steps=40",
        "validate.every=2",
        "stop.plateau={window: 4, windows: 2}",
        "optim.lr=1.0e-12",
    )

    ended = train(run, *options).expect(0)

    end = records(run)[-1]
    assert (end["status"], end["step"]) == ("plateau", 12)
    assert "plateau (less than 0.004 gained in 2 plateau intervals of 4 steps)" in ended.err
    assert checkpoint(run)["step"] == 12
    assert "has finished (plateau at step 12)" in train(run, *options).expect(0).err


# -- layouts of data sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["msd", "nnunet", "datalist"])
def test_two_channels_in_each_layout(
    train: Train, tmp_path: Path, make_dataset: Callable[..., Path], layout: str
) -> None:
    stored = "msd" if layout == "datalist" else layout
    root = make_dataset(tmp_path / "Dataset007_two", cases=4, channels=2, layout=stored)
    if layout == "datalist":
        (root / "datalist.json").write_text(json.dumps(_datalist(root)))
        (root / "dataset.json").unlink()
    run = tmp_path / "run"
    options = (f"data.root={root}", f"data.prepared={tmp_path / 'prepared'}", "data.folds=2", "data.fold=1")

    train(run, *options, "log.samples=true").expect(0)

    state = checkpoint(run)
    assert len(state["channels"]) == 2
    assert state["model"]["model.0.conv.unit0.conv.weight"].shape[1] == 2
    assert state["labels"] == {"0": "background", "1": "ball1"}
    used = {sample["case"] for record in records(run, "train") for sample in record["samples"]}
    assert len(used) == 2
    if layout == "datalist":  # the file says the folds
        assert used == {"case_000", "case_001"}


def _datalist(root: Path) -> dict[str, Any]:
    training = [
        {"image": f"imagesTr/case_{n:03d}.nii.gz", "label": f"labelsTr/case_{n:03d}.nii.gz", "fold": n // 2}
        for n in range(4)
    ]
    return {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "ball1"},
        "training": training,
    }


def test_log_every_averages_the_loss(train: Train, tmp_path: Path) -> None:
    each, fourth = tmp_path / "each", tmp_path / "fourth"
    train(each, "train.steps=8").expect(0)
    train(fourth, "train.steps=8", "log.every=4").expect(0)
    losses = [record["loss"] for record in records(each, "train")]
    found = records(fourth, "train")
    assert [record["step"] for record in found] == [4, 8]
    assert [record["loss"] for record in found] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4])


def test_old_checkpoints_are_removed(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "train.steps=7", "checkpoint={every: 2, keep: 2}").expect(0)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "step_00000006.pt", "step_00000007.pt"]


def test_seed_changes_samples_and_losses(train: Train, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / f"seed{seed}", "train.steps=3", f"seed={seed}", "log.samples=true").expect(0)
    zero, one = (records(tmp_path / f"seed{seed}", "train") for seed in (0, 1))
    assert all(a["samples"] != b["samples"] for a, b in zip(zero, one, strict=True))
    assert zero[0]["loss"] != one[0]["loss"]
    assert all(a["loss"] != b["loss"] for a, b in pairwise(zero))
