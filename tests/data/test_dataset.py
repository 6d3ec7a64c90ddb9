"""Layouts, folds and inputs: what is read, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from faults.catalogue import assert_seen

from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.formats.dataset import Case, Dataset, open_dataset
from fusionseg.data.splits.split import split_folds
from fusionseg.utils.errors import UserError


def touch(*paths: Path) -> None:
    """Files that are only looked at by name."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def msd(root: Path, names: tuple[str, ...] = ("b", "a"), **changes: Any) -> Path:
    """An MSD data set of empty files."""
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    touch(*(root / path for pair in pairs for path in pair.values()), root / "imagesTs/t.nii.gz")
    content = {
        "name": "toy",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "tumour"},
        "training": pairs,
        "test": ["./imagesTs/t.nii.gz"],
        **changes,
    }
    write(root / "dataset.json", {key: value for key, value in content.items() if value is not None})
    return root


def nnunet(root: Path, names: tuple[str, ...] = ("x_1", "x_2"), channels: int = 2, **changes: Any) -> Path:
    """An nnU-Net raw data set, version 2, of empty files."""
    for name in names:
        touch(*(root / f"imagesTr/{name}_{c:04d}.nii.gz" for c in range(channels)))
        touch(root / f"labelsTr/{name}.nii.gz")
    content = {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, "core": 1, "oedema": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
        **changes,
    }
    write(root / "dataset.json", {key: value for key, value in content.items() if value is not None})
    return root


def datalist(root: Path, content: dict[str, Any], files: tuple[str, ...] = ("a", "b", "c")) -> Path:
    touch(*(root / f"img/{n}.nii.gz" for n in files), *(root / f"lab/{n}.nii.gz" for n in files))
    return write(root / "folds.json", {"labels": {"0": "background", "1": "x"}, **content})


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"image": f"img/{name}.nii.gz", "label": f"lab/{name}.nii.gz", **more}


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(root, **options)
    return str(caught.value)


def names(cases: Any) -> list[str]:
    return [case.name for case in cases]


def test_msd(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path))
    assert (dataset.layout, dataset.name, dataset.channels) == ("msd", "toy", ("CT",))
    assert (dataset.labels, dataset.num_classes) == ({0: "background", 1: "tumour"}, 2)
    assert dataset.class_names == ("tumour",)
    assert names(dataset.training) == ["a", "b"] and names(dataset.testing) == ["t"]
    assert dataset.training[0] == Case("a", (tmp_path / "imagesTr/a.nii.gz",), tmp_path / "labelsTr/a.nii.gz")
    assert dataset.testing[0].label is None
    assert open_dataset(tmp_path / "dataset.json") == dataset


def test_msd_whose_cases_are_numbered_like_channels_stays_msd(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path, ("case_0000", "case_0001")))
    assert dataset.layout == "msd" and names(dataset.training) == ["case_0000", "case_0001"]


