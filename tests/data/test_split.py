"""Every way of asking for a split: training and validation hold different images, and all who ask get the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.submission import decide_submissions
from fusionseg.cluster.sweep import Sweep, SweepRun
from fusionseg.config import RunConfig, validate
from fusionseg.data.formats.dataset import Case, open_dataset
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import prepare
from fusionseg.data.splits.split import DatasetSplit
from fusionseg.inference.evaluation.cases import CasesToScore, validation_cases
from fusionseg.runs.cases.datasets import RunDataset, open_run_datasets, split_cases
from fusionseg.runs.cases.opening import log_split, open_cases, settle_split
from fusionseg.runs.cases.split import Split, write_split
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.runs.run_config import write_run_config
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

NUMBERS = count()
SWIN = {"name": "swin_unetr", "feature_size": 12}
Entry = dict[str, Any]


def volume(path: Path, seed: int | None = None) -> str:
    """A volume of its own; the name of the file within its data set."""
    rng = np.random.default_rng(next(NUMBERS) if seed is None else seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = rng.normal(0, 100, (4, 5, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    return f"{path.parent.name}/{path.name}"


def label(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((4, 5, 6), np.uint8)
    values[1:3, 1:3, 1:3] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return f"{path.parent.name}/{path.name}"


def entries(root: Path, prefix: str, labelled: int, unlabelled: int = 0) -> list[Entry]:
    """Cases of a list, those without a label last."""
    found: list[Entry] = []
    for k in range(labelled + unlabelled):
        entry = {"image": volume(root / f"img/{prefix}{k}.nii")}
        found.append(entry if k >= labelled else {**entry, "label": label(root / f"lab/{prefix}{k}.nii")})
    return found


def listed(root: Path, content: Entry, name: str = "dataset.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({"labels": {"0": "background", "1": "x"}, **content}))
    return root


def msd(root: Path) -> Path:
    content = {"modality": {"0": "CT"}, "training": entries(root, "a", 7, 2)}
    return listed(root, {**content, "test": [entry["image"] for entry in entries(root, "t", 0, 2)]})


def nnunet(root: Path, *, tests: bool, version: int = 2) -> Path:
    for k in range(7):
        volume(root / f"imagesTr/a{k}_0000.nii.gz")
        label(root / f"labelsTr/a{k}.nii.gz")
    for k in range(3 if tests else 0):
        volume(root / f"imagesTs/t{k}_0000.nii.gz")
        if k:
            label(root / f"labelsTs/t{k}.nii.gz")
    if version == 1:
        training = [{"image": f"./imagesTr/a{k}.nii.gz", "label": f"./labelsTr/a{k}.nii.gz"} for k in range(7)]
        return listed(root, {"modality": {"0": "CT"}, "training": training, "numTraining": 7})
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    return listed(root, {**described, "numTraining": 7})


def datalist(root: Path, *, folds: bool = False, validation: bool = False) -> Path:
    training = entries(root, "a", 7, 0 if validation else 2)
    if folds:
        training = [{**entry, "fold": k % 5} for k, entry in enumerate(training)]
    content: Entry = {"training": training, "testing": entries(root, "t", 2, 1)}
    if validation:
        content["validation"] = entries(root, "v", 3, 1)
    return listed(root, content, "list.json")


DATASETS: dict[str, Callable[[Path], Path]] = {
    "msd": msd,
    "nnunet_v1": lambda root: nnunet(root, tests=True, version=1),
    "nnunet_v2": lambda root: nnunet(root, tests=False),
    "nnunet_v2_tests": lambda root: nnunet(root, tests=True),
    "datalist": datalist,
    "datalist_folds": lambda root: datalist(root, folds=True),
    "datalist_validation": lambda root: datalist(root, validation=True),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("splits")
    return {name: make(folder / name) for name, make in DATASETS.items()}


def config(root: Path, *, pretrain: bool = False, **data: Any) -> RunConfig:
    raw = {"model": SWIN, "data": {"root": str(root), "patch": [64, 64, 64], "workers": 1, **data}}
    return validate({**raw, "pretrain": {}} if pretrain else raw)


def sides(split: DatasetSplit | RunDataset) -> tuple[list[Case], list[Case]]:
    return split.training, split.validation


def images(opened: RunDataset, side: str) -> set[str]:
    return {digests.image for digests in digests_of(getattr(opened, side), opened.dataset).values()}


@pytest.mark.parametrize("name", DATASETS)
def test_training_and_validation_are_disjoint_and_the_same_whoever_asks(made: dict[str, Path], name: str) -> None:
    root = made[name]
    dataset = open_dataset(root)
    tests = {
        content.image for content in digests_of([case for case in dataset.testing if case.label], dataset).values()
    }
    labelled = {case.name for case in dataset.training if case.label is not None}
    folds = sorted({case.fold for case in dataset.training if case.fold is not None and case.label}) or range(5)
    for seed in (0, 3):
        validated: list[str] = []
        for fold in folds:
            settings = {"fold": fold, "fold_seed": seed}
            (training,) = open_run_datasets(config(root, **settings))
            (pretraining,) = open_run_datasets(config(root, pretrain=True, **settings))
            assert pretraining.validation == training.validation != []
            assert not images(pretraining, "training") & images(training, "validation")
            assert not images(pretraining, "training") & tests
            assert not images(training, "training") & images(training, "validation")
            assert {case.name for case in training.cases} == labelled
            assert {case.name for case in training.training} <= {case.name for case in pretraining.training}
            assert sides(split_cases(training)) == sides(training)
            validated += [case.name for case in training.validation]
        assert sorted(validated) == sorted(labelled)


def test_a_pretraining_takes_what_has_no_label(made: dict[str, Path]) -> None:
    extra = {name: set[str]() for name in DATASETS}
    for name, root in made.items():
        (training,), (pretraining,) = open_run_datasets(config(root)), open_run_datasets(config(root, pretrain=True))
        extra[name] = {case.name for case in pretraining.training} - {case.name for case in training.training}
    assert extra["msd"] == {"a7", "a8", "t0", "t1"}
    assert extra["nnunet_v1"] == extra["nnunet_v2_tests"] == {"t0"}
    assert extra["nnunet_v2"] == set()
    assert extra["datalist"] == {"a7", "a8", "t2"}
    assert extra["datalist_folds"] == {"a7", "a8", "t2"}  # their folds are 2 and 3, and 0 is validated on
    assert extra["datalist_validation"] == {"t2"}  # v3, without a label, is in the validation list
    (other_fold,) = open_run_datasets(config(made["datalist_folds"], pretrain=True, fold=2))
    assert "a7" not in {case.name for case in other_fold.cases}


@pytest.mark.parametrize("labelled", ["training", "validation"])
def test_a_pretraining_where_one_side_has_no_labels(tmp_path: Path, labelled: str) -> None:
    """No segmentation can be split so; a pre-training takes the lists as they are."""
    lists = {}
    for part in ("training", "validation"):
        count = 3 if part == labelled else 0
        lists[part] = entries(tmp_path, part[0], count, 3 - count)
    root = listed(tmp_path, lists, "list.json")
    (source,) = open_run_datasets(config(root, pretrain=True))
    assert [case.name for case in source.training] == ["t0", "t1", "t2"]
    assert [case.name for case in source.validation] == ["v0", "v1", "v2"]
    with pytest.raises(UserError, match=r"data\.fold=0"):
        open_run_datasets(config(root))


def test_labelled_test_cases_that_are_left_out_of_a_pretraining_are_announced(
    made: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(made["datalist"], pretrain=True).model_copy(update={"output": str(tmp_path)})
    caplog.set_level("INFO", "fusionseg")
    log_split(open_cases(settings, RunFolder(run_folder_of(settings))), begin(settings))
    assert "2 labelled test cases are never trained on" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": []}, "cases or data sets are missing"),
        ({"datasets": ["other"]}, "cases or data sets are missing"),
        (
            {"validation": [{"name": "a", "dataset": "list", "image": "not a digest", "label": None}]},
            "validation.0.image",
        ),
        ({"labels": ["x"]}, "labels"),
        ({"fold": "first"}, "fold"),
    ],
)
def test_a_damaged_record_is_refused(made: dict[str, Path], tmp_path: Path, change: dict[str, Any], said: str) -> None:
    settings = config(made["datalist"]).model_copy(update={"output": str(tmp_path)})
    begin(settings)
    file = RunFolder(run_folder_of(settings)).paths.split
    write_json(file, {**json.loads(file.read_text()), **change})
    with pytest.raises(UserError, match=said) as caught:
        open_cases(settings, RunFolder(run_folder_of(settings)))
    assert "split.json: damaged record" in str(caught.value) and "delete it" in str(caught.value)


def test_further_data_sets_are_split_in_the_same_way(made: dict[str, Path], tmp_path: Path) -> None:
    also = [{"root": str(made["nnunet_v2_tests"])}]
    for fold in range(5):
        first, second = open_run_datasets(config(made["msd"], pretrain=True, fold=fold, also=also))
        (alone,) = open_run_datasets(config(made["nnunet_v2_tests"], fold=fold))
        assert second.validation == alone.validation
        train = images(first, "training") | images(second, "training")
        assert not train & (images(first, "validation") | images(second, "validation"))


@pytest.mark.parametrize("name", ["nnunet_v2_tests", "datalist_folds", "datalist_validation"])
def test_resume_evaluation_and_sweep_use_the_split_that_was_recorded(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    root = tmp_path / name
    shutil.copytree(made[name], root)
    settings = config(root, train_cases=4).model_copy(update={"output": str(tmp_path / "runs")})
    split = begin(settings)
    names = [[case.name for case in part] for part in (split.training, split.validation)]
    sweep = Sweep(tmp_path, tmp_path / "runs", [SweepRun(settings, {})])
    add_cases(root)

    (resumed,) = open_cases(settings, RunFolder(run_folder_of(settings))).datasets
    assert [[case.name for case in part] for part in (resumed.training, resumed.validation)] == names
    assert sides(split_cases(resumed)) != sides(resumed)
    chosen = cases_to_score(settings, split)
    assert [case.name for case in chosen.cases] == names[1]
    assert set(chosen.trained_on.values()) == {"no"}
    (planned,) = decide_submissions(sweep, ClusterConfig(cluster="local"))
    assert planned.action == "continue"

    gone = names[1][0]
    remove_case(root, gone)
    for ask in (
        lambda: open_cases(settings, RunFolder(run_folder_of(settings))),
        lambda: decide_submissions(sweep, ClusterConfig(cluster="local")),
        lambda: cases_to_score(settings, split),
    ):
        with pytest.raises(UserError, match=gone):
            ask()


class Member:
    """The part of a trained network that an evaluation looks at."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.path = Path("best.pt")


