"""The cases of a run: a pre-training takes all images but those that a segmentation is validated on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionseg import cli, train
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.data.formats.case import Case
from fusionseg.data.preprocessing import prepare
from fusionseg.runs.cases.datasets import open_run_datasets
from fusionseg.utils.errors import UserError

SWIN = {"name": "swin_unetr", "feature_size": 12}
MakeDataset = Callable[..., Path]


def config(root: Path, *, pretrain: bool = True, **data: Any) -> RunConfig:
    raw = {"model": SWIN, "data": {"root": str(root), "patch": [64, 64, 64], **data}}
    return validate({**raw, "pretrain": {}} if pretrain else raw)


@pytest.fixture
def scans(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Seven labelled cases, two without a label, a test image."""
    folder = make_dataset(tmp_path / "scans", cases=10, shape=(8, 8, 8))
    description = json.loads((folder / "dataset.json").read_text())
    description["test"] = [description["training"].pop()["image"]]
    for entry in description["training"][7:]:
        del entry["label"]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("fold", range(5))
def test_a_pretraining_holds_out_what_a_segmentation_validates_on(scans: Path, fold: int) -> None:
    (segmentation,) = open_run_datasets(config(scans, pretrain=False, fold=fold))
    (pretraining,) = open_run_datasets(config(scans, fold=fold))
    assert pretraining.validation == segmentation.validation
    names = {case.name for case in pretraining.cases}
    assert len(pretraining.cases) == len(names) == 10
    assert {case.name for case in segmentation.training} < {case.name for case in pretraining.training}


def test_without_any_label_the_images_are_dealt(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "scans", cases=5, shape=(8, 8, 8))
    description = json.loads((folder / "dataset.json").read_text())
    description["training"] = [entry["image"] for entry in description["training"]]
    (folder / "dataset.json").write_text(json.dumps(description))
    (source,) = open_run_datasets(config(folder))
    assert (len(source.training), len(source.validation)) == (4, 1)
    with pytest.raises(UserError, match="no labelled training cases"):
        open_run_datasets(config(folder, pretrain=False))


def test_each_further_set_has_its_own_preparation(make_dataset: MakeDataset, scans: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", shape=(8, 8, 8))
    also = [{"root": str(other), "intensity": {"mode": "window", "clip": [0, 300]}, "orientation": None}]
    first, second = open_run_datasets(config(scans, spacing=[2, 2, 2], intensity={"nonzero": True}, also=also))
    assert (first.data.intensity.nonzero, first.data.orientation) == (True, "RAS")
    assert second.data.intensity.clip == (0, 300)
    assert second.data.orientation is None
    assert second.data.spacing == (2, 2, 2)  # not given: as in `data`
    assert second.dataset.root == other


def test_all_data_sets_problems_are_listed(make_dataset: MakeDataset, tmp_path: Path) -> None:
    two_channels = make_dataset(tmp_path / "two", channels=2, shape=(8, 8, 8))
    first = make_dataset(tmp_path / "one", shape=(8, 8, 8))
    with pytest.raises(UserError) as caught:
        open_run_datasets(config(first, also=[{"root": str(two_channels)}, {"root": str(tmp_path / "nowhere")}]))
    text = "\n".join(caught.value.problems)
    assert "MR0, MR1" in text and str(tmp_path / "nowhere") in text


def test_a_start_opens_its_data_set_once_and_checks_each_file_once(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(balls, tmp_path, train={"steps": 1}, validate={"every": 1})
    (tmp_path / "tiny.yaml").write_text(dump_config(settings))
    assert cli.main(["prepare", "--config", str(tmp_path / "tiny.yaml")]) == 0
    opened: list[str] = []
    checked: list[str] = []
    open_dataset, current = prepare.open_dataset, prepare._current

    def counted_open(root: str, *arguments: Any, **options: Any) -> Any:
        opened.append(root)
        return open_dataset(root, *arguments, **options)

    def counted_check(root: Path, case: Case, *arguments: Any, **options: Any) -> Any:
        checked.append(case.name)
        return current(root, case, *arguments, **options)

    monkeypatch.setattr(prepare, "open_dataset", counted_open)
    monkeypatch.setattr(prepare, "_current", counted_check)
    assert train.main(["--config", str(tmp_path / "tiny.yaml")]) == 0
    assert opened == [str(balls)]
    assert sorted(checked) == [f"case_{index:03d}" for index in range(5)]