def test_nnunet_v2_with_two_channels(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs/y_0000.nii.gz", tmp_path / "imagesTs/y_0001.nii.gz")
    touch(tmp_path / "imagesTr/._x_1_0000.nii.gz", tmp_path / "labelsTr/.DS_Store")
    dataset = open_dataset(nnunet(tmp_path))
    assert (dataset.layout, dataset.channels) == ("nnunet", ("MR0", "MR1"))
    assert dataset.labels == {0: "background", 1: "core", 2: "oedema"}
    assert names(dataset.training) == ["x_1", "x_2"] and names(dataset.testing) == ["y"]
    assert [image.name for image in dataset.training[0].images] == ["x_1_0000.nii.gz", "x_1_0001.nii.gz"]
    assert dataset.training[0].label == tmp_path / "labelsTr/x_1.nii.gz"


def test_nnunet_v1_is_told_from_msd_by_its_files(tmp_path: Path) -> None:
    listed = [{"image": "./imagesTr/x_1.nii.gz", "label": "./labelsTr/x_1.nii.gz"}]
    nnunet(
        tmp_path,
        ("x_1",),
        channels=1,
        channel_names=None,
        file_ending=None,
        training=listed,
        modality={"0": "CT"},
        labels={"0": "background", "1": "tumour"},
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.num_classes) == ("nnunet", ("CT",), 2)
    assert names(dataset.training) == ["x_1"]


def test_nnunet_v2_that_lists_its_files(tmp_path: Path) -> None:
    touch(tmp_path / "other/p.nii.gz", tmp_path / "other/p_mask.nii.gz")
    listed = {"p": {"images": ["other/p.nii.gz"], "label": "other/p_mask.nii.gz"}}
    dataset = open_dataset(nnunet(tmp_path, (), channels=1, dataset=listed, numTraining=1))
    assert dataset.training[0].images == (tmp_path / "other/p.nii.gz",)


def test_datalist_with_folds(tmp_path: Path) -> None:
    content = {"training": [entry("a", fold=0), entry("b", fold=2)], "testing": [{"image": "img/c.nii.gz"}]}
    source = datalist(tmp_path, content)
    dataset = open_dataset(source)
    assert open_dataset(tmp_path) == dataset
    assert (dataset.layout, dataset.name, dataset.channels) == ("datalist", "folds", ("image",))
    assert [case.fold for case in dataset.training] == [0, 2] and names(dataset.testing) == ["c"]
    assert names(split_folds(dataset.training, 5, 2, seed=0)[1]) == ["b"]
    with pytest.raises(UserError, match=r"data.fold=1.*\[0, 2\]"):
        split_folds(dataset.training, 5, 1, seed=0)
    with pytest.raises(UserError, match="none is left to train on"):
        split_folds(dataset.training[:1], 5, 0, seed=0)


def test_datalist_with_validation_list_validates_on_it_in_fold_0(tmp_path: Path) -> None:
    source = datalist(tmp_path, {"training": [entry("a"), entry("b")], "validation": [entry("c")]})
    train, validation = split_folds(open_dataset(source).training, 5, 0, seed=0)
    assert names(train) == ["a", "b"] and names(validation) == ["c"]


def test_datalist_names_its_cases_by_what_their_files_share(tmp_path: Path) -> None:
    files = ("p1/BraTS_1_t1.nii.gz", "p1/BraTS_1_t2.nii.gz", "u/image.nii.gz", "v/image.nii.gz")
    touch(*(tmp_path / file for file in files))
    two = {"training": [{"image": list(files[:2])}]}
    dataset = open_dataset(write(tmp_path / "two.json", two))
    assert names(dataset.training) == ["BraTS_1"] and dataset.channels == ("channel0", "channel1")
    assert dataset.labels == {0: "background"}  # no label anywhere: enough for pre-training
    one = {"training": [{"image": file} for file in files[2:]]}
    assert names(open_dataset(write(tmp_path / "one.json", one)).training) == ["u_image", "v_image"]


def test_channels_of_an_unnamed_4d_image_come_from_its_header(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.uint8), np.eye(4)), tmp_path / "q.nii.gz")
    source = write(tmp_path / "list.json", {"training": [{"image": "q.nii.gz"}]})
    assert open_dataset(source).channels == ("channel0", "channel1", "channel2")


def test_unlabelled_training_cases_are_kept(tmp_path: Path) -> None:
    listed = [{"image": "imagesTr/a.nii.gz"}, {"image": "imagesTr/._b.nii.gz"}, "imagesTr/b.nii.gz"]
    dataset = open_dataset(msd(tmp_path, training=listed))
    assert [(case.name, case.label) for case in dataset.training] == [("a", None), ("b", None)]


def test_given_labels_win_over_the_files(tmp_path: Path) -> None:
    msd(tmp_path, labels=None)
    given = LabelSettings(labels=("background", "artery"))
    assert "data.labels=[background,tumour]" in refusal(tmp_path)
    assert open_dataset(tmp_path, labels=given).class_names == ("artery",)
    assert open_dataset(msd(tmp_path), labels=given).class_names == ("artery",)


@pytest.mark.fault("file-missing")
def test_missing_files_are_all_listed_up_to_a_cap(tmp_path: Path) -> None:
    msd(tmp_path, tuple(f"c{i:02d}" for i in range(30)))
    for i in range(3):
        (tmp_path / f"imagesTr/c{i:02d}.nii.gz").unlink()
    (tmp_path / "labelsTr/c07.nii.gz").unlink()
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert len(caught.value.problems) == 4
    assert_seen("file-missing", str(caught.value))
    assert all("file missing" in problem and str(tmp_path) in problem for problem in caught.value.problems)
    assert len(open_dataset(tmp_path, require_files=False).training) == 30
    for file in (tmp_path / "imagesTr").iterdir():
        file.unlink()
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert len(caught.value.problems) == 21 and "... and 11 more" in caught.value.problems[-1]


@pytest.mark.parametrize(
    "entry", [{"images": [1], "label": "p.nii.gz"}, {"images": ["p.nii.gz"], "label": ["p.nii.gz"]}]
)
def test_nnunet_v2_list_without_file_names(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"dataset\.p: expected file names, got .*; correct the entry"):
        open_dataset(nnunet(tmp_path, dataset={"p": entry}))


def test_nnunet_faults(tmp_path: Path) -> None:
    nnunet(tmp_path)
    touch(tmp_path / "imagesTr/x_1_0002.nii.gz", tmp_path / "labelsTr/orphan.nii.gz")
    (tmp_path / "imagesTr/x_2_0001.nii.gz").unlink()
    said = refusal(tmp_path)
    assert "x_1 has 3 channel files, dataset.json names 2 channels" in said
    assert "x_2_0001.nii.gz: file missing" in said and "orphan_0000.nii.gz: file missing" in said
    assert "numTraining is 2, but there are 3" in said
    assert len(open_dataset(tmp_path, require_files=False).faults) == 1
    touch(tmp_path / "imagesTr/plain.nii.gz")
    assert "plain.nii.gz: has no channel number" in refusal(tmp_path)
    assert "file_ending is '.png'" in refusal(nnunet(tmp_path / "png", file_ending=".png"))
    write(tmp_path / "empty/dataset.json", {"channel_names": {"0": "CT"}})
    assert "imagesTr: no such folder" in refusal(tmp_path / "empty")


