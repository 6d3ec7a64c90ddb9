"""Data sets without a list: a folder for each case, or images beside labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import preparing
import pytest
from dicom_files import oblique, write_series

from fusionseg.cli import main
from fusionseg.config import RunConfig
from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import UserError

SHAPE = (7, 6, 5)


def touch(root: Path, *names: str) -> None:
    """Write NIfTI volumes."""
    rng = np.random.default_rng(0)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = rng.integers(0, 2, SHAPE, np.uint8)
        nibabel.save(nibabel.Nifti1Image(volume, LPS_TO_RAS @ oblique()), path)


def cases(root: Path) -> dict[str, tuple[list[str], str | None]]:
    """Name of a case -> its images and its label, below the root."""
    return {
        case.name: (
            [str(path.relative_to(root)) for path in case.images],
            None if case.label is None else str(case.label.relative_to(root)),
        )
        for case in open_dataset(root, labels=LABELS).training
    }


LABELS = LabelSettings(("background", "liver"))


def test_an_export_of_a_hospital_is_checked_and_prepared(
    tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "liver"
    rng = np.random.default_rng(0)

    def scout(dataset: object, index: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]  # type: ignore[attr-defined]

    for patient in ("patient.1", "patient.2"):
        write_series(root / patient / "STUDY/CT", rng.integers(0, 2000, SHAPE, np.int16))
        write_series(root / patient / "STUDY/SCOUT", rng.integers(0, 2000, SHAPE, np.int16)[..., :1], change=scout)
        touch(root, f"{patient}/liver_mask.nii.gz")
        (root / patient / "DICOMDIR").touch()
        write_series(root / patient / "STUDY/THIN", rng.integers(0, 2000, SHAPE, np.int16), description="Lung thin")
    (root / "notes").mkdir()
    assert open_dataset(root, labels=LABELS).channels == ("ct", "thin")
    chosen = open_dataset(root, labels=LABELS, readers=Readers(series="*thin"))
    assert [case.images[0].name for case in chosen.training] == ["THIN", "THIN"]
    for patient in ("patient.1", "patient.2"):
        shutil.rmtree(root / patient / "STUDY/THIN")
    assert cases(root) == {
        patient: ([f"{patient}/STUDY/CT"], f"{patient}/liver_mask.nii.gz") for patient in ("patient.1", "patient.2")
    }
    assert main(["check", str(root), "data.labels=[background,liver]", "--workers", "1"]) == 0
    assert "1 folder without an image left out (notes)" in capsys.readouterr().out
    config = tiny_config(root, tmp_path / "runs", data={"labels": ["background", "liver"], "folds": 2})
    assert preparing.run(config).failed == {}
    before = preparing.opened(config).root
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    )
    plain = tiny_config(root, tmp_path / "runs", data={"folds": 2, "layout": "folders"})
    assert preparing.opened(plain).root == before  # the same data set, whether its names are in a file or not
    assert main(["check", str(root), "--layout", "folders", "--workers", "1"]) == 0


def test_channels_are_told_apart_by_the_names_of_their_files(tmp_path: Path) -> None:
    for number in ("001", "002"):
        for part in ("flair", "t1", "t1ce", "t2", "seg"):
            touch(tmp_path, f"BraTS20_Training_{number}/BraTS20_Training_{number}_{part}.nii.gz")
    dataset = open_dataset(tmp_path, labels=LABELS)
    assert dataset.layout == "folders" and dataset.channels == ("flair", "t1", "t1ce", "t2")
    case = dataset.training[0]
    assert [path.name.rpartition("_")[2] for path in case.images] == [f"{c}.nii.gz" for c in dataset.channels]
    assert case.label is not None and case.label.name == "BraTS20_Training_001_seg.nii.gz"
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "T2", "1": "T1", "2": "T1CE", "3": "FLAIR"}})
    )
    dataset = open_dataset(tmp_path, "folders", LABELS)
    assert dataset.channels == ("T2", "T1", "T1CE", "FLAIR")
    assert dataset.training[0].images[0].name == "BraTS20_Training_001_t2.nii.gz"
    (tmp_path / "BraTS20_Training_002/BraTS20_Training_002_t1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"_002/t1: file missing, case BraTS20_Training_002 needs it"):
        open_dataset(tmp_path, "folders", LABELS)
    accepted = open_dataset(tmp_path, "folders", LABELS, missing_channels="zero")
    assert [len(case.images) for case in accepted.training] == [4, 3]
    touch(tmp_path, "BraTS20_Training_002/BraTS20_Training_002_pd.nii.gz")
    with pytest.raises(UserError, match=r"_002: holds the channels flair, pd, t1ce, t2 .*other cases have t2, t1, "):
        open_dataset(tmp_path, "folders", LABELS)


def test_folders_that_are_not_clear_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/ct.nii.gz", "a/liver_mask.nii.gz", "a/spleen_mask.nii.gz", "b/ct.nii.gz")
    with pytest.raises(UserError, match=r"/a: holds 2 labels \(liver_mask.nii.gz, spleen_mask"):
        open_dataset(tmp_path, labels=LABELS)
    shutil.rmtree(tmp_path / "a")
    touch(tmp_path, "a/ct.nii.gz", "a/label.nii.gz", "seg_3/seg_3_ct.nii.gz", "seg_3/seg_3_gt.nii.gz")
    assert cases(tmp_path) == {
        "a": (["a/ct.nii.gz"], "a/label.nii.gz"),
        "b": (["b/ct.nii.gz"], None),
        "seg_3": (["seg_3/seg_3_ct.nii.gz"], "seg_3/seg_3_gt.nii.gz"),
    }
    with pytest.raises(UserError, match=r"names no labels.*data\.labels"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "b")
    touch(tmp_path, "seg_4/seg_4_ct.nii.gz", "seg_4/seg_4_seg.nii.gz")  # the label's word is also in the case's name
    assert cases(tmp_path)["seg_4"] == (["seg_4/seg_4_ct.nii.gz"], "seg_4/seg_4_seg.nii.gz")


def test_a_case_with_one_image_has_the_channel_names_of_the_others(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p{i}/p{i}_mr_{name}.nii.gz" for i in (1, 2) for name in ("t1", "t2")), "p3/p3_mr_t2.nii.gz")
    dataset = open_dataset(tmp_path, labels=LABELS, missing_channels="zero")
    assert dataset.channels == ("t1", "t2")
    assert [path.name for path in dataset.training[2].images] == ["p3_mr_t2.nii.gz"]
    touch(tmp_path, "p4/p4_mr_t2_old.nii.gz")
    with pytest.raises(UserError, match=r"p4: holds the channels mr t2 old .*other cases have t1, t2"):
        open_dataset(tmp_path, labels=LABELS, missing_channels="zero")


def test_scouts_with_a_suffix_are_no_channels(tmp_path: Path) -> None:
    def scout(dataset: Any, index: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    volume = np.zeros(SHAPE, np.int16)
    for case in ("a", "b"):
        write_series(tmp_path / case / "SE0", volume[..., :1], change=scout, name=lambda index: f"IM{index}.dcm")
        for number, phase in enumerate(("arterial", "venous"), 1):
            folder = tmp_path / case / f"SE{number}"
            write_series(folder, volume, name=lambda index: f"IM{index}.dcm", description=phase)
    dataset = open_dataset(tmp_path, labels=LABELS)
    assert dataset.channels == ("se1", "se2")
    venous = open_dataset(tmp_path, labels=LABELS, readers=Readers(series="ven*"))
    assert [case.images for case in venous.training] == [(tmp_path / case / "SE2",) for case in ("a", "b")]


def test_images_beside_labels(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/a.nii.gz", "images/b_0000.nii.gz", "images/c.nii.gz", "labels/a.nii.gz", "labels/b-seg.nii.gz"
    )
    assert cases(tmp_path) == {
        "a": (["images/a.nii.gz"], "labels/a.nii.gz"),
        "b": (["images/b_0000.nii.gz"], "labels/b-seg.nii.gz"),
        "c": (["images/c.nii.gz"], None),
    }
    touch(tmp_path, "labels/d.nii.gz", "images/a.nii")
    with pytest.raises(UserError, match=r"images/a.nii.gz: is an image named a, as a.nii;"):
        open_dataset(tmp_path, labels=LABELS)
    with pytest.raises(UserError, match=r"labels/d.nii.gz: no image of images has this name \(d\)"):
        open_dataset(tmp_path, labels=LABELS)


def test_a_series_or_a_folder_of_images_is_no_data_set_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "p1/CT", np.zeros(SHAPE, np.int16))
    touch(tmp_path, "flat/a.nii.gz", "flat/a_seg.nii.gz")
    for folder, said in (
        ("p1/CT", "is one DICOM series, not a data set"),
        ("flat", "holds images (a.nii.gz, a_seg.nii.gz) and no list"),
    ):
        assert main(["check", str(tmp_path / folder)]) == 2
        output = capsys.readouterr()
        assert said in output.out + output.err
