"""Each kind of real data set through the commands of docs/data.md: check, prepare, ten steps, evaluate, predict."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from end_to_end.runs import COMMANDS, TRAIN, Program, records

pytestmark = [pytest.mark.real_data, pytest.mark.long]

SMALL = (
    "model={name: unet, channels: [4, 8, 16, 32]}",
    "validate={every: 10, overlap: 0}",
    "train={steps: 10, global_batch: 2, micro_batch: 1}",
    "schedule.warmup=2",
    "data.patch=[64, 64, 32]",
    "data.workers=1",
)
LONG_S = 600
CT = "data.intensity={clip: [-1000, 600]}"
LIST = "data.classes={lung: [10, 11, 12, 13, 14], liver: 5, aorta: 52, spine: [26, 30, 31, 32, 33]}"


def scores(run: Path, evaluation: str = "evaluation") -> list[dict[str, str]]:
    with (run / evaluation / "cases.csv").open() as stream:
        return list(csv.DictReader(stream))


def same_grid(mask: Path, image: Path) -> np.ndarray:
    """Read a mask, and check that it has the grid of its image."""
    read, expected = nibabel.load(mask), nibabel.load(image)
    assert read.shape == expected.shape[:3]
    np.testing.assert_allclose(read.affine, expected.affine, atol=1e-5)
    return np.asarray(read.dataobj)


def test_overlapping_regions_of_two_channels(program: Program, real_data: Path, tmp_path: Path) -> None:
    """nnU-Net's notation needs no key: whole tumour, core and enhancing tumour are sigmoid outputs."""
    data, run = real_data / "brain_tumour", tmp_path / "brain"
    options = (f"data.root={data}", f"output={tmp_path}", "name=brain", "data.intensity.mode=none", "data.folds=2")
    said = program.warm(COMMANDS, "check", data).wait().expect(0)
    assert "whole_tumour" in said.out
    program.warm(COMMANDS, "prepare", "--config", "base", *options, *SMALL).wait(LONG_S).expect(0)
    program.warm(TRAIN, "--config", "base", *options, *SMALL, "augment=nnunet").wait(LONG_S).expect(0)
    (validation,) = records(run, "val")
    assert list(validation["dice_per_class"]) == ["whole_tumour", "tumour_core", "enhancing"]

    program.warm(COMMANDS, "evaluate", run, "--overlap", 0).wait(LONG_S).expect(0)
    members = {"whole_tumour": [1, 2, 3, 4], "tumour_core": [1, 3, 4], "enhancing": [4]}
    rows = scores(run)
    assert len(rows) == 6
    for row in rows:
        label = np.asarray(nibabel.load(data / "labelsTr" / f"{row['case']}.nii.gz").dataobj)
        assert int(row["voxels_true"]) == int(np.isin(label, members[row["label"]]).sum())

    (tmp_path / "new").mkdir()
    for channel in sorted((data / "imagesTr").glob("case_0003_*")):
        (tmp_path / "new" / channel.name).symlink_to(channel)
    command = ("predict", run, "-i", tmp_path / "new", "-o", tmp_path / "masks", "--overlap", 0)
    program.warm(COMMANDS, *command).wait(LONG_S).expect(0)
    mask = same_grid(tmp_path / "masks/case_0003.nii.gz", data / "imagesTr/case_0003_0000.nii.gz")
    assert set(np.unique(mask)) <= {0, 1, 2, 4}


def test_labels_with_gaps_and_a_series_of_slices(program: Program, real_data: Path, tmp_path: Path) -> None:
    """Classes that are chosen and merged from 41 labels; the mask has the file's values. The network then segments a
    DICOM series, and an independent reader finds the mask on the slices."""
    pydicom = pytest.importorskip("pydicom")
    data, run = real_data / "ct_many_labels", tmp_path / "many"
    options = (f"data.root={data}", f"output={tmp_path}", "name=many", "data.fold=all", LIST, CT)
    assert "117" in program.warm(COMMANDS, "check", data).wait().expect(2).err
    program.warm(COMMANDS, "check", data, LIST).wait().expect(0)
    program.warm(COMMANDS, "prepare", "--config", "base", *options, *SMALL).wait(LONG_S).expect(0)
    program.warm(TRAIN, "--config", "base", *options, *SMALL).wait(LONG_S).expect(0)
    assert not records(run, "val")
    assert "no validation" in program.warm(COMMANDS, "evaluate", run).wait().expect(2).err
    own = ("evaluate", run, "--dataset", data, "--include-trained", "--overlap", 0)
    program.warm(COMMANDS, *own).wait().expect(0)
    label = np.asarray(nibabel.load(data / "labelsTr/ct.nii.gz").dataobj)
    found = {row["label"]: int(row["voxels_true"]) for row in scores(run, "evaluation_ct_many_labels_with_trained")}
    assert found["lung"] == int(np.isin(label, [10, 11, 12, 13, 14]).sum()) > 0
    assert found["liver"] == int((label == 5).sum()) > 0

    program.warm(COMMANDS, "predict", run, "-i", data / "imagesTr", "-o", tmp_path / "masks").wait().expect(0)
    mask = same_grid(tmp_path / "masks/ct.nii.gz", data / "imagesTr/ct.nii.gz")
    assert set(np.unique(mask)) <= {0, 10, 5, 52, 26}

    series = real_data / "ct_dicom"
    program.warm(COMMANDS, "check", series).wait().expect(0)
    program.warm(COMMANDS, "predict", run, "-i", series, "-o", tmp_path / "ct", "--overlap", 0).wait().expect(0)
    predicted = nibabel.load(tmp_path / "ct/series.nii.gz")
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted((series / "series").iterdir())]
    normal = np.cross(*np.reshape(slices[0].ImageOrientationPatient, (2, 3)))
    slices.sort(key=lambda one: float(np.dot(one.ImagePositionPatient, normal)))
    assert predicted.shape == (slices[0].Columns, slices[0].Rows, len(slices))
    for index, one in enumerate(slices):
        corner = predicted.affine @ [0, 0, index, 1]
        np.testing.assert_allclose(corner[:3] * [-1, -1, 1], np.array(one.ImagePositionPatient, float), atol=1e-2)


def test_two_files_of_an_export(program: Program, real_data: Path, tmp_path: Path) -> None:
    """An image and a label of any names, by a datalist and the folder that its paths start at."""
    data, run = real_data / "ct_aorta", tmp_path / "aorta"
    source = tmp_path / "list.json"
    cases = [{"image": "image.nii.gz", "label": "aorta.nii.gz"}]
    source.write_text(json.dumps({"labels": ["background", "aorta"], "training": cases}))
    place = (f"data.root={source}", f"data.base_dir={data}", f"output={tmp_path}", "name=aorta", "data.folds=1", CT)
    program.warm(COMMANDS, "check", source, "--base-dir", data).wait().expect(0)
    program.warm(TRAIN, "--config", "base", *place, *SMALL).wait(LONG_S).expect(0)
    assert records(run, "val")[-1]["trained_on"] == 1
    command = ("predict", run, "-i", source, "--base-dir", data, "-o", tmp_path / "masks", "--overlap", 0)
    program.warm(COMMANDS, *command).wait(LONG_S).expect(0)
    (mask,) = (tmp_path / "masks").glob("*.nii.gz")
    same_grid(mask, data / "image.nii.gz")
