"""Regions, ignored voxels and partly annotated cases, from the training to the masks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fusionseg
from end_to_end.conftest import arguments
from end_to_end.runs import (
    TRAIN,
    Program,
    assert_same_run,
    assert_same_tensors,
    checkpoint,
    rank_environments,
    records,
    wait_for_step,
)
from fusionseg import cli
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.inference.reports.evaluated_cases import EvaluatedCases
from fusionseg.training.dry_run import describe
from fusionseg.training.start import train
from fusionseg.utils.errors import UserError

SHAPE = (20, 18, 16)
OEDEMA, NECROSIS, LIVE, IGNORED = 2, 5, 300, 9
"""Values of the label files."""
LABELS = {"background": 0, "whole": [OEDEMA, NECROSIS, LIVE], "core": [NECROSIS, LIVE], "live": LIVE, "ignore": IGNORED}
NAMES = ("whole", "core", "live")
Maker = Callable[..., RunConfig]


def nested_case(number: int) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """A box in a box in a box, with intensities 100, 200, 300 in a background of 0; the last slices are ignored."""
    label = np.zeros(SHAPE, np.uint16)
    x, y = 2 + number, 3
    label[x : x + 12, y : y + 12, 2:14] = OEDEMA
    label[x + 2 : x + 10, y + 2 : y + 10, 4:12] = NECROSIS
    label[x + 4 : x + 8, y + 4 : y + 8, 5:10] = LIVE
    image = np.select([label == OEDEMA, label == NECROSIS, label == LIVE], [100, 200, 300], 0)
    label[..., 14:] = IGNORED
    return (image + np.random.default_rng(number).normal(0, 5, SHAPE)).astype(np.float32), label


def write_nnunet(folder: Path, cases: int = 4, labels: dict[str, Any] = LABELS, **keys: Any) -> Path:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        image, label = nested_case(number)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"imagesTr/case{number}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"labelsTr/case{number}.nii.gz")
    described = {"channel_names": {"0": "MR"}, "numTraining": cases, "file_ending": ".nii.gz", "labels": labels, **keys}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in nnU-Net's notation of regions. Shared: do not change its files."""
    order = [OEDEMA, NECROSIS, LIVE]
    return write_nnunet(tmp_path_factory.mktemp("data") / "Dataset007_nested", regions_class_order=order)


