"""Entries of a data set that nobody reads are named, by check and at the start of a training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionseg import cli, train
from fusionseg.config import RunConfig, dump_config
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.inputs.inputs import find_inputs
from fusionseg.utils.errors import UserError

TINY = (10, 9, 8)
Make = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, make_dataset: Make) -> Path:
    return make_dataset(tmp_path / "Task95_lists", cases=4, shape=TINY)


def change(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((root / "dataset.json").read_text())
    edit(content)
    (root / "dataset.json").write_text(json.dumps(content))


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


def only_tests(content: dict[str, Any], name: str) -> None:
    """Call the training list otherwise, and leave test images that are read."""
    rename(content, "training", name)
    content["test"] = [{"image": "imagesTr/case_000.nii.gz"}]


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "label": (
        'key "lable" of training[1] is not read (did you mean "label"?)',
        lambda c: rename(c["training"][1], "label", "lable"),
    ),
    "labels of all": (
        'key "Label" of training[0] and 3 more',
        lambda c: [rename(entry, "label", "Label") for entry in c["training"]],
    ),
    "image": (
        'key "imge" of training[2] is not read (did you mean "image"?)',
        lambda c: rename(c["training"][2], "image", "imge"),
    ),
    "fold": (
        'key "folds" of training[0] is not read (did you mean "fold"?)',
        lambda c: c["training"][0].update(folds=1),
    ),
    "training": ('the key "trainig" is not read (did you mean "training"?)', lambda c: only_tests(c, "trainig")),
    "validation": ('the key "validaton" is not read', lambda c: c.update(validaton=c["training"][:1])),
    "other list": ('the 4 cases under "train" are not read', lambda c: only_tests(c, "train")),
    "modality": ('the key "modalty" is not read', lambda c: rename(c, "modality", "modalty")),
    "numTraining": ("numTraining is 260, but there are 4 training cases", lambda c: c.update(numTraining=260)),
    "numTraining as text": ("numTraining is 260, but there are 4", lambda c: c.update(numTraining="260")),
    "numTest": ("numTest is 3, but there are 0 test cases", lambda c: c.update(numTest=3)),
    "300 labels": (
        "there are 300 classes (expected 255 at most",
        lambda c: c.update(labels={str(k): f"r{k}" for k in range(300)}),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_a_start_and_check_reports_them(root: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    said, edit = FAULTS[fault]
    change(root, edit)
    with pytest.raises(UserError) as caught:
        open_dataset(root)
    assert sum(said in problem for problem in caught.value.problems) == 1, caught.value.problems
    assert cli.main(["check", str(root), "--workers", "1"]) in (1, 2)
    captured = capfd.readouterr()
    assert " ".join((captured.out + captured.err).split()).count(said.split("?")[0].split(";")[0]) == 1
    assert "Traceback" not in captured.err


def with_validation(content: dict[str, Any], stated: int) -> None:
    content["validation"], content["numTraining"] = content["training"][3:], stated
    del content["training"][3:]


HARMLESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "keys of the Decathlon": lambda c: c.update(relase="1.0", licence="CC", tensorImageSize="4D", numTraining=4),
    "keys of others": lambda c: [entry.update(id=1, pseudo="x", spacing=[1, 1, 1]) for entry in c["training"]],
    "no test is stated": lambda c: c.update(numTest=0, test=["imagesTs/t.nii.gz"]),
    "training and validation counted together": lambda c: with_validation(c, 4),
    "training counted alone": lambda c: with_validation(c, 3),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_no_fault(root: Path, case: str) -> None:
    (root / "imagesTs").mkdir()
    shutil.copy(root / "imagesTr/case_000.nii.gz", root / "imagesTs/t.nii.gz")
    change(root, lambda c: (c.update(test=["imagesTs/t.nii.gz"]), HARMLESS[case](c)))
    dataset = open_dataset(root)
    assert (dataset.faults, dataset.notes) == ((), ())


def test_paths_of_windows_are_found_or_reported(root: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        first, second = content["training"][:2]
        first["image"] = first["image"].replace("/", "\\")
        first["label"] = first["label"].replace("/", "\\")
        second["image"] = ".\\imagesTr\\gone.nii.gz"

    change(root, edit)
    dataset = open_dataset(root, require_files=False)
    assert [case.name for case in dataset.training] == ["case_000", "case_002", "case_003", "gone"]
    assert dataset.training[0].label == root / "labelsTr/case_000.nii.gz"
    with pytest.raises(UserError, match=r"imagesTr/gone.nii.gz: file missing, case gone needs it"):
        open_dataset(root)


def test_notes_are_said_once_by_check_and_at_the_start(
    root: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    image = (root / "imagesTr/case_000.nii.gz").read_bytes()
    for name in ("imagesTr/extra.nii.gz", "labelsTr/extra.NII.GZ", "imagesTr/case_009.tif", "imagesTr/.hidden.nii.gz"):
        (root / name).write_bytes(image)
    (root / "imagesTr/._case_000.nii.gz").touch()
    change(root, lambda c: c["training"].append({"image": "imagesTr/._case_000.nii.gz"}))
    change(root, lambda c: c["training"][3].pop("label"))
    notes = [
        "1 listed file is hidden and left out (._case_000.nii.gz)",
        f"{root}/imagesTr: 1 file is not listed in dataset.json and left out (extra.nii.gz)",
        f"{root}/imagesTr: 1 file is of an unknown format and left out (case_009.tif)",
        f"{root}/labelsTr: 2 files are not listed in dataset.json and left out (case_003.nii.gz, extra.NII.GZ)",
        "1 of 4 training cases has no label and is left out: case_003",
    ]
    assert cli.main(["check", str(root), "--workers", "1"]) == 0
    out = capfd.readouterr().out
    assert [out.count(note) for note in notes] == [1] * len(notes)
    config = tmp_path / "config.yaml"
    steps = {"data": {"folds": 3, "patch": [8, 8, 8]}, "train": {"steps": 1}, "validate": {"every": 1}}
    config.write_text(dump_config(tiny_config(root, tmp_path, **steps)))
    assert train.main(["--config", str(config)]) == 0
    err = capfd.readouterr().err
    assert [err.count(note) for note in notes] == [1] * len(notes)
    assert all(line.startswith("warning: ") for line in err.splitlines() if " left out" in line)


def test_suffixes_in_capitals_are_read(root: Path, tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (root / part / "case_000.nii.gz").rename(root / part / "case_000.NII.GZ")
        change(
            root, lambda c: c["training"][0].update(image="imagesTr/case_000.NII.GZ", label="labelsTr/case_000.NII.GZ")
        )
    dataset = open_dataset(root)
    assert dataset.notes == () and dataset.training[0].name == "case_000"
    assert "case_000" in [case.name for case in find_inputs(root / "imagesTr").cases]
    assert find_inputs(root / "imagesTr/case_000.NII.GZ").cases[0].name == "case_000"


def test_endings_that_differ_in_an_nnunet_folder(tmp_path: Path, make_dataset: Make) -> None:
    root = make_dataset(tmp_path / "Dataset095", cases=2, shape=TINY, layout="nnunet")
    (root / "labelsTr/case_000.nii.gz").rename(root / "labelsTr/case_000.mha")
    (root / "imagesTr/case_001_0000.nii.gz").rename(root / "imagesTr/case_001_0000.nii")
    with pytest.raises(UserError) as caught:
        open_dataset(root)
    said = str(caught.value)
    assert "labelsTr/case_000.mha: file_ending is .nii.gz" in said
    assert "imagesTr/case_001_0000.nii: file_ending is .nii.gz" in said


def test_a_key_that_stands_twice_is_refused(root: Path) -> None:
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace('"1": "ball1"', '"1": "ball1", "1": "cube"'))
    with pytest.raises(UserError, match=r"dataset.json: '1' appears several times in one object"):
        open_dataset(root)


def test_listed_cases_of_nnunet_are_looked_at_too(tmp_path: Path, make_dataset: Make) -> None:
    root = make_dataset(tmp_path / "Dataset095", cases=2, shape=TINY, layout="nnunet")
    listed = {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "lable": f"labelsTr/{name}.nii.gz"}
        for name in ("case_000", "case_001")
    }
    change(root, lambda c: c.update(dataset=listed))
    with pytest.raises(
        UserError, match=r'key "lable" of dataset\[case_000\] and 1 more is not read \(did you mean "label"'
    ):
        open_dataset(root)


def test_an_nnunet_data_set_without_its_tests_may_be_trained_on(tmp_path: Path, make_dataset: Make) -> None:
    root = make_dataset(tmp_path / "Dataset095", cases=2, shape=TINY, layout="nnunet")
    change(root, lambda c: c.update(numTest=5))
    assert open_dataset(root).faults == ()
    (root / "imagesTs").mkdir()
    assert "numTest is 5, but there are 0 test cases" in open_dataset(root, require_files=False).faults[0]