def test_faulty_lists(tmp_path: Path) -> None:
    twice = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2
    assert "2 cases are named a" in refusal(msd(tmp_path / "twice", training=twice))
    wrong = [{"label": "x"}, {"image": "imagesTr/a.nii", "fold": -1}, {"image": "a.nii", "label": ["b.nii"]}]
    said = refusal(msd(tmp_path / "wrong", training=wrong))
    assert 'training[0] has no "image"' in said and '"fold" is -1' in said and '"label" is not a path' in said
    assert "training is not a list" in refusal(msd(tmp_path / "dict", training={"a": "b"}))
    assert "no case is listed" in refusal(msd(tmp_path / "none", training=[], test=[]))
    assert 'no "training" list' in refusal(msd(tmp_path / "key", training=None, test=None))
    assert "a.png" in refusal(msd(tmp_path / "png", training=[{"image": "a.png"}]))
    assert "channels are" in refusal(msd(tmp_path / "channels", modality={"0": "CT", "2": "PET"}))
    some = {"training": [entry("a", fold=0), entry("b")]}
    assert "1 of 2 training cases state no fold (b)" in refusal(datalist(tmp_path / "some", some))
    both = {"training": [entry("a", fold=0)], "validation": [entry("b")]}
    assert "keep one of the two" in refusal(datalist(tmp_path / "both", both))


def test_unusable_roots(tmp_path: Path) -> None:
    assert "does not exist; expected a folder with dataset.json" in refusal(tmp_path / "nowhere")
    assert "holds no .json file; expected" in refusal(tmp_path)
    assert "dataset.json: missing" in refusal(tmp_path, layout="msd")
    assert "did you mean 'nnunet'" in refusal(tmp_path, layout="nnUnet")
    text = tmp_path / "notes.txt"
    text.touch()
    assert "not a .json file" in refusal(text)
    write(tmp_path / "a.json", '{"training": [\n  {"image": }]}')
    assert "a.json: line 2, column 13" in refusal(tmp_path)
    write(tmp_path / "b.json", "[1]")
    assert "several datalists (a.json, b.json)" in refusal(tmp_path)
    assert "holds a list" in refusal(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b'{"name": "\xff"}')
    assert "not UTF-8" in refusal(tmp_path / "b.json")


def cases(count: int) -> list[Case]:
    return [Case(f"c{i:02d}", (Path("x.nii"),), None) for i in range(count)]


def test_every_case_validates_in_exactly_one_fold() -> None:
    validated: list[str] = []
    for fold in range(5):
        train, validation = split_folds(cases(23), 5, fold, seed=3)
        assert len(validation) in (4, 5) and sorted(names(train + validation)) == names(cases(23))
        assert names(train) == sorted(names(train))
        validated += names(validation)
    assert sorted(validated) == names(cases(23))


def test_the_split_depends_on_seed_and_names_alone() -> None:
    split = split_folds(cases(23), 5, 0, seed=0)
    assert split == split_folds(cases(23)[::-1], 5, 0, seed=0) != split_folds(cases(23), 5, 0, seed=1)
    # Written down: a change here changes the folds of everyone's experiments.
    assert names(split_folds(cases(6), 3, 0, seed=0)[1]) == ["c03", "c04"]


@pytest.mark.parametrize(("folds", "fold"), [(0, 0), (1, 1), (5, 5), (5, -1), (40, 0)])
def test_impossible_folds(folds: int, fold: int) -> None:
    with pytest.raises(UserError, match=r"data\.folds?"):
        split_folds(cases(23), folds, fold, seed=0)


@pytest.mark.real_data
def test_real_data(real_data: Path) -> None:
    hippocampus: Dataset = open_dataset(real_data / "hippocampus")
    assert (len(hippocampus.training), hippocampus.class_names) == (200, ("Anterior", "Posterior"))
    assert [len(part) for part in split_folds(hippocampus.training, 5, 0, seed=0)] == [160, 40]
    sarcoma = open_dataset(real_data / "sarcoma_ct")
    assert (len(sarcoma.training), sarcoma.channels, sarcoma.layout) == (12, ("CT",), "msd")


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, make_dataset) -> None:
    root = make_dataset(tmp_path / "d", cases=3, layout="nnunet")
    for folder, name in (("imagesTr", "case_001_0000"), ("labelsTr", "case_001")):
        other = name.replace("case", "caf\udce9")
        (root / folder / f"{name}.nii.gz").rename(root / folder / f"{other}.nii.gz")
    for require_files in (True, False):
        with pytest.raises(UserError, match=r"caf\\xe9_001_0000.nii.gz': the name is not UTF-8; rename the file"):
            open_dataset(root, require_files=require_files)