@pytest.fixture(scope="module")
def config_file(nested: Path, tiny_config: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    config = tiny_config(
        nested,
        folder / "runs",
        data={"folds": 2, "prepared": str(folder / "prepared"), "intensity": {"mode": "window", "clip": [0, 300]}},
        train={"steps": 30, "global_batch": 2},
        optim={"lr": 0.05},
        validate={"every": 15},
        checkpoint={"every": 3},
        metrics=["iou"],
    )
    (folder / "regions.yaml").write_text(dump_config(config))
    return folder / "regions.yaml"


@pytest.fixture(scope="module")
def trained(program: Program, config_file: Path) -> Path:
    """A run on two ranks that learns the regions."""
    run = config_file.parent / "runs" / "whole_run"
    for rank in start(program, config_file, run):
        rank.wait().expect(0)
    return run


def start(program: Program, config: Path, run: Path) -> list[Any]:
    return [program.warm(TRAIN, *arguments(config, run), env=env) for env in rank_environments(2)]


def test_two_ranks_train_regions_and_resume_exactly(program: Program, config_file: Path, trained: Path) -> None:
    broken = trained.parent / "broken"
    ranks = start(program, config_file, broken)
    wait_for_step(broken, 4, ranks)
    for rank in ranks:
        rank.process.kill()
        rank.wait()
    for rank in start(program, config_file, broken):
        rank.wait().expect(0)
    assert_same_run(trained, broken)
    assert "regions whole, core, live (sigmoid)" in describe(fusionseg.load_config(config_file, {"name": "new"}))
    _, last = records(trained, "val")
    assert tuple(last["dice_per_class"]) == tuple(last["metrics"]["iou"]["per_class"]) == NAMES
    assert last["dice"] > 0.5 and last["dice"] == pytest.approx(np.mean(list(last["dice_per_class"].values())))


def test_evaluation_scores_the_regions_and_counts_what_it_leaves_out(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained), "--checkpoint", "best"]) == 0
    text = capsys.readouterr().out
    with (trained / "evaluation_best/cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    summary = json.loads((trained / "evaluation_best/summary.json").read_text())
    assert [row["label"] for row in rows] == [*NAMES, *NAMES] and "annotated" not in rows[0]
    run = fusionseg.load_run(trained)
    for row in rows:  # the definition, written out
        image, label = nested_case(int(row["case"].removeprefix("case")))
        members = {"whole": [OEDEMA, NECROSIS, LIVE], "core": [NECROSIS, LIVE], "live": [LIVE]}[row["label"]]
        predicted = run.predict(image, affine=np.eye(4), probabilities=True)[NAMES.index(row["label"])] > 0.5
        true, known = np.isin(label, members), label != IGNORED
        both = 2 * (predicted & true & known).sum() / ((predicted & known).sum() + true.sum())
        assert float(row["dice"]) == pytest.approx(both)
        assert int(row["voxels_true"]) == true.sum() and int(row["voxels_ignored"]) == (~known).sum()
    ignored = 2 * SHAPE[0] * SHAPE[1] * 2
    assert summary["ignored"] == {"cases": 2, "voxels": ignored} and f"not scored: {ignored} voxels of 2 cases" in text
    assert (trained / "evaluation_best/best_and_worst.png").exists()


def test_masks_are_painted_in_the_order_of_the_regions(nested: Path, trained: Path, tmp_path: Path) -> None:
    image = nested / "imagesTr/case0_0000.nii.gz"
    assert cli.main(["predict", str(trained), "--input", str(image), "--output", str(tmp_path / "masks")]) == 0
    mask = np.asanyarray(nibabel.load(tmp_path / "masks/case0.nii.gz").dataobj)
    run = fusionseg.load_run(trained)
    probabilities = run.predict(image, probabilities=True)
    assert (
        probabilities.shape == (3, *SHAPE) and (probabilities.sum(axis=0) > 1).any()
    )  # they do not exclude each other
    expected = np.zeros(SHAPE, np.uint16)
    for value, each in zip((OEDEMA, NECROSIS, LIVE), probabilities, strict=True):
        expected[each > 0.5] = value
    assert mask.dtype == np.uint16 and (mask == expected).all() and (run.predict(image) == mask).all()
    assert np.unique(mask).tolist() == [0, OEDEMA, NECROSIS, LIVE]
    # In slabs, with flips, and as an ensemble of the same network twice.
    assert (run.predict(image, memory_gb=1e-4) == mask).all()
    assert (fusionseg.predict([trained, trained], image) == mask).all()
    assert run.predict(image, flips=True).shape == SHAPE


def test_a_kept_mask_is_drawn_like_a_new_prediction(trained: Path, tmp_path: Path) -> None:
    """A mask has the values of a label file, painted over each other; a picture has the numbers of the regions."""
    evaluation = fusionseg.evaluate(shutil.copytree(trained, tmp_path / "run"))
    cases = EvaluatedCases(evaluation.folder, evaluation.summary, device="cpu")
    masks = list((evaluation.folder / "masks").iterdir())
    assert masks
    for mask in masks:
        kept = cases.predict(name := mask.name.removesuffix(".nii.gz"))
        mask.unlink()
        np.testing.assert_array_equal(kept, cases.predict(name))
        assert np.unique(kept).tolist() == [0, 1, 2, 3]


def test_sigmoid_and_softmax_networks_are_not_averaged(nested: Path, trained: Path, tiny_config: Maker) -> None:
    config = tiny_config(
        nested,
        trained.parent,
        name="merged",
        data={"folds": 2, "classes": {"whole": [OEDEMA, NECROSIS, LIVE]}},
        train={"steps": 1},
        validate={"every": 1},
    )
    train(config)
    with pytest.raises(UserError, match=r"the labels \['background', 'whole'\].*the same kind of outputs"):
        fusionseg.predict([trained, trained.parent / "merged"], nested / "imagesTr/case0_0000.nii.gz")


OWN_NETWORK = """
from torch import nn

class OneVoxel(nn.Sequential):
    def __init__(self, in_channels, out_channels):
        super().__init__(nn.Conv3d(in_channels, 8, 1), nn.LeakyReLU(), nn.Conv3d(8, out_channels, 1))
"""


def train_on(root: Path, output: Path, tiny_config: Maker, **data: Any) -> Path:
    """Train two steps of a network whose outputs depend on one voxel each."""
    settings = {"folds": 2, "intensity": {"mode": "window", "clip": [0, 300]}, "foreground": 1.0, **data}
    raw = tiny_config(root, output, data=settings, train={"steps": 2}, validate={"every": 2}).to_dict()
    train(validate({**raw, "model": {"name": "own_network:OneVoxel"}}))
    return output / "tiny"


@pytest.mark.parametrize("kind", ["regions", "classes"])
def test_the_image_under_ignored_voxels_changes_no_weight(
    nested: Path, user_folder: Path, tiny_config: Maker, kind: str
) -> None:
    """The ignored part of each image is changed in a second data set; the network sees one voxel at a time."""
    (user_folder / "own_network.py").write_text(OWN_NETWORK)
    labels = LABELS if kind == "regions" else {"background": 0, "oedema": 2, "necrosis": 5, "live": 300, "ignore": 9}
    keys = {"regions_class_order": [OEDEMA, NECROSIS, LIVE]} if kind == "regions" else {}
    runs = []
    for name in ("one", "other"):
        root = write_nnunet(user_folder / name / "Dataset007_nested", labels=labels, **keys)
        if name == "other":
            for path in sorted((root / "imagesTr").iterdir()):
                image, geometry = np.asanyarray(nibabel.load(path).dataobj).copy(), np.eye(4)
                image[..., 14:] = np.random.default_rng(1).normal(150, 80, image[..., 14:].shape)
                nibabel.save(nibabel.Nifti1Image(image, geometry), path)
        runs.append(train_on(root, user_folder / name, tiny_config))
    assert_same_tensors(checkpoint(runs[0])["model"], checkpoint(runs[1])["model"])
    for ours, theirs in zip(*(records(run, "val") for run in runs), strict=True):
        assert (ours["dice"], ours["dice_per_class"]) == (theirs["dice"], theirs["dice_per_class"])
    one, other = (records(run, "train") for run in runs)
    assert [record["loss"] for record in one] == [record["loss"] for record in other]


def test_a_class_that_a_case_does_not_annotate_has_no_effect(user_folder: Path, tiny_config: Maker) -> None:
    """Two data sets differ in the voxels of `live` in the cases that do not annotate it: same weights, same scores."""
    (user_folder / "own_network.py").write_text(OWN_NETWORK)
    runs = []
    for name in ("one", "other"):
        labels = {"background": 0, "oedema": OEDEMA, "necrosis": NECROSIS, "live": LIVE, "ignore": IGNORED}
        root = write_nnunet(user_folder / name / "Dataset007_nested", labels=labels)
        if name == "other":
            for number in (0, 1):
                path = root / f"labelsTr/case{number}.nii.gz"
                label = np.asanyarray(nibabel.load(path).dataobj).copy()
                label[label == LIVE] = 0
                label[:2, :2, :2] = LIVE
                nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), path)
        annotated = {"case[01]": ["oedema", "necrosis"]}
        runs.append(train_on(root, user_folder / name, tiny_config, annotated=annotated))
    one, other = (checkpoint(run)["model"] for run in runs)
    assert_same_tensors(one, other)
    assert one["2.weight"].shape[0] == 3  # sigmoid outputs without the background
    vals = [records(run, "val")[-1] for run in runs]
    assert vals[0]["dice_per_class"] == vals[1]["dice_per_class"] and vals[0]["loss"] == vals[1]["loss"] > 0
    assert vals[0]["annotated_per_class"] == {"oedema": 2, "necrosis": 2, "live": 1}
    evaluation = fusionseg.evaluate(runs[0])
    split = json.loads((runs[0] / "split.json").read_text())
    partial = sum(case["name"] in ("case0", "case1") for case in split["validation"])
    assert evaluation.summary["classes"]["live"]["annotated"] == 2 - partial
    assert torch.isfinite(one["2.weight"]).all()
