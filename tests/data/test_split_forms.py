"""Every form of a split on every layout: no name, group or image on both sides, and each case validates once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from faults.catalogue import assert_seen

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.submission import decide_submissions
from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import prepare
from fusionseg.data.splits.folds import draw_folds
from fusionseg.data.splits.label_classes import occurring_classes
from fusionseg.runs.cases.datasets import RunDataset, open_run_datasets
from fusionseg.runs.cases.opening import open_cases, settle_split
from fusionseg.runs.cases.split import Split, write_split
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

SHAPE = (4, 5, 6)
NAMES = [f"p{patient}_{scan}" for patient in range(6) for scan in range(2)]  # six patients, two scans each
SITES = {name: "ABC"[int(name[1]) % 3] for name in NAMES}
COLUMNS = {
    name: {"site": SITES[name], "stage": "late" if number % 4 == 3 else "early", "share": number + 1}
    for number, name in enumerate(NAMES)
}
RARE = {"p0_0", "p2_1", "p5_0"}
"""Cases whose label has the class 2."""
LAYOUTS = ("msd", "nnunet", "datalist", "folders")
Data = dict[str, Any]


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def make(root: Path, layout: str, *, tests: bool = False) -> Path:
    """A data set of NAMES. The columns are in the entries of a datalist, and in cases.csv of the other layouts."""
    rng = np.random.default_rng(0)
    image, mask = {
        "nnunet": ("imagesTr/{}_0000.nii", "labelsTr/{}.nii"),
        "folders": ("{}/image.nii", "{}/label.nii"),
    }.get(layout, ("imagesTr/{}.nii", "labelsTr/{}.nii"))
    for name in NAMES:
        label = np.zeros(SHAPE, np.uint8)
        label[1, 1:3] = 1
        label[2, 1:3] = 2 * (name in RARE)
        save(root / image.format(name), rng.normal(0, 100, SHAPE).astype(np.float32))
        save(root / mask.format(name), label)
    if tests:
        save(root / "imagesTs/p5_2.nii", rng.normal(0, 100, SHAPE).astype(np.float32))
    labels = {"background": 0, "organ": 1, "rare": 2}
    if layout == "nnunet":
        content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii", "numTraining": len(NAMES)}
    else:
        content = {"modality": {"0": "CT"}, "labels": {str(value): name for name, value in labels.items()}}
        content["training"] = [
            {"image": f"imagesTr/{name}.nii", "label": f"labelsTr/{name}.nii"}
            | (COLUMNS[name] if layout == "datalist" else {})
            for name in NAMES
        ]
        content["test"] = ["imagesTs/p5_2.nii"] if tests else []
    if layout != "folders":
        write_json(root / ("list.json" if layout == "datalist" else "dataset.json"), content)
    if layout != "datalist":
        rows = [
            ",".join(["case", *COLUMNS[NAMES[0]]]),
            *(f"{n},{','.join(map(str, COLUMNS[n].values()))}" for n in NAMES),
        ]
        (root / "cases.csv").write_text("\n".join(rows) + "\n")
    write_json(root / "lists/folds.json", nnunet_folds())
    return root


def nnunet_folds() -> list[dict[str, list[str]]]:
    """Three folds of two patients each."""
    held_out = [NAMES[4 * fold : 4 * fold + 4] for fold in range(3)]
    return [{"train": [n for n in NAMES if n not in val], "val": list(val)} for val in held_out]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {layout: make(folder / layout, layout) for layout in LAYOUTS}


def config(root: Path, *, pretrain: bool = False, name: str = "run", **data: Any) -> RunConfig:
    columns = ("group", "stratify", "weight")
    named = [data[key] for key in columns if data.get(key) is not None]
    table = {"table": "cases.csv"} if (root / "cases.csv").exists() and {"site", "stage", "share"} & set(named) else {}
    raw = {
        "model": {"name": "swin_unetr", "feature_size": 12},
        "name": name,
        "output": str(root.parent / "runs"),
        "data": {"root": str(root), "patch": [64, 64, 64], "workers": 1, **table, **data},
    }
    if not [*root.glob("*.json")]:  # the layout without a list
        raw["data"]["labels"] = ["background", "organ", "rare"]
    return validate({**raw, "pretrain": {}} if pretrain else raw)


def opened(root: Path, **data: Any) -> RunDataset:
    (one,) = open_run_datasets(config(root, **data))
    return one


def sides(one: RunDataset) -> tuple[list[str], list[str]]:
    return names(one.training), names(one.validation)


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


BY_PATIENT = {"group": r"^(p\d+)_"}
FORMS: dict[str, tuple[Data, tuple[Any, ...]]] = {
    "drawn": ({}, (0, 1, 2, 3, 4)),
    "patients": ({**BY_PATIENT, "folds": 3}, (0, 1, 2)),
    "sites": ({"group": "site", "folds": 3}, (0, 1, 2)),
    "two sites of three": ({"group": "site", "folds": 2}, (0, 1)),
    "stages": ({"stratify": "stage", "folds": 3}, (0, 1, 2)),
    "classes": ({"stratify": "classes", "folds": 3}, (0, 1, 2)),
    "patients and stages": ({**BY_PATIENT, "stratify": "stage", "folds": 3}, (0, 1, 2)),
    "patients and classes": ({**BY_PATIENT, "stratify": "classes", "folds": 3}, (0, 1, 2)),
    "splits_final.json": ({"splits": "lists/folds.json"}, (0, 1, 2)),
    "splits_final.json and patients": ({"splits": "lists/folds.json", **BY_PATIENT}, (0, 1, 2)),
    "one site": ({"group": "site"}, ("A", "B", "C")),
    "one patient": (BY_PATIENT, tuple(f"p{k}" for k in range(6))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_sides_are_disjoint_and_every_case_validates_once(made: dict[str, Path], layout: str, form: str) -> None:
    data, folds = FORMS[form]
    plain = opened(made[layout])
    digest = {name: found.image for name, found in digests_of(plain.cases, plain.dataset).items()}
    assert len(set(digest.values())) == len(NAMES)
    validated: list[str] = []
    for fold in folds:
        one = opened(made[layout], **data, fold=fold)
        training, validation = names(one.training), names(one.validation)
        assert sorted(training + validation) == NAMES and training and validation
        assert not {digest[name] for name in training} & {digest[name] for name in validation}
        if "group" in data:
            assert not {case.group for case in one.training} & {case.group for case in one.validation}
        validated += validation
        (pretraining,) = open_run_datasets(config(made[layout], pretrain=True, **data, fold=fold))
        assert (pretraining.training, pretraining.validation) == (one.training, one.validation)
    assert sorted(validated) == NAMES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_does_not_depend_on_the_order_of_the_files(made: dict[str, Path], layout: str, tmp_path: Path) -> None:
    root = make(tmp_path / layout, layout)
    for file in root.glob("*.json"):
        content = json.loads(file.read_text())
        if "training" in content:
            write_json(file, {**content, "training": content["training"][::-1]})
    if layout != "datalist":
        header, *rows = (root / "cases.csv").read_text().splitlines()
        (root / "cases.csv").write_text("\r\n".join([header, *rows[::-1]]).replace(",", ";"))
    write_json(root / "lists/folds.json", [{side: fold[side][::-1] for side in fold} for fold in nnunet_folds()])
    for data, folds in FORMS.values():
        before, now = (opened(place, **data, fold=folds[1]) for place in (made[layout], root))
        assert sides(before) == sides(now)


def test_seeds_draw_other_folds_of_groups_and_strata(made: dict[str, Path]) -> None:
    for data in ({**BY_PATIENT}, {"stratify": "stage"}, {**BY_PATIENT, "stratify": "classes"}):
        drawn = {tuple(names(opened(made["msd"], **data, folds=3, fold_seed=s).validation)) for s in range(6)}
        assert len(drawn) > 1


def test_strata_and_sizes_are_balanced(made: dict[str, Path]) -> None:
    for seed in range(5):
        folds = [opened(made["nnunet"], stratify="classes", folds=3, fold=fold, fold_seed=seed) for fold in range(3)]
        assert [len(RARE & set(names(one.validation))) for one in folds] == [1, 1, 1]
        assert [len(one.validation) for one in folds] == [4, 4, 4]
        folds = [opened(made["nnunet"], stratify="stage", folds=3, fold=fold, fold_seed=seed) for fold in range(3)]
        late = [Counter(case.stratum for case in one.validation)[("late",)] for one in folds]
        assert late == [1, 1, 1]


def test_groups_of_many_sizes_give_folds_of_similar_sizes() -> None:
    sizes = [40, 13, 9, 8, 8, 7, 5, 4, 3, 3]
    cases = [Case(f"{g}_{k}", (), None, group=f"g{g}") for g, size in enumerate(sizes) for k in range(size)]
    found = draw_folds(cases, 3, 0)
    assert sorted(Counter(found.values()).values()) == [29, 31, 40]
    single = draw_folds([Case(f"c{k}", (), None, stratum=(str(k % 5),)) for k in range(23)], 4, 1)
    assert sorted(Counter(single.values()).values()) == [5, 6, 6, 6]


def test_groups_of_one_case_are_drawn_as_cases_without_groups() -> None:
    cases = [Case(f"c{k}", (), None) for k in range(11)]
    alone = [Case(case.name, (), None, group=case.name) for case in cases]
    assert draw_folds(cases, 4, 7) == draw_folds(alone[::-1], 4, 7)


# -- fold: all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fold_all_trains_on_every_case(made: dict[str, Path], layout: str) -> None:
    one = opened(made[layout], fold="all")
    assert (names(one.training), one.validation, one.trains_on_validation) == (NAMES, [], False)
    assert names(opened(made[layout], fold="all", train_cases=5).training) == NAMES[:5]
    (pretraining,) = open_run_datasets(config(made[layout], pretrain=True, fold="all"))
    assert (names(pretraining.training), pretraining.validation) == (NAMES, [])


# -- pre-training ------------------------------------------------------------------------------------------------


def test_a_pretraining_leaves_out_images_without_label_of_a_group_that_validates(tmp_path: Path) -> None:
    root = make(tmp_path / "msd", "msd", tests=True)
    for fold, has_test in (("p5", False), ("p4", True)):
        (one,) = open_run_datasets(config(root, pretrain=True, fold=fold, **BY_PATIENT))
        assert ("p5_2" in names(one.training)) == has_test
        assert not {case.group for case in one.training} & {case.group for case in one.validation}


def test_a_data_set_of_a_pretraining_without_the_group_is_trained_on(made: dict[str, Path]) -> None:
    also = [{"root": str(made["msd"])}]
    first, second = open_run_datasets(config(made["datalist"], pretrain=True, group="site", fold="B", also=also))
    assert (len(first.validation), names(second.training), second.validation) == (4, NAMES, [])
    with pytest.raises(UserError, match=r"data\.fold=D: none of the 2 data sets has such a group"):
        open_run_datasets(config(made["datalist"], pretrain=True, group="site", fold="D", also=also))


# -- the file of nnU-Net -----------------------------------------------------------------------------------------


def test_a_file_beside_the_data_set_is_used_unless_other_folds_are_asked_for(tmp_path: Path) -> None:
    root = make(tmp_path / "list", "datalist")
    drawn = names(opened(root).validation)
    write_json(root / "splits_final.json", nnunet_folds())
    one = opened(root, fold=1)
    assert names(one.validation) == NAMES[4:8] and one.method.name == "file"
    assert "splits_final.json: states the folds" in one.notes[0]
    for data in ({"folds": 3}, {"fold_seed": 1}, BY_PATIENT, {"stratify": "stage"}):
        other = opened(root, **data)
        assert other.method.name == "drawn" and "is not used, because data." in other.notes[0]
    assert (names(opened(root, splits="none").validation), opened(root, splits="none").notes) == (drawn, ())
    entries = json.loads((root / "list.json").read_text())
    stated = [{**entry, "fold": number % 2} for number, entry in enumerate(entries["training"])]
    write_json(root / "list.json", {**entries, "training": stated})
    assert opened(root).method.name == "stated"
    assert names(opened(root, splits="splits_final.json").validation) == NAMES[:4]


def test_cases_that_a_file_lists_on_no_side_are_named(made: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "folds.json"
    write_json(file, [{"train": NAMES[:6], "val": NAMES[6:8]}])
    one = opened(made["msd"], splits=str(file))
    assert names(one.training) == NAMES[:6] and names(one.unused) == NAMES[8:]
    assert "lists 4 labelled cases on no side (p4_0, p4_1, p5_0, p5_1)" in one.notes[0]
    write_json(file, [{"train": NAMES[:6], "val": NAMES[6:]}, {"train": NAMES[6:], "val": NAMES[:6]}] * 2)
    assert "6 cases are validated by several folds (p3_0," in opened(made["msd"], splits=str(file)).notes[0]


def folds_with(change: Callable[[list[Any]], Any]) -> Any:
    content: list[Any] = nnunet_folds()
    return change(content) or content


FILES: dict[str, tuple[Any, str]] = {
    "no list": ({"train": [], "val": []}, 'expected a list of {"train"'),
    "no fold": ([], "expected a list of"),
    "another key": (folds_with(lambda c: c[1].update(test=[])), r"fold 1: expected \{.train.: "),
    "no names": (folds_with(lambda c: c[2].update(val=[3])), "fold 2: expected"),
    "an empty side": (folds_with(lambda c: c[0].update(val=[])), "fold 0: val is empty"),
    "both sides": (folds_with(lambda c: c[0]["train"].append("p0_0")), "p0_0 are in train and in val"),
    "twice": (folds_with(lambda c: c[2]["val"].append("p5_1")), "fold 2: val lists p5_1 several times"),
    "unknown": (folds_with(lambda c: c[0]["val"].append("p9_9")), "p9_9 are not in the data set"),
    "a test case": (folds_with(lambda c: c[0]["val"].append("p5_2")), "p5_2 are not labelled training cases"),
    "a divided patient": (folds_with(lambda c: c[0]["train"].append(c[0]["val"].pop())), "p1: p1_1 and p1_0"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_wrong_file_is_refused(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path], fault: str) -> None:
    content, said = FILES[fault]
    root = make(tmp_path_factory.mktemp("wrong") / "msd", "msd", tests=True)
    write_json(root / "wrong.json", content)
    with pytest.raises(UserError, match=said):
        opened(root, splits="wrong.json", **BY_PATIENT)


def test_a_file_that_cannot_be_read_or_lacks_the_fold_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[")
    for splits, said in (
        ("nowhere.json", r"data\.splits=nowhere\.json: there is no such file \(expected .*msd/nowhere\.json and "),
        (str(tmp_path / "bad.json"), "is not JSON"),
    ):
        with pytest.raises(UserError, match=said):
            opened(made["msd"], splits=splits)
    with pytest.raises(UserError, match=r"data\.fold=3: .*has 3 folds \(from 0 to 2\)"):
        opened(made["msd"], splits="lists/folds.json", fold=3)


# -- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_fill_the_fields_of_the_cases(made: dict[str, Path], layout: str) -> None:
    one = opened(made[layout], group="site", weight="share", stratify="stage", folds=3)
    found = {case.name: (case.group, case.weight, case.stratum) for case in one.cases}
    assert found == {n: (c["site"], float(c["share"]), (c["stage"],)) for n, c in COLUMNS.items()}
    assert {(case.group, case.weight) for case in opened(made[layout]).cases} == {(None, None)}


WRONG: dict[str, tuple[Data, str]] = {
    "no column": ({"group": "patient"}, r"data\.group=patient: there is no such column in .*site"),
    "near": ({"group": "sites"}, "did you mean site"),
    "no match": ({"group": r"^(p[0-4])_"}, r"does not match 2 of 12 names \(p5_0, p5_1\)"),
    "one group": ({"group": r"^(p)"}, r"all 12 cases are in one group \(p\)"),
    "few groups": ({"group": "site", "folds": 4}, r"data\.folds=4: .*only 3 groups \(A, B, C\).*set data\.folds to 3"),
    "no such group": ({"group": "site", "fold": "D"}, r"data\.fold=D: .*no such group; .*A, B, C"),
    "all values": ({"stratify": "share"}, "another value for each of 12 cases"),
    "weights": ({"weight": "stage"}, r"data\.weight=stage: expected numbers above 0, got p0_0: early"),
}


@pytest.mark.parametrize("layout", ["msd", "datalist"])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_column_is_refused(made: dict[str, Path], layout: str, fault: str) -> None:
    data, said = WRONG[fault]
    if fault in ("no column", "near") and layout == "msd":
        data = {**data, "table": "cases.csv"}
    with pytest.raises(UserError, match=said):
        opened(made[layout], **data)


TABLES: dict[str, tuple[Callable[[str], str], str]] = {
    "no names": (lambda t: t.replace("case,", "name,"), "has no column 'case'"),
    "empty": (lambda _: "", "has no column 'case'.*none"),
    "two columns": (lambda t: t.replace("stage", "site"), "2 columns are named 'site'"),
    "a short line": (lambda t: t.replace("p2_0,C,", "p2_0,"), r"line 6 has 3 cells \(expected 4\)"),
    "a doubled case": (lambda t: t.replace("p2_1,", "p2_0,"), "several rows for p2_0"),
    "a missing case": (lambda t: t.replace("p2_0,", "p2_9,"), r"no row for 1 of 12 cases \(p2_0\)"),
    "an open quotation mark": (lambda t: t + '"' + "x" * 131073, r"line 14: field larger than field limit"),
    "no value": (lambda t: t.replace("p2_0,C,", "p2_0,,"), r"1 of 12 cases have no value \(p2_0\)"),
    "a negative weight": (lambda t: t.replace("early,5", "early,-5"), r"expected numbers above 0, got p2_0: -5"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_wrong_table_is_refused(made: dict[str, Path], tmp_path: Path, fault: str) -> None:
    change, said = TABLES[fault]
    table = tmp_path / "table.csv"
    table.write_text(change((made["msd"] / "cases.csv").read_text()))
    with pytest.raises(UserError, match=said):
        opened(made["msd"], table=str(table), group="site", weight="share")


def test_a_column_in_the_table_and_in_the_entries_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.table and the entries of list\.json both have it"):
        opened(made["datalist"], table=str(made["msd"] / "cases.csv"), group="site")


def test_without_any_columns_the_message_says_where_they_come_from(made: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"there are no columns .*set data\.table to a CSV file"):
        opened(made["msd"], group="patient")


def test_stratification_of_folds_that_are_stated_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "list", "datalist")
    content = json.loads((root / "list.json").read_text())
    for number, entry in enumerate(content["training"]):
        entry["fold"] = number % 3
    write_json(root / "list.json", content)
    with pytest.raises(UserError, match=r"data\.stratify=stage: has no effect, because list\.json states the folds"):
        opened(root, stratify="stage")
    (note,) = opened(root, group="site", fold="B").notes
    assert "its folds are not used, because data.fold names a group" in note
    with pytest.raises(UserError, match="4 groups are in training and in validation of fold 0"):
        opened(root, **BY_PATIENT)


# -- the record --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose prepared cases several tests share. They change none of its files for good."""
    return make(tmp_path_factory.mktemp("shared") / "msd", "msd")