def cases_to_score(settings: RunConfig, split: Split) -> CasesToScore:
    member: Any = Member(split)
    return validation_cases(settings.data, settings.output, [member], include_trained=False)


def begin(settings: RunConfig) -> Split:
    """Prepare a run and leave what a training leaves: its split beside a checkpoint."""
    folder = RunFolder(run_folder_of(settings))
    run = open_cases(settings, folder)
    (opened,) = run.datasets
    report = prepare(opened.data, opened.dataset, opened.store)
    split = settle_split(settings, run, [report.store])
    folder.paths.checkpoints.mkdir(parents=True)
    (folder.paths.checkpoints / "step_00000001.pt").touch()
    write_run_config(folder.path, settings)
    write_split(folder.path, split)
    assert Split.from_json(json.loads(folder.paths.split.read_text()), "") == split
    return split


def add_cases(root: Path) -> None:
    """Twenty cases more, so that the deal of the data set as it is now is another."""
    file = next(root.glob("*.json"))
    content = json.loads(file.read_text())
    if (root / "imagesTr").is_dir():
        for k in range(20):
            volume(root / f"imagesTr/0new{k}_0000.nii.gz")
            label(root / f"labelsTr/0new{k}.nii.gz")
        content["numTraining"] += 20
    else:
        new = entries(root, "0new", 20)
        stated = "fold" in content["training"][0]
        content["training"] += [{**entry, "fold": 0} if stated else entry for entry in new]
        if stated:
            content["training"].reverse()
    write_json(file, content)


def remove_case(root: Path, name: str) -> None:
    file = next(root.glob("*.json"))
    content = json.loads(file.read_text())
    if (root / "imagesTr").is_dir():
        (root / f"imagesTr/{name}_0000.nii.gz").unlink()
        (root / f"labelsTr/{name}.nii.gz").unlink()
        content["numTraining"] -= 1
    for part in ("training", "validation"):
        if part in content:
            content[part] = [entry for entry in content[part] if Path(entry["image"]).stem != name]
    write_json(file, content)
