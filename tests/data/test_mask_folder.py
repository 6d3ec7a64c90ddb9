"""Labels in several files: a folder with a mask for each class, as TotalSegmentator writes it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import preparing
import pytest

from fusionseg.config import RunConfig
from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.checks.dataset_check import check_dataset
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.data.formats.mask_folder import MaskFolder
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import UserError

SHAPE = (9, 8, 7)
AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
COUNTED = np.arange(504, dtype=np.int16).reshape(SHAPE)
CLASSES = ("spleen", "aorta", "kidney_left")  # by the values of `write`; the data set sorts them by name


def write(root: Path, cases: int = 2) -> dict[str, np.ndarray]:
    """Write cases with a mask for each of CLASSES; return the label of each, 1 in the first class."""
    rng, labels = np.random.default_rng(0), {}
    for case in range(cases):
        folder = root / f"s{case:04d}"
        (folder / "segmentations").mkdir(parents=True)
        label = labels[folder.name] = rng.integers(0, 4, SHAPE)
        nibabel.save(nibabel.Nifti1Image(rng.normal(0, 200, SHAPE).astype(np.int16), AFFINE), folder / "ct.nii.gz")
        for value, name in enumerate(CLASSES, 1):
            save(folder, name, (label == value).astype(np.uint8))
    return labels


def save(folder: Path, name: str, mask: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "segmentations" / f"{name}.nii.gz")


def faults(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Name of a case -> code and message of its error."""
    return {error.case: (error.code, error.message) for error in check_dataset(dataset, workers=1).errors}


def test_masks_become_one_label(tmp_path: Path) -> None:
    labels = write(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.labels == {0: "background", 1: "aorta", 2: "kidney_left", 3: "spleen"}
    assert faults(dataset) == {}
    assert dataset.channels == ("image",)
    for case in dataset.training:
        read = dataset.readers.read(case.label)
        assert np.array_equal(read.voxels, np.array([0, 3, 1, 2])[labels[case.name]])
        assert np.array_equal(read.affine, AFFINE)
        assert [file.name for file in dataset.readers.files(case.label)] == [
            "aorta.nii.gz", "kidney_left.nii.gz", "spleen.nii.gz"
        ]  # fmt: skip
        assert pickle.loads(pickle.dumps(case.label)).values == {"aorta": 1, "kidney_left": 2, "spleen": 3}


def test_classes_are_chosen_by_the_names_of_the_masks(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    labels = write(tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path, data={"classes": {"kidneys": ["kidney_left"]}})
    preparing.run(config)
    store = preparing.opened(config)
    assert store.scheme.names == ("background", "kidneys")
    for case, label in labels.items():
        assert store.cases[case].class_voxels == ((1, *[(label == 3).sum()] * 3),)


def test_a_changed_mask_is_prepared_again(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    write(tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path)
    preparing.run(config)
    before = preparing.opened(config).cases
    save(tmp_path / "data/s0001", "aorta", np.zeros(SHAPE, np.uint8))
    preparing.run(config)
    after = preparing.opened(config).cases
    assert before["s0001"].classes == (1, 2, 3) and after["s0001"].classes == (2, 3)
    assert after["s0000"] == before["s0000"]


def test_one_mask_in_some_cases_and_several_in_others(tmp_path: Path) -> None:
    write(tmp_path)
    for name in CLASSES[1:]:
        (tmp_path / f"s0001/segmentations/{name}.nii.gz").unlink()
    code, message = faults(open_dataset(tmp_path))["s0001"]
    assert (code, message) == (
        "missing",
        "cannot be read: lacks the mask of aorta, kidney_left, which other cases have",
    )


def test_a_single_mask_everywhere_is_a_label_file(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("*/segmentations/*"):
        if path.name != "spleen.nii.gz":
            path.unlink()
    dataset = open_dataset(tmp_path, labels=LabelSettings(("background", "spleen")))
    assert not any(isinstance(case.label, MaskFolder) for case in dataset.training)
    assert faults(dataset) == {}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda folder: save(folder, "aorta", np.ones(SHAPE, np.uint8)), "label-value", "voxels are in"),
        (lambda folder: save(folder, "aorta", COUNTED), "label-value", "several values"),
        (lambda folder: save(folder, "spleen", np.zeros((9, 8, 6), np.uint8)), "label-shape", "9x8x6"),
        (lambda folder: save(folder, "spleen", np.zeros(SHAPE, np.uint8), np.eye(4)), "label-affine", "another grid"),
        (lambda folder: (folder / "segmentations/spleen.nii.gz").write_bytes(b""), "truncated", "it is empty"),
    ],
    ids=["overlap", "values", "shape", "affine", "empty"],
)  # fmt: skip
def test_masks_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: Callable[[Path], object], code: str, message: str
) -> None:
    write(tmp_path)
    change(tmp_path / "s0001")
    found = faults(open_dataset(tmp_path))
    assert list(found) == ["s0001"]
    assert found["s0001"][0] == code and message in found["s0001"][1]


def test_a_mask_may_have_any_value_inside(tmp_path: Path) -> None:
    labels = write(tmp_path)
    save(tmp_path / "s0000", "aorta", np.where(labels["s0000"] == 2, 255, 0).astype(np.float32))
    dataset = open_dataset(tmp_path)
    assert np.array_equal(dataset.readers.read(dataset.training[0].label).voxels == 1, labels["s0000"] == 2)


def test_names_beside_those_of_the_masks_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=re.escape("data.labels: the masks in")):
        open_dataset(tmp_path, labels=LabelSettings(("background", "liver")))


def test_a_plain_folder_is_no_label(tmp_path: Path) -> None:
    write(tmp_path)
    assert not Readers().reads_folder(tmp_path / "s0000/segmentations")