def begin(settings: RunConfig) -> tuple[RunFolder, Split]:
    """Prepare a run and leave what a training leaves: its split beside a checkpoint."""
    folder = RunFolder(run_folder_of(settings))
    run = open_cases(settings, folder)
    (one,) = run.datasets
    split = settle_split(settings, run, [prepare(one.data, one.dataset, one.store).store])
    folder.paths.checkpoints.mkdir(parents=True)
    (folder.paths.checkpoints / "step_00000001.pt").touch()
    write_split(folder.path, split)
    return folder, split


def test_the_record_says_what_was_used_and_a_resumed_run_needs_no_files(shared: Path, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text((shared / "cases.csv").read_text())
    settings = config(shared, name="sites", table=str(table), group="site", weight="share", stratify="stage", folds=3)
    folder, split = begin(settings)
    plain = json.loads(folder.paths.split.read_text())
    (method,) = plain["methods"]
    assert (method["name"], method["group"], method["stratify"]) == ("drawn", "site", "stage")
    assert method["table"]["path"] == str(table) and len(method["table"]["sha256"]) == 64
    cases = [*plain["training"], *plain["validation"]]
    assert {case["name"]: (case["group"], case["weight"]) for case in cases} == {
        name: (SITES[name], float(COLUMNS[name]["share"])) for name in NAMES
    }
    assert Split.from_json(plain, "") == split

    table.unlink()
    (resumed,) = open_cases(settings, folder).datasets
    assert {case.name: case.weight for case in resumed.training} == {case.name: case.weight for case in split.training}
    assert sides(resumed) == tuple([case.name for case in side] for side in (split.training, split.validation))


def test_a_plain_record_has_no_new_field_and_fold_all_may_lack_validation(shared: Path) -> None:
    folder, _ = begin(config(shared, name="plain"))
    plain = json.loads(folder.paths.split.read_text())
    assert list(plain) == [
        "format", "trained_on", "fold", "folds", "fold_seed", "stated", "datasets", "channels", "labels", "training",
        "validation", "seen",
    ]  # fmt: skip
    assert {tuple(case) for case in plain["training"]} == {("name", "dataset", "image", "label")}
    everything = [*plain["training"], *plain["validation"]]
    all_cases = {**plain, "fold": "all", "methods": [{"name": "all"}], "training": everything, "validation": []}
    assert Split.from_json(all_cases, "").validates_none
    for damaged, said in (
        ({**all_cases, "fold": 0}, "cases or data sets are missing"),
        ({**all_cases, "training": []}, "cases or data sets are missing"),
        ({**plain, "fold": "A"}, "fold: expected a number"),
        ({**plain, "methods": [{"name": "file"}] * 2}, "methods"),
        ({**plain, "methods": [{"name": "magic"}]}, "methods"),
    ):
        with pytest.raises(UserError, match=said):
            Split.from_json(damaged, "")


def test_a_resumed_run_does_not_take_up_a_file_that_was_added(shared: Path, request: pytest.FixtureRequest) -> None:
    settings = config(shared, name="resumed")
    folder, split = begin(settings)
    request.addfinalizer((shared / "splits_final.json").unlink)
    write_json(shared / "splits_final.json", nnunet_folds())
    assert opened(shared).method.name == "file"  # a new run
    (resumed,) = open_cases(settings, folder).datasets
    assert names(resumed.validation) == [case.name for case in split.validation]
    folder.paths.split.unlink()  # as a run of a version that recorded no split
    torch.save(unrecorded_checkpoint(settings), folder.paths.checkpoints / "step_00000001.pt")
    (unrecorded,) = open_cases(settings, folder).datasets
    assert sides(unrecorded) == sides(resumed)


def unrecorded_checkpoint(settings: RunConfig) -> Data:
    state = {"step": 1, "config": settings.to_dict(), "channels": ["CT"], "labels": {}, "model": {}, "train_step": {}}
    return {**state, "best": None, "history": [], "elapsed_s": 0.0}


@pytest.mark.fault("same-image-on-both-sides")
def test_the_same_image_on_both_sides_is_refused(shared: Path) -> None:
    for form in ("sites", "splits_final.json", "one site"):
        data, folds = FORMS[form]
        one = opened(shared, **data, fold=folds[0])
        file = shared / f"imagesTr/{one.validation[0].name}.nii"
        before = file.read_bytes()
        save(file, nibabel.load(shared / f"imagesTr/{one.training[0].name}.nii").get_fdata())  # as float64
        with pytest.raises(UserError, match=one.validation[0].name) as refused:
            begin(config(shared, name="copied", **data, fold=folds[0]))
        assert_seen("same-image-on-both-sides", str(refused.value))
        file.write_bytes(before)


def test_labels_are_read_once_for_stratification(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "msd", "msd")
    opened(root, stratify="classes")
    (kept,) = (tmp_path / "runs/prepared").glob("*-labels.json")
    values = json.loads(kept.read_text())
    assert values[str(root / "labelsTr/p0_0.nii")]["values"] == [0, 1, 2]
    before = kept.stat().st_mtime_ns
    assert opened(root, stratify="classes").cases and kept.stat().st_mtime_ns == before
    save(root / "labelsTr/p0_0.nii", np.ones(SHAPE, np.uint8))
    opened(root, stratify="classes")
    assert json.loads(kept.read_text())[str(root / "labelsTr/p0_0.nii")]["values"] == [1]
    kept.write_text("{")  # damaged: read again
    dataset = open_dataset(root)
    lacking = replace(dataset.training[0], label=root / "labelsTr/gone.nii")
    assert occurring_classes(dataset, [lacking], None) == {lacking.name: ()}  # the preparation reports it
    one = opened(root, stratify="classes")
    assert {case.name for case in one.cases if "rare" in case.stratum} == RARE - {"p0_0"}


def test_a_sweep_over_sites_is_checked_before_anything_is_submitted(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(dump_config(config(shared, name="base", group="site")))
    sweep = {"name": "sites", "base": "base.yaml", "grid": {"data.fold": ["A", "B", "C", "all"]}}
    write_json(tmp_path / "sweep.yaml", sweep)
    submissions = decide_submissions(load_sweep(tmp_path / "sweep.yaml"), ClusterConfig(cluster="local"))
    assert [one.run.config.name for one in submissions] == ["A", "B", "C", "all"]
    write_json(tmp_path / "sweep.yaml", {**sweep, "grid": {"data.fold": ["A", "D"]}})
    with pytest.raises(UserError, match=r"data\.fold=D: data\.group=site has no such group; valid: A, B, C"):
        decide_submissions(load_sweep(tmp_path / "sweep.yaml"), ClusterConfig(cluster="local"))
