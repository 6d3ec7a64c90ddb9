"""Nothing is scored as a new case that a network was trained on: evaluation, prediction, resuming, init_from."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel
import pytest
import torch

import fusionseg.cli
import fusionseg.train
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.submission import decide_submissions
from fusionseg.cluster.sweep import Sweep, SweepRun
from fusionseg.config import RunConfig, dump_config, load_config
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.preprocessing.store import SourceFile
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

Result = tuple[int, str]
SHORT = ("train.steps=1", "validate.every=1", "checkpoint.every=1")


class Program:
    """The program in this process: exit status, and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], config: Path) -> None:
        self.capsys, self.config = capsys, config

    def train(self, run: Path, *arguments: object) -> Result:
        place = (f"output={run.parent}", f"name={run.name}", f"data.prepared={run.parent / 'prepared'}")
        return self._call(fusionseg.train.main, "--config", self.config, *place, *SHORT, *arguments)

    def __call__(self, *arguments: object) -> Result:
        return self._call(fusionseg.cli.main, *arguments)

    def _call(self, work: Callable[..., int], *arguments: object) -> Result:
        self.capsys.readouterr()
        status = work([str(argument) for argument in arguments])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out + said.err


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Program:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(tmp_path / "data", tmp_path)))
    return Program(capsys, config)


