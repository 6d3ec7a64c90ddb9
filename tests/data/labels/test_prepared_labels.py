"""Label files of any values through check, preparation and resume: one map, and one message for a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import preparing
import pytest
import torch

from fusionseg import cli
from fusionseg.config import CacheConfig, RunConfig, validate
from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.checks.dataset_check import check_dataset
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.labels.scheme import IGNORE
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.sampling.patch_centres import unannotated_warning
from fusionseg.data.preprocessing.store import FOREGROUND_PER_CLASS, Store
from fusionseg.runs.cases.checks import refuse_changed_cases
from fusionseg.runs.cases.datasets import open_datasets, open_run_datasets
from fusionseg.runs.cases.split import SplitCase, read_split
from fusionseg.train import main as train
from fusionseg.utils.errors import UserError

TinyConfig = Callable[..., RunConfig]
GAPS = {0: 0, 1: 7, 2: 300}
NAMES = {"background": 0, "ball1": 7, "ball2": 300}


def relabel(
    root: Path, values: Mapping[int, int], labels: Any, ignored: slice | None = None, dtype: type = np.uint16
) -> Path:
    """Give the label files of a data set other values, and its JSON other names; ignore a slab of the first axis."""
    for path in sorted((root / "labelsTr").iterdir()):
        file = nibabel.load(path)
        old = np.asarray(file.dataobj)
        new = np.vectorize(values.get)(old).astype(dtype)
        if ignored is not None:
            new[ignored] = 9
        nibabel.save(nibabel.Nifti1Image(new, file.affine), path)
    edit(root, labels=labels)
    return root


def edit(root: Path, **changes: Any) -> None:
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture
def gaps(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """Three cases whose labels are 0, 7 and 300."""
    return relabel(make_dataset(tmp_path / "Task92_gaps", cases=3, classes=3), GAPS, NAMES)


def arrays(store: Store) -> dict[str, tuple[bytes, bytes]]:
    return {name: (store.label(name).tobytes(), store.foreground(name).tobytes()) for name in store.cases}


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_gaps_give_the_arrays_of_plain_labels(
    tmp_path: Path, make_dataset: Callable[..., Path], tiny_config: TinyConfig, dtype: type
) -> None:
    plain = make_dataset(tmp_path / "plain", cases=2, classes=3)
    other = relabel(make_dataset(tmp_path / "other", cases=2, classes=3), GAPS, NAMES, dtype=dtype)
    stores = [preparing.run(tiny_config(root, tmp_path / root.name)).store for root in (plain, other)]
    assert arrays(stores[0]) == arrays(stores[1])
    records = [store.cases["case_000"] for store in stores]
    assert records[0].class_voxels == records[1].class_voxels and records[0].label_digest == records[1].label_digest
    stored = [json.loads((store.root / store.cases["case_000"].folder / "case.json").read_text()) for store in stores]
    assert "mapping" not in stored[0] and stored[1]["mapping"] == {"values": [[0], [7], [300]]}
    assert not stored[0].keys() & {"annotated", "annotated_voxels"}


def test_another_map_of_the_values_has_another_folder_and_a_changed_one_is_prepared_again(
    gaps: Path, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config(gaps, tmp_path)
    merged = tiny_config(gaps, tmp_path, data={"classes": {"balls": [7, 300]}})
    own, other = preparing.run(config).store, preparing.run(merged).store
    assert own.root != other.root
    assert np.array_equal(np.asarray(own.label("case_000")) > 0, other.label("case_000"))
    renamed = tiny_config(gaps, tmp_path, data={"labels": {"air": 0, "x": 7, "y": 300}})
    assert preparing.run(renamed).reused == list(own.cases)  # names have no part in the arrays
    shared = tiny_config(gaps, tmp_path, data={"prepared": str(tmp_path / "own")})
    assert len(preparing.run(shared).prepared) == 3
    edit(gaps, labels={"background": 0, "ball2": [7], "ball1": [300], "ignore": 5})
    again = preparing.run(shared)
    assert len(again.prepared) == 3
    edit(gaps, labels={"background": 0, "ball1": 7, "ignore": 300})
    assert len(preparing.run(shared).prepared) == 3
    assert np.array_equal(preparing.opened(shared).label("case_000") == IGNORE, own.label("case_000") == 2)


def test_an_unknown_value_is_an_error_of_check_and_of_the_preparation(
    gaps: Path, tmp_path: Path, tiny_config: TinyConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(gaps, labels={"background": 0, "ball1": 7})
    report = preparing.run(tiny_config(gaps, tmp_path))
    assert all("the label holds [300], and the data set's labels are 0, 7" in text for text in report.failed.values())
    assert len(report.failed) == 3
    assert cli.main(["check", str(gaps), "--workers", "1"]) == 1
    assert capfd.readouterr().out.count("the label holds [300], and the data set's labels are 0, 7") == 3
    edit(gaps, labels=None)
    assert cli.main(["check", str(gaps), "--workers", "1"]) == 2
    assert "names no labels (the 3 label files hold 0, 7, 300); name the values" in capfd.readouterr().err
    assert cli.main(["check", str(gaps), "--workers", "1", "data.classes={ball: 300}"]) == 0


def test_ignored_voxels_are_no_foreground_and_annotated_positions_are_kept(
    tmp_path: Path, make_dataset: Callable[..., Path], tiny_config: TinyConfig
) -> None:
    root = relabel(
        make_dataset(tmp_path / "d", cases=2, shape=(40, 40, 40), classes=3),
        {0: 0, 1: 1, 2: 2},
        {"background": 0, "ball1": 1, "ball2": 2, "ignore": 9},
        ignored=slice(0, 16),
    )
    config = tiny_config(root, tmp_path, data={"spacing": [1.3, 0.9, 1.1]})
    store = preparing.run(config).store
    for name, record in store.cases.items():
        label, foreground = np.asarray(store.label(name)), np.asarray(store.foreground(name))
        assert set(np.unique(label)) == {0, 1, 2, IGNORE}
        assert record.classes == (1, 2) and [entry[0] for entry in record.class_voxels] == [1, 2]
        found, annotated = np.split(label.ravel()[foreground], [record.class_offsets[-1]])
        assert IGNORE not in found and IGNORE not in annotated and 0 in annotated
        assert record.annotated_voxels == len(annotated) == min(FOREGROUND_PER_CLASS, np.sum(label != IGNORE))
        assert 0.3 < np.mean(label == IGNORE) < 0.5  # of 40 planes 16 are ignored, in the file and resampled
    cache = DeviceCache([(store, "case_000")], CacheConfig(), torch.device("cpu"))
    case = cache.plan_cases[0]
    assert case.annotated is not None and len(case.foreground) == case.class_offsets[-1]
    assert preparing.run(config).reused == ["case_000", "case_001"]


def test_cases_without_an_annotated_voxel_are_named(
    tmp_path: Path, make_dataset: Callable[..., Path], tiny_config: TinyConfig
) -> None:
    labels = {"background": 0, "ball1": 1, "ball2": 2, "ignore": 9}
    root = relabel(make_dataset(tmp_path / "d", cases=3, classes=3), {0: 0, 1: 1, 2: 2}, labels, slice(0, 4))
    path = root / "labelsTr/case_002.nii.gz"
    label = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(label.shape, 9, np.uint8), label.affine), path)
    store = preparing.run(tiny_config(root, tmp_path)).store
    cases = DeviceCache([(store, name) for name in store.cases], CacheConfig(), torch.device("cpu")).plan_cases
    assert "1 training case has the ignore value in every voxel (case_002): nothing" in unannotated_warning(cases)
    assert unannotated_warning(cases[:2]) == ""


def test_check_lists_classes_regions_and_ignored_voxels_by_their_file_values(
    tmp_path: Path, make_dataset: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    labels = {"background": 0, "both": [4, 300], "core": 300, "ignore": 9}
    root = relabel(make_dataset(tmp_path / "d", cases=3, classes=3), {0: 0, 1: 4, 2: 300}, labels, slice(0, 4))
    report = check_dataset(open_dataset(root, require_files=False), workers=1)
    assert not report.errors
    by_name = {label["name"]: label for label in report.summary["labels"]}
    assert list(by_name) == ["background", "value 4", "core"]
    both, core = report.summary["regions"]
    assert both["voxels"] == by_name["value 4"]["voxels"] + by_name["core"]["voxels"] and core["cases"] == 3
    total = sum(label["voxels"] for label in by_name.values())
    ignored = report.summary["ignored"]
    assert ignored["value"] == 9 and ignored["share"] == pytest.approx(ignored["voxels"] / (total + ignored["voxels"]))
    text = report.to_text()
    assert "label 300     core:" in text and "region        both:" in text and "ignored       value 9:" in text
    assert cli.main(["check", str(root), "--workers", "1", "data.classes={ball: [4, 300]}"]) == 0
    assert "label 4, 300  ball:" in capfd.readouterr().out


def test_cases_that_annotate_only_some_classes(
    gaps: Path, tmp_path: Path, make_dataset: Callable[..., Path], tiny_config: TinyConfig
) -> None:
    content = json.loads((gaps / "dataset.json").read_text())
    content["training"][0]["annotated"] = "ball2"
    content["training"][1]["annotated"] = ["ball1", "ball2"]
    edit(gaps, training=content["training"])
    dataset = open_dataset(gaps)
    assert [case.annotated for case in dataset.training] == [("ball2",), None, None]
    assert dataset.scheme.sigmoid and dataset.scheme.num_outputs == 2 and dataset.is_partly_annotated
    summary = check_dataset(dataset, workers=1).summary
    assert summary["annotated"] == {"ball1": 2, "ball2": 3}
    store = preparing.run(tiny_config(gaps, tmp_path)).store
    assert [record.annotated_classes for record in store.cases.values()] == [(2,), None, None]
    case = DeviceCache([(store, "case_000")], CacheConfig(), torch.device("cpu")).plan_cases[0]
    assert set(store.label("case_000").ravel()[case.foreground]) == {2}  # patches are centred on annotated classes
    assert (case.classes, case.class_offsets) == ((2,), (0, len(case.foreground)))
    settings = LabelSettings(annotated={"case_00[12]": ("ball2",)}, regions={"all": (7, 300), "two": ("ball2",)})
    regions = open_dataset(gaps, labels=settings)
    assert [case.annotated for case in regions.training] == [("two",), ("two",), ("two",)]
    for changes, said in {
        ("annotated", (("ball3", ("ball1",)),)): "data.annotated.ball3: no case has such a name",
        ("annotated", (("case_0*", ("liver",)),)): "data.annotated: no class is named 'liver' (annotated by case_000, ",
        ("annotated", (("case_0*", ("ball1",)), ("*1", ("ball2",)))): "the case case_001 matches case_0* and *1",
        ("outputs", "softmax"): "data.outputs: expected sigmoid, because 1 cases annotate only some classes (case_000)",
    }.items():
        key, value = changes
        with pytest.raises(UserError) as caught:
            open_dataset(gaps, labels=replace(LabelSettings(), **{key: dict(value) if key == "annotated" else value}))
        assert said in str(caught.value)
    with pytest.raises(UserError, match=r"data\.outputs: expected sigmoid for regions"):
        open_dataset(gaps, labels=LabelSettings(regions={"all": (7, 300), "two": (300,)}, outputs="softmax"))


def test_a_run_records_its_labels_and_goes_on_with_no_others(
    gaps: Path, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config(
        gaps, tmp_path, train={"steps": 1}, validate={"every": 1}, data={"folds": 3}, augment={"flip": 0.0}
    )
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config.to_dict()))
    assert train(["--config", str(path)]) == 0
    split = json.loads((tmp_path / "tiny/split.json").read_text())
    assert split["label_scheme"]["classes"] == [["background", [0]], ["ball1", [7]], ["ball2", [300]]]
    assert "annotated" not in split["training"][0]
    recorded = read_split(tmp_path / "tiny")
    assert recorded.scheme == open_dataset(gaps).scheme

    def refusal(**changes: Any) -> str:
        edit(gaps, **changes)
        with pytest.raises(UserError) as caught:
            open_run_datasets(config, recorded)
        return str(caught.value)

    assert "the ignore label was none, is 9 now" in refusal(labels={**NAMES, "ignore": 9})
    assert "class 1 was ball1, is ball2 now" in refusal(labels={"background": 0, "ball2": 7, "ball1": 300})
    assert "class ball2 was 300 in the label files, is 301 now" in refusal(labels={**NAMES, "ball2": 301})
    regions = {"background": 0, "ball1": [7, 300], "ball2": 300}
    assert "class 1 was ball1, is value 7 now" in refusal(labels=regions)
    entries = json.loads((gaps / "dataset.json").read_text())["training"]
    partly = [{**entry, "annotated": ["ball1"]} for entry in entries]
    assert "the outputs were softmax, are sigmoid now" in refusal(labels=NAMES, training=partly)
    before = [SplitCase("a", "d", "", "", annotated=("ball1",))]
    with pytest.raises(UserError, match="a: it annotates all classes now, and ball1 when"):
        refuse_changed_cases(
            replace(recorded, training=tuple(before), validation=()), [SplitCase("a", "d", "", "")], needs_labels=True
        )


def test_the_labels_of_another_data_set_are_chosen_as_those_of_the_run(gaps: Path) -> None:
    run = LabelSettings(classes={"balls": ("ball1", "ball2")})
    assert open_dataset(gaps, default_labels=run).scheme.names == ("background", "balls")
    other = LabelSettings(classes={"balls": (1, 2)})  # values of the run's files mean nothing here
    assert open_dataset(gaps, default_labels=other).scheme.names == ("background", "ball1", "ball2")
    edit(gaps, labels=None)
    unnamed = LabelSettings(labels={"background": (0,), "x": (7,), "y": (300,)})
    assert open_dataset(gaps, default_labels=unnamed).scheme.names == ("background", "x", "y")


@pytest.mark.real_data
def test_real_labels(real_data: Path, tmp_path: Path) -> None:
    tumour = open_dataset(real_data / "brain_tumour").scheme
    assert tumour.output_names == ("whole_tumour", "tumour_core", "enhancing") and tumour.region_order == (2, 1, 4)
    entry = {"image": "imagesTr/ct.nii.gz", "label": "labelsTr/ct.nii.gz"}
    source = tmp_path / "list.json"
    source.write_text(json.dumps({"base_dir": str(real_data / "ct_many_labels"), "training": [entry]}))
    with pytest.raises(UserError, match=r"ct.nii.gz holds 0 to 11, 13, 14, .* 110 to 115, 117"):
        open_dataset(source)
    chosen = open_dataset(source, labels=LabelSettings(classes={"liver": (5,), "kidneys": (2, 3)}))
    report = check_dataset(chosen, workers=1)
    assert not report.errors and [label["voxels"] for label in report.summary["labels"][1:]] == [38634, 7623]


def test_a_pretraining_reads_labels_of_any_values_of_each_data_set(gaps: Path, balls: Path, tmp_path: Path) -> None:
    swin = {"name": "swin_unetr", "feature_size": 12}
    data = {"root": str(gaps), "patch": [64, 64, 64], "classes": {"ball": ["ball1", 300]}, "ignore": 9}
    raw = {"model": swin, "pretrain": {}, "output": str(tmp_path), "data": {**data, "also": [{"root": str(balls)}]}}
    first, second = open_datasets(validate(raw))
    assert first.dataset.scheme.names == ("background", "ball") and first.dataset.scheme.ignore == 9
    assert second.dataset.scheme.is_plain and second.dataset.scheme.names == ("background", "ball1", "ball2")
