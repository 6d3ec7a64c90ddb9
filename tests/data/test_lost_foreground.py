"""Foreground that resampling and cropping take away: counted, named, and missed in the validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import preparing
import pytest
import torch

from fusionseg import cli, train
from fusionseg.config import RunConfig, dump_config
from fusionseg.data.preprocessing.lost_foreground import lost_foreground_warning, missed_voxels
from fusionseg.data.preprocessing.record import PreparedCase
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class

SHAPE = (24, 24, 24)
LABELS = {0: "background", 1: "organ", 2: "dark", 3: "thin"}
FOUR_CLASSES = np.eye(4, dtype=bool)[1:]


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases. `organ` is bright; a quarter of `dark` lies where the image is dark; `thin` is one voxel wide."""
    root = tmp_path_factory.mktemp("data") / "Task93_thin"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for number in range(2):
        image = np.random.default_rng(number).normal(0, 1, SHAPE)
        label = np.zeros(SHAPE, np.uint8)
        label[4:12, 4:12, 4:12], image[4:16, 4:12, 4:12] = 1, 100
        label[12:16, 4:12, 4:10] = label[20:24, 4:8, 4:8] = 2
        label[5, 5, 5] = 3
        for part, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / part / f"c{number}.nii.gz")
    entries = [{"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz"} for n in range(2)]
    described = {"modality": {"0": "CT"}, "labels": LABELS, "numTraining": 2, "training": entries}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def data(folder: Path, **settings: object) -> dict[str, object]:
    return {"folds": 2, "prepared": str(folder / "prepared"), **settings}


CROPPED = {"crop_foreground": {"threshold": 50, "margin": 0}}
COARSE = {"spacing": [2.0, 2.0, 2.0]}


def records(config: RunConfig) -> list[PreparedCase]:
    return list(preparing.run(config).store.cases.values())


def test_what_the_crop_takes_is_named_and_counts_as_missed(
    thin: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    record, other = records(tiny_config(thin, tmp_path, data=data(tmp_path, **CROPPED)))
    assert record.class_voxels == ((1, 511, 511, 511), (2, 256, 256, 192), (3, 1, 1, 1))
    assert missed_voxels(record, FOUR_CLASSES) == [0, 64, 0]
    assert lost_foreground_warning([record, other], LABELS).startswith(
        "the preparation removes foreground: c0 lost 25% of class dark to data.crop_foreground;"
        " c1 lost 25% of class dark to data.crop_foreground. Voxels that are cut off count as missed"
    )
    # A prediction that is right wherever it can be is not right in the file: 2 * 192 / (192 + 256).
    label = torch.tensor([2] * 192)
    assert dice_per_class(confusion_matrix(label, label, 4), missed_voxels(record, FOUR_CLASSES))[1] == pytest.approx(
        2 * 192 / 448
    )


def test_a_structure_that_resampling_loses_is_named_and_counts_as_missed(
    thin: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    record, _ = records(tiny_config(thin, tmp_path, data=data(tmp_path, **COARSE)))
    (_, _, (value, in_file, resampled, kept)) = record.class_voxels
    assert (value, in_file, resampled, kept) == (3, 1, 0, 0)
    assert missed_voxels(record, FOUR_CLASSES) == [0, 0, 1]
    assert "c0 lost class thin (1 voxels) to resampling (data.spacing)" in lost_foreground_warning([record], LABELS)
    empty = torch.zeros(10, dtype=torch.long)
    assert dice_per_class(confusion_matrix(empty, empty, 4), missed_voxels(record, FOUR_CLASSES))[2] == 0


def test_nothing_is_said_where_nothing_is_lost(
    thin: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    found = records(tiny_config(thin, tmp_path, data=data(tmp_path)))
    assert lost_foreground_warning(found, LABELS) == ""
    assert [missed_voxels(record, FOUR_CLASSES) for record in found] == [[0, 0, 0]] * 2


def test_a_training_warns_and_does_not_score_a_lost_class_as_right(
    thin: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    steps = {"train": {"steps": 1}, "validate": {"every": 1}}
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config(thin, tmp_path / "runs", data=data(tmp_path, **COARSE), **steps)))
    assert cli.main(["prepare", "--config", str(config)]) == 0
    assert "c0 lost class thin (1 voxels) to resampling" in capfd.readouterr().err
    assert train.main(["--config", str(config)]) == 0
    said = capfd.readouterr().err
    assert said.count("warning: the preparation removes foreground: c") == 1
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    (validation,) = (record for record in map(json.loads, lines) if record["kind"] == "val")
    assert validation["dice_per_class"]["thin"] == 0
