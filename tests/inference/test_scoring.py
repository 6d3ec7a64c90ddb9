"""Names and label files in an evaluation, and the header that a mask takes from its image."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fusionseg import cli, train
from fusionseg.config import DataConfig, RunConfig, dump_config
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.preprocessing.volume import load_volume
from fusionseg.inference.evaluation.results import mean_and_deviation
from fusionseg.inference.predict import predict
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.metrics.segmentation import confusion_matrix
from fusionseg.runs.json_files import finite_or_none
from fusionseg.utils.errors import UserError

CPU = PredictOptions(device="cpu")
Rows = dict[tuple[str, str], dict[str, str]]
Evaluate = Callable[..., tuple[int, Rows]]


@pytest.fixture(scope="module")
def learnt(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Path],
    tiny_config: Callable[..., RunConfig],
) -> Path:
    """A run that tells two classes apart, by the first of two channels."""
    folder = tmp_path_factory.mktemp("learnt")
    root = make_dataset(folder / "Task96_run", cases=2, classes=3, channels=2)
    mark_second_channel(root)
    data = {"folds": 2, "intensity": {"clip": [0, 600]}}
    last = {"train": {"steps": 60}, "validate": {"every": 60}, "checkpoint": {"every": 60}}
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config(root, folder, data=data, **last)))
    assert train.main(["--config", str(config)]) == 0
    return folder / "tiny"


def mark_second_channel(root: Path) -> None:
    """Take the structures out of the second channel, so that the channels cannot stand for each other."""
    for path in (root / "imagesTr").iterdir():
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[..., 1] = 250 - values[..., 1] // 8
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)


@pytest.fixture
def others(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """Another data set of the same kind."""
    root = make_dataset(tmp_path / "Task97_others", cases=3, classes=3, channels=2, seed=5)
    mark_second_channel(root)
    return root


@pytest.fixture
def evaluate(learnt: Path, tmp_path: Path) -> Evaluate:
    """`evaluate(root, *options)` -> status, and the rows by case and class."""
    run = tmp_path / "run"
    shutil.copytree(learnt, run)

    def start(root: Path, *options: str) -> tuple[int, Rows]:
        status = cli.main(["evaluate", str(run), "--dataset", str(root), "--device", "cpu", *options])
        tables = list(run.glob("evaluation*/cases.csv"))
        if not tables:
            return status, {}
        with tables[0].open(newline="") as stream:
            return status, {(row["case"], row["label"]): row for row in csv.DictReader(stream)}

    return start


def change(root: Path, **keys: Any) -> None:
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, **keys}))


def rewrite(folder: Path, edit: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    for path in folder.iterdir():
        file = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(edit(np.asarray(file.dataobj)), file.affine), path)


def dice(rows: Rows) -> dict[tuple[str, str], float]:
    return {key: float(row["dice"]) for key, row in rows.items()}


def test_labels_and_channels_in_another_order_are_followed_by_name(
    evaluate: Evaluate, others: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, plain = evaluate(others)
    assert status == 0 and min(dice(plain).values()) > 0.5
    assert "by name" not in capfd.readouterr().err
    rewrite(others / "labelsTr", lambda values: np.array([0, 2, 1], np.uint8)[values])
    rewrite(others / "imagesTr", lambda values: values[..., ::-1])
    change(others, labels={"0": "air", "1": "ball2", "2": "Ball1"}, modality={"0": "MR1", "1": "MR0"})
    status, turned = evaluate(others)
    assert status == 0 and turned == plain
    err = capfd.readouterr().err
    assert "the labels are matched by name with those of the run: background, ball1, ball2" in err
    assert "the channels are matched by name with those of the run: MR0, MR1" in err


def test_other_names_are_refused_with_both_lists(
    evaluate: Evaluate, others: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(others, labels={"0": "background", "1": "ball1", "2": "cube"}, modality={"0": "CT", "1": "PET"})
    assert evaluate(others) == (2, {})
    err = capfd.readouterr().err
    assert "has the labels ['background', 'ball1', 'cube'], and the run was trained on ['background', 'ball1'," in err
    assert "has the channels ['CT', 'PET'], and the run was trained on ['MR0', 'MR1']" in err


def test_names_with_the_command_are_those_of_the_data_set(evaluate: Evaluate, others: Path) -> None:
    """`data.labels` with the command names the labels of the data set, where it has other names or none."""
    change(others, labels={"0": "background", "1": "ball2", "2": "ball1"})
    _, swapped = evaluate(others)
    assert max(dice(swapped).values()) < 0.4
    labels = "data.labels=[background,ball1,ball2]"
    for names in ({"0": "background", "1": "ball2", "2": "ball1"}, None):
        change(others, labels=names)
        _, named = evaluate(others, labels)
        assert min(dice(named).values()) > 0.5


def test_names_of_the_runs_own_data_that_changed_are_refused(
    learnt: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "Task96_run"
    shutil.copytree(learnt.parent / "Task96_run", root)
    names = {"labels": {"0": "background", "1": "ball2", "2": "ball1"}, "modality": {"0": "MR1", "1": "MR0"}}
    change(root, **names)
    assert cli.main(["evaluate", str(learnt), f"data.root={root}", "--device", "cpu"]) == 2
    err = capfd.readouterr().err
    assert "['background', 'ball2', 'ball1']" in err and "['MR1', 'MR0']" in err
    assert err.count("the names have changed since") == 2


def test_a_bad_label_is_named_and_the_others_are_scored(
    evaluate: Evaluate, others: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, clean = evaluate(others)
    path = others / "labelsTr/case_001.nii.gz"
    label = nibabel.load(path)
    values = np.asarray(label.dataobj).copy()
    values[:3] = 4
    nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    status, rows = evaluate(others)
    assert status == 1
    assert rows == {key: row for key, row in clean.items() if key[0] != "case_001"}
    assert f"error: case_001 is not scored: {path}: the label holds [4]" in capfd.readouterr().err
    (summary,) = (tmp_path / "run").glob("evaluation*/summary.json")
    assert list(json.loads(summary.read_text())["failed"]) == ["case_001"]
    for other in (others / "labelsTr").iterdir():
        other.write_bytes(other.read_bytes()[:100])
    assert evaluate(others)[0] == 2
    err = capfd.readouterr().err
    assert "none of the 3 cases could be evaluated" in err and "case_002" in err and "Traceback" not in err


@pytest.mark.parametrize("wrong", [[0, 3], [-1, 0], [0, 256], [0.5, 1.0], [float("nan"), 1.0]])
@pytest.mark.parametrize("where", [0, 1])
def test_a_value_that_names_no_class_is_not_counted_into_another_cell(wrong: list[float], where: int) -> None:
    pair = [torch.tensor([0, 2]), torch.tensor([0, 2])]
    pair[where] = torch.tensor(wrong)
    with pytest.raises(ValueError, match="expected integers from 0 to 2"):
        confusion_matrix(*pair, 3)


# -- ensembles -----------------------------------------------------------------------------------------------


def relabelled(run: Path, target: Path, labels: dict[int, str], channels: list[str]) -> Path:
    """A copy of a run whose checkpoint names its classes and channels otherwise."""
    shutil.copytree(run, target)
    for path in (target / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=False)
        state["labels"], state["channels"] = labels, channels
        torch.save(state, path)
        path.with_suffix(".pt.sha256").unlink(missing_ok=True)
    return target


def test_members_with_other_orders_are_brought_to_the_firsts(learnt: Path, tmp_path: Path, others: Path) -> None:
    swapped = {0: "background", 1: "ball2", 2: "ball1"}
    other = relabelled(learnt, tmp_path / "swapped", swapped, ["MR1", "MR0"])
    image = others / "imagesTr/case_000.nii.gz"
    own = Predictor([learnt], CPU)([image])
    assert set(np.unique(own)) == {0, 1, 2}
    # The copy reads its own first channel first, and calls class 1 what it knows as class 2.
    file = nibabel.load(image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(file.dataobj)[..., ::-1], file.affine), tmp_path / "turned.nii.gz")
    theirs = Predictor([other], CPU)([image])
    np.testing.assert_array_equal(theirs, own)
    exchanged = np.array([0, 2, 1], np.uint8)
    first = Predictor([other, other], CPU)
    np.testing.assert_array_equal(first([image]), own)
    # As a member beside the first run, it sees the channels as it names them, and its classes go by name.
    member = Predictor([learnt, other], CPU)
    assert member.labels == {0: "background", 1: "ball1", 2: "ball2"}
    assert member.orders[1] == ((1, 0), (0, 2, 1))
    turned = Predictor([other], CPU)([tmp_path / "turned.nii.gz"])
    alone = Predictor([learnt, other], CPU)
    alone.members, alone.orders = alone.members[1:], alone.orders[1:]
    np.testing.assert_array_equal(alone([image]), exchanged[turned])


def test_members_of_other_names_are_refused(learnt: Path, tmp_path: Path) -> None:
    other = relabelled(learnt, tmp_path / "cube", {0: "background", 1: "ball1", 2: "cube"}, ["MR0", "MR1"])
    with pytest.raises(UserError, match=r"'cube'.*'ball2'.*an ensemble needs the same channels and labels"):
        Predictor([learnt, other], CPU)


# -- masks ---------------------------------------------------------------------------------------------------


def test_a_mask_takes_the_geometry_of_its_image_and_nothing_else(learnt: Path, others: Path, tmp_path: Path) -> None:
    values = np.asarray(nibabel.load(others / "imagesTr/case_000.nii.gz").dataobj)
    affine = np.diag([0.5, -0.6, 0.7, 1])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        image = kind(values.astype(np.float32), affine)
        image.header.set_intent("t test", (10.0,), name="x")
        image.header["descrip"], image.header["aux_file"] = b"Jane Doe", b"secret"
        image.header["cal_max"] = 800
        image.header.set_slope_inter(2, 1)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970"))
        image.header.set_qform(affine, code=2)
        image.header.set_sform(affine, code=3)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, tmp_path / "a.nii.gz")
        assert predict([learnt], tmp_path / "a.nii.gz", tmp_path / kind.__name__, CPU).failed == {}
        mask = nibabel.load(tmp_path / kind.__name__ / "a.nii.gz")
        assert type(mask) is kind and mask.shape == values.shape[:3] and mask.get_data_dtype() == np.uint8
        header, source = mask.header, nibabel.load(tmp_path / "a.nii.gz").header
        assert header["dim"].tolist() == [3, *values.shape[:3], 1, 1, 1, 1]
        for field in ("sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_z"):
            assert (header[field] == source[field]).all(), field
        assert header.get_intent() == ("none", (), "") and len(header.extensions) == 0
        assert (header["aux_file"].item(), float(header["cal_max"])) == (b"", 0)
        assert header["descrip"].item().startswith(b"fusionseg m=")  # what predict knows its own masks by
        assert header.get_slope_inter() in ((1, 0), (None, None))
        assert (mask.affine == nibabel.load(tmp_path / "a.nii.gz").affine).all()


def test_a_qform_without_handedness_keeps_its_place(learnt: Path, others: Path, tmp_path: Path) -> None:
    image = nibabel.load(others / "imagesTr/case_000.nii.gz")
    image.header.set_sform(None, code=0)
    image.header.set_qform(image.affine, code=1)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    assert content[76:80] == np.float32(1).tobytes()
    content[76:80] = bytes(4)  # the standard: 0 stands for 1
    path.write_bytes(content)
    assert predict([learnt], path, tmp_path / "masks", CPU).failed == {}
    np.testing.assert_array_equal(nibabel.load(tmp_path / "masks/a.nii.gz").affine, image.header.get_qform())


def test_an_input_that_would_take_terabytes_is_named(
    tmp_path: Path, others: Path, learnt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels of 90 mm are possible; a volume of them at 0.01 mm is not."""
    image = nibabel.load(others / "imagesTr/case_000.nii.gz")
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([90.0, 90, 90, 1])), path)
    config = DataConfig.model_validate({"spacing": [0.01, 0.01, 0.01]})
    with pytest.raises(CaseError, match=r"a.nii.gz: resampling to data.spacing \[0.01, 0.01, 0.01\] takes about .* GB"):
        load_volume([path], None, config, None)


def test_a_metric_that_no_case_has_is_null_in_every_summary() -> None:
    assert mean_and_deviation([0.5, math.nan, 0.7]) == pytest.approx({"mean": 0.6, "std": 0.1414214, "cases": 2})
    assert mean_and_deviation([0.5]) == {"mean": 0.5, "std": 0.0, "cases": 1}
    assert finite_or_none(mean_and_deviation([math.nan])) == {"mean": None, "std": None, "cases": 0}