@pytest.fixture(scope="session")
def begun(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A data set of five cases, and a run on it; to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(balls, folder / "data")
    steps = {"train": {"steps": 1}, "validate": {"every": 1}, "checkpoint": {"every": 1}}
    config = folder / "tiny.yaml"
    config.write_text(dump_config(tiny_config(folder / "data", folder, name="run", **steps)))
    assert fusionseg.train.main(["--config", str(config), f"data.prepared={folder / 'prepared'}"]) == 0
    return folder / "data", folder / "run"


@pytest.fixture
def data(begun: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(begun[0], tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(begun: tuple[Path, Path], data: Path, tmp_path: Path) -> Path:
    """A run on `data`, which has done one step of one."""
    shutil.copytree(begun[1], tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text().replace(str(begun[0].parent), str(tmp_path))
    (tmp_path / "run/config.yaml").write_text(text)
    return tmp_path / "run"


def split_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "split.json").read_text())
    return found


def names(run: Path, part: str) -> list[str]:
    return [case["name"] for case in split_of(run)[part]]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def drop_end_record(run: Path) -> None:
    """Leave the run as if it had been killed before it recorded its end: a start goes on with it."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"end"' not in line))


def edit(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((data / "dataset.json").read_text())
    change(content)
    write_json(data / "dataset.json", content)


def add_copy(data: Path, source: str, name: str) -> None:
    """The image and the label of a case under another name, in another compression."""
    for part in ("imagesTr", "labelsTr"):
        raw = gzip.decompress((data / part / f"{source}.nii.gz").read_bytes())
        (data / part / f"{name}.nii.gz").write_bytes(gzip.compress(raw, 1))
    entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    edit(data, lambda content: content["training"].append(entry))


def rename(data: Path, before: str, after: str) -> None:
    for part in ("imagesTr", "labelsTr"):
        (data / part / f"{before}.nii.gz").rename(data / part / f"{after}.nii.gz")
    write_json(data / "dataset.json", json.loads((data / "dataset.json").read_text().replace(before, after)))


def change_voxel(path: Path, value: int) -> None:
    file = nibabel.load(path)
    array = file.get_fdata()
    array[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(array.astype(file.get_data_dtype()), file.affine), path)


# -- the record --------------------------------------------------------------------------------------------------


def test_a_run_records_what_it_trains_and_validates_on(run: Path) -> None:
    split = split_of(run)
    assert sorted(names(run, "training") + names(run, "validation")) == [f"case_00{k}" for k in range(5)]
    assert (split["fold"], split["folds"], split["stated"], split["seen"], split["trained_on"]) == (0, 5, False, [], [])
    assert split["channels"] == ["MR0"] and split["labels"] == {"0": "background", "1": "ball1", "2": "ball2"}
    assert len({case[part] for case in split["training"] for part in ("image", "label")}) == 8
    for name in ("best", "last", "step_00000001"):
        assert torch.load(run / f"checkpoints/{name}.pt", weights_only=True)["split"] == split
    assert "trained_on" not in records(run, "val")[0]


def test_a_resume_keeps_to_the_record(program: Program, data: Path, run: Path) -> None:
    drop_end_record(run)
    before = split_of(run)
    validated = names(run, "validation")[0]
    source = data / f"imagesTr/{validated}.nii.gz"
    source.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))  # the same image
    shutil.copy(data / f"imagesTr/{validated}.nii.gz", data / "imagesTr/broken.nii.gz")
    change_voxel(data / "imagesTr/broken.nii.gz", 7)
    shutil.copy(data / f"labelsTr/{validated}.nii.gz", data / "labelsTr/broken.nii.gz")
    add_copy(data, "broken", "added")
    edit(data, capital_names)  # the same names
    (run / "split.json").write_text('{"fold": 0')
    status, said = program.train(run)
    assert status == 2 and "split.json: cannot be read" in said
    assert "delete it: the run's checkpoints hold the same" in said

    (run / "split.json").unlink()
    state = torch.load(run / "checkpoints/step_00000001.pt", weights_only=True)
    (run / "checkpoints/step_00000001.pt").unlink()  # as if it had been killed after its first checkpoint
    torch.save({**state, "step": 0, "history": [], "best": None}, run / "checkpoints/step_00000000.pt")
    status, said = program.train(run)
    assert status == 0 and "resuming from" in said
    assert "has 1 labelled cases that this run does not use" in said and "(added)" in said
    assert split_of(run) == before
    assert all(record["dice_per_class"].keys() == {"ball1", "ball2"} for record in records(run, "val"))


def swap_labels(content: dict[str, Any]) -> None:
    content["labels"] = {"0": "background", "1": "ball2", "2": "ball1"}


def rename_channel(content: dict[str, Any]) -> None:
    content["modality"] = {"0": "CT"}


def capital_names(content: dict[str, Any]) -> None:
    content["labels"] = {"0": "Nothing", "1": "Ball1", "2": "BALL2"}


def drop_case(content: dict[str, Any]) -> None:
    content["training"] = content["training"][1:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_labels, "class 1 was ball1, is ball2 now, class 2 was ball2, is ball1 now"),
        (rename_channel, "channel 0 was MR0, is CT now"),
        (drop_case, "cases that are missing now, or have no label now (case_000)"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_a_resume_on_other_data_is_refused(
    program: Program, data: Path, run: Path, change: Callable[[dict[str, Any]], None], said: str, dry: bool
) -> None:
    edit(data, change)
    drop_end_record(run)
    metrics = (run / "metrics.jsonl").read_bytes()
    status, text = program.train(run, *(["--dry-run"] if dry else []))
    assert status == 2 and said in text
    assert (run / "metrics.jsonl").read_bytes() == metrics


# -- training and validation apart -------------------------------------------------------------------------------


def test_one_image_on_both_sides_is_refused_unless_it_is_meant(program: Program, data: Path, tmp_path: Path) -> None:
    for k in range(5):  # whatever the deal, some copy is on the other side
        add_copy(data, f"case_00{k}", f"copy_{k}")
    status, said = program.train(tmp_path / "both")
    assert status == 2 and "hold the same image (balls/" in said and "data.folds=1" in said
    assert not (tmp_path / "both/checkpoints").exists()
    assert program.train(tmp_path / "both", "--dry-run")[0] == 2

    status, said = program.train(tmp_path / "both", "data.folds=1", "data.train_cases=3")
    assert status == 0
    assert "training and validation are on the same cases" in said
    assert "(not of new cases: 3 of 3 were trained on)" in said
    assert records(tmp_path / "both", "val")[0]["trained_on"] == 3
    assert names(tmp_path / "both", "training") == names(tmp_path / "both", "validation")

    status, said = program("evaluate", tmp_path / "both", "--device", "cpu")
    assert status == 2 and "all 3 cases were trained on" in said and "--include-trained" in said
    assert not (tmp_path / "both/evaluation").exists()


@pytest.mark.parametrize("folds", [5, 2])
def test_the_refusal_of_too_few_cases_names_a_value_that_works(
    program: Program, data: Path, tmp_path: Path, folds: int
) -> None:
    edit(data, lambda content: content.update(training=content["training"][:1]))
    status, said = program.train(tmp_path / "one", f"data.folds={folds}")
    assert status == 2 and "has only 1 case to split" in said and "data.folds=1" in said
    assert program.train(tmp_path / "one", "data.folds=1")[0] == 0


def test_stated_folds_may_be_more_than_data_folds(program: Program, data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "dataset.json").read_text())
    training = [{**entry, "fold": 2 * k} for k, entry in enumerate(content["training"])]
    write_json(data / "list.json", {**content, "training": training})
    root = f"data.root={data / 'list.json'}"
    assert program.train(tmp_path / "run8", root, "data.fold=8")[0] == 0
    assert names(tmp_path / "run8", "validation") == ["case_004"]
    status, said = program.train(tmp_path / "run7", root, "data.fold=7")
    assert status == 2 and "[0, 2, 4, 6, 8]" in said


# -- first weights -----------------------------------------------------------------------------------------------


def test_weights_that_have_seen_validation_cases(program: Program, data: Path, run: Path, tmp_path: Path) -> None:
    held_out = names(run, "validation")
    start = (f"init_from={run}", "data.fold=1")
    status, said = program.train(tmp_path / "second", *start)
    assert status == 2 and "was trained on 1 of the 1 validation cases" in said and "init_from_seen=mark" in said
    assert not (tmp_path / "second").exists()
    assert program.train(tmp_path / "second", *start, "--dry-run")[0] == 2
    assert program.train(tmp_path / "same_fold", f"init_from={run}")[0] == 0
    settings = load_config(run / "config.yaml", [*start, "name=swept"])
    sweep = Sweep(tmp_path, tmp_path, [SweepRun(settings, {})])
    with pytest.raises(UserError, match=r"swept: init_from=.* was trained on 1 of the 1 validation cases"):
        decide_submissions(sweep, ClusterConfig(cluster="local"))

    status, said = program.train(tmp_path / "second", *start, "init_from_seen=mark")
    assert status == 0 and "the results are marked" in said
    split = split_of(tmp_path / "second")
    assert split["trained_on"] == names(tmp_path / "second", "validation") != held_out
    assert [ancestor["path"] for ancestor in split["seen"]] == [str(run / "checkpoints/best.pt")]
    assert records(tmp_path / "second", "val")[0]["trained_on"] == 1

    # The second has not trained on the cases of its fold, but the first has.
    status, said = program.train(tmp_path / "third", f"init_from={tmp_path / 'second'}", "data.fold=1")
    assert status == 2 and f"{run / 'checkpoints/best.pt'} was trained on 1" in said

    status, said = program("evaluate", tmp_path / "second", "--device", "cpu")
    assert status == 0 and "not scores of new cases: 1 of the 1 cases were trained on" in said
    summary = json.loads((tmp_path / "second/evaluation/summary.json").read_text())
    assert summary["trained_on"] == 1
    assert {row["trained_on"] for row in rows(tmp_path / "second/evaluation")} == {"yes"}


def test_weights_that_do_not_say_are_recorded_as_unknown(
    program: Program, data: Path, run: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "foreign.pt"
    torch.save(torch.load(run / "checkpoints/best.pt", weights_only=True)["model"], weights)
    status, said = program.train(tmp_path / "second", f"init_from={weights}", "data.fold=1")
    assert status == 0 and f"{weights} does not say what it was trained on" in said
    assert split_of(tmp_path / "second")["seen"] == [{"path": str(weights), "images": None}]


# -- evaluation --------------------------------------------------------------------------------------------------


def test_an_evaluation_is_of_the_recorded_cases(program: Program, data: Path, run: Path) -> None:
    (validated,) = names(run, "validation")
    for override in ("data.fold=1", "data.folds=2", "seed=1", "data.train_cases=1"):
        status, said = program("evaluate", run, override, "--device", "cpu")
        assert status == 2 and override.split("=")[0] in said and "would make it another run" in said

    def to_tests(content: dict[str, Any]) -> None:
        content["test"] = [entry for entry in content["training"] if "zzz" in entry["image"]]
        content["training"] = [entry for entry in content["training"] if "zzz" not in entry["image"]]

    rename(data, validated, "zzz")
    edit(data, to_tests)
    status, said = program("evaluate", run, "--device", "cpu")
    assert status == 0 and f"the validation case {validated} is called zzz now" in said
    assert {row["case"] for row in rows(run / "evaluation")} == {"zzz"}
    shutil.rmtree(run / "evaluation")
    change_voxel(data / "labelsTr/zzz.nii.gz", 1)
    status, said = program("evaluate", run, "--device", "cpu")
    assert status == 2 and f"{validated}: the label has changed" in said
    change_voxel(data / "imagesTr/zzz.nii.gz", 9)
    status, said = program("evaluate", run, "--device", "cpu")
    assert status == 2 and f"{validated}: is gone" in said
    assert not (run / "evaluation").exists()


def test_trained_cases_of_a_data_set_are_named_and_no_mean_counts_them(
    program: Program, data: Path, run: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    (validated,) = names(run, "validation")
    trained = names(run, "training")
    other = make_dataset(tmp_path / "other", cases=1, classes=3, seed=5)
    for k, name in enumerate([*trained[:2], validated]):
        for part in ("imagesTr", "labelsTr"):
            shutil.copy(data / part / f"{name}.nii.gz", other / part / f"other{k}.nii.gz")
        entry = {"image": f"imagesTr/other{k}.nii.gz", "label": f"labelsTr/other{k}.nii.gz"}
        key = "test" if k == 0 else "training"  # a labelled test case counts too
        edit(other, lambda content, key=key, entry=entry: content[key].append(entry))  # type: ignore[misc]
    status, said = program("evaluate", run, "--dataset", other, "--device", "cpu")
    assert status == 0
    assert "2 of 4 cases were trained on (other0, other1)" in said
    (folder,) = run.glob("evaluation_*")
    assert {row["case"] for row in rows(folder) if row["trained_on"] == "no"} == {"case_000", "other2"}
    assert {row["case"] for row in rows(folder) if row["trained_on"] == "yes"} == {"other0", "other1"}
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["cases"], summary["left_out"]) == (2, ["other0", "other1"])
    for label, entry in summary["classes"].items():
        new = [row["dice"] for row in rows(folder) if row["label"] == label and row["trained_on"] == "no"]
        assert entry["dice"]["mean"] == pytest.approx(fmean(float(dice) for dice in new if dice))

    status, said = program("evaluate", run, "--dataset", other, "--include-trained", "--device", "cpu")
    assert status == 0 and "not scores of new cases: 2 of the 4 cases were trained on" in said
    (marked,) = set(run.glob("evaluation_*")) - {folder}
    assert {row["case"] for row in rows(marked) if row["trained_on"] == "yes"} == {"other0", "other1"}

    edit(other, lambda content: content.update(training=content["training"][1:2], test=[]))
    status, said = program("evaluate", run, "--dataset", other, "--device", "cpu")
    assert status == 2 and "all 1 cases were trained on (other1)" in said

    status, said = program("predict", run, "--input", other / "imagesTr", "--output", tmp_path / "m", "--device", "cpu")
    assert status == 0 and "2 of 4 images were trained on (other0, other1)" in said


def test_a_member_that_was_trained_on_the_cases_is_refused_by_content(
    program: Program, data: Path, run: Path, tmp_path: Path
) -> None:
    """Of the same fold settings, on a data set in which the validation case has another name."""
    (validated,) = names(run, "validation")
    shutil.copytree(data, tmp_path / "renamed")
    other = names(run, "training")[0]
    for before, after in ((validated, "tmp"), (other, validated), ("tmp", other)):
        rename(tmp_path / "renamed", before, after)
    assert program.train(tmp_path / "member", f"data.root={tmp_path / 'renamed'}")[0] == 0
    assert names(tmp_path / "member", "validation") == [validated]
    status, said = program("evaluate", run, "--with", tmp_path / "member", "--device", "cpu")
    assert status == 2 and f"was trained on 1 of the 1 cases to be evaluated ({validated})" in said


# -- checkpoints of versions that did not record the split -------------------------------------------------------


def make_old(run: Path, data: Path) -> None:
    """The run as an earlier version left it: a hash of names and files, and no split."""
    by_name = {case.name: case for case in open_dataset(data).training}
    text = ""
    for name in names(run, "training") + names(run, "validation"):
        case = by_name[name]
        files = "".join(SourceFile.read(path).sha256 for path in (*case.images, case.label) if path is not None)
        text += name + hashlib.sha256(files.encode()).hexdigest()[:16]
    for path in (run / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        del state["split"]
        state["config"]["data"]["root"] = str(data)
        path.unlink()
        torch.save({**state, "data": hashlib.sha256(text.encode()).hexdigest()[:16]}, path)
    (run / "split.json").unlink()


def test_an_old_run_is_verified(program: Program, data: Path, run: Path, tmp_path: Path) -> None:
    validated = names(run, "validation")
    make_old(run, data)
    status, said = program("evaluate", run, "--device", "cpu")
    assert status == 0
    assert {row["case"] for row in rows(run / "evaluation")} == set(validated)
    drop_end_record(run)
    status, said = program.train(run)
    assert status == 0 and "resuming from" in said

    add_copy(data, "case_000", "added")
    status, said = program("evaluate", run, "--device", "cpu")
    assert status == 2 and "did not record what it was trained on" in said
    status, said = program("evaluate", run, "--dataset", data, "--device", "cpu")
    assert status == 2 and "--include-trained" in said
    status, said = program("evaluate", run, "--dataset", data, "--include-trained", "--device", "cpu")
    assert status == 0 and "whether 6 of the 6 cases were trained on is unknown" in said
