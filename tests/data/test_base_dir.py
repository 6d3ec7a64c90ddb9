"""The base folder of a datalist: the setting, the key in the list, the option, and lists of another place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fusionseg
from fusionseg import cli
from fusionseg.config import RunConfig, validate
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.runs.run_config import config_hash
from fusionseg.utils.errors import UserError

TINY = (12, 12, 12)


@pytest.fixture
def lists(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """A folder `scans` with images, and a list of them in another folder."""
    root = make_dataset(tmp_path / "scans", cases=2, shape=TINY)
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").unlink()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/all.json").write_text(json.dumps(content))
    return tmp_path / "lists/all.json"


def configured(**data: str) -> RunConfig:
    return validate({"model": {"name": "unet", "channels": [4, 8]}, "data": data})


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_list_of_another_place_is_one_message(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        open_dataset(lists)
    (said,) = caught.value.problems
    assert f"none of its 2 images is in {lists.parent}" in said and "the first is imagesTr/case_000.nii.gz" in said
    assert "set data.base_dir to the folder" in said  # scans/ is beside the list's folder, not above it
    shutil.move(lists, lists.parent.parent / "scans/imagesTr/all.json")
    with pytest.raises(UserError, match=r"is in .*/scans: set data.base_dir=.*/scans \(--base-dir of a command"):
        open_dataset(lists.parent.parent / "scans/imagesTr/all.json")


def test_the_ways_to_name_the_folder(lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = lists.parent.parent / "scans"
    found = open_dataset(lists, base_dir=str(scans))
    assert found.training[1].images == (scans / "imagesTr/case_001.nii.gz",)
    assert found.root == lists.parent and found.training[1].label == scans / "labelsTr/case_001.nii.gz"
    assert fusionseg.open_dataset(lists, base_dir=scans) == found
    monkeypatch.chdir(scans.parent)  # a path on the command line starts at the working directory
    config = configured(root=str(lists), base_dir="scans")
    assert open_configured(config.data) == found
    change(lists, base_dir="../scans")  # a path in the list starts at the list
    assert [case.name for case in open_dataset(lists).training] == ["case_000", "case_001"]
    other = scans.parent / "copy"
    shutil.copytree(scans, other)
    assert open_dataset(lists, base_dir=str(other)).training[0].images[0].is_relative_to(other)


def test_a_wrong_folder_is_refused(lists: Path, tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"data.base_dir: .*/nowhere: is no folder; give the folder"):
        open_dataset(lists, base_dir=str(tmp_path / "nowhere"))
    change(lists, base_dir=3)
    with pytest.raises(UserError, match=r"all.json: base_dir: expected the path of a folder, got 3"):
        open_dataset(lists)
    nnunet = make_dataset(tmp_path / "Dataset001", cases=1, shape=TINY, layout="nnunet")
    with pytest.raises(UserError, match=r"data.base_dir: the nnU-Net layout has its files beside dataset.json"):
        open_dataset(nnunet, base_dir=str(tmp_path))


def test_the_key_changes_no_other_configuration(lists: Path) -> None:
    plain, moved = configured(root=str(lists)), configured(root=str(lists), base_dir="/moved")
    assert "base_dir" not in plain.to_dict()["data"]
    assert config_hash(plain) == config_hash(moved)  # a run resumes where its images have moved


def test_check_takes_the_folder(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = lists.parent.parent / "scans"
    assert cli.main(["check", str(lists), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert said.count("the folder at which its relative paths start") == 1
    for option in (["--base-dir", str(scans)], [f"data.base_dir={scans}"]):
        assert cli.main(["check", str(lists), "--workers", "1", *option]) == 0
        assert "2 cases, 0 errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"img": "a.nii.gz", "seg": "b.nii.gz"}, 'training[0] has no "image" (it has img, seg); give a path'),
        ({"image": "imagesTr/case_000.nii.gz", "mask": "b.nii.gz"}, 'rename it to "label"'),
    ],
)
def test_keys_of_other_programs_are_named(lists: Path, entry: dict[str, Any], said: str) -> None:
    change(lists, training=[entry], base_dir="../scans")
    with pytest.raises(UserError) as caught:
        open_dataset(lists)
    assert any(said in problem for problem in caught.value.problems)
    if "mask" in entry:
        assert any('the key "mask" of 1 cases of training names image files' in p for p in caught.value.problems)


def test_a_further_file_of_a_labelled_case_is_a_note(lists: Path) -> None:
    content = json.loads(lists.read_text())
    entries = [{**entry, "t2": "imagesTr/x.nii.gz"} for entry in content["training"]]
    change(lists, training=entries, base_dir="../scans")
    (note,) = open_dataset(lists).notes
    assert 'the key "t2" of 2 cases of training names image files and is not read' in note
