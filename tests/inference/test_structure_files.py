"""Lesions and vessels in the files of an evaluation, counted once more from the kept masks."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from math import isnan, nan
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label as components_of
from skimage.morphology import skeletonize

from fusionseg import cli, train
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.metrics.definitions import DEFAULT_METRICS, DEFINITIONS, LESION_METRICS, VESSEL_METRICS
from fusionseg.runs.evaluations import write_evaluation
from fusionseg.utils.errors import UserError

Mask = NDArray[np.bool_]
CHOSEN = ("evaluate.lesions=[ball2,ball1]", "evaluate.lesion_iou=0.05", "evaluate.vessels=[ball1]")
SETTINGS = (*CHOSEN, "evaluate.calibre_mm=6")
VALUES = {"ball1": 1, "ball2": 2}


@pytest.fixture(scope="module")
def trained(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of one step on two classes, of this module alone, and a data set with several lesions of each class."""
    folder = tmp_path_factory.mktemp("structures")
    run = Path(shutil.copytree(tiny_run(), folder / "run"))
    root = Path(shutil.copytree(tiny_run().parent / "Task93_run", folder / "Task94_lesions"))
    for path in sorted((root / "labelsTr").glob("*.nii.gz")):
        file = nibabel.load(path)
        label = np.asarray(file.dataobj).copy()
        label[:3, :2, :2], label[0, -2:, -3:], label[-1, -1, -1] = 1, 2, 2
        nibabel.save(nibabel.Nifti1Image(label, file.affine), path)
    return run, root


def evaluate(run: Path, *words: str) -> int:
    return cli.main(["evaluate", str(run), "--device", "cpu", "--checkpoint", "last", *words])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def expected_lesions(mask: Mask, label: Mask, min_iou: float) -> dict[str, float]:
    """Lesions once more, with sets of voxels, and every way to match those of the label."""
    ours, theirs = (
        [set(map(tuple, np.argwhere(numbers == one))) for one in range(1, numbers.max() + 1)]
        for numbers in (components_of(each, connectivity=3) for each in (mask, label))
    )
    ious = [[len(a & b) / len(a | b) for a in ours] for b in theirs]
    choices = [[None, *(p for p, iou in enumerate(row) if iou > min_iou)] for row in ious]
    ways = (
        [(p, t) for t, p in enumerate(way) if p is not None]
        for way in product(*choices)
        if len(set(way) - {None}) == len(way) - way.count(None)
    )
    pairs = max(ways, key=lambda way: sum(ious[t][p] for p, t in way))
    dices = [2 * len(ours[p] & theirs[t]) / (len(ours[p]) + len(theirs[t])) for p, t in pairs]
    return {
        "lesion_sensitivity": len(pairs) / len(theirs) if theirs else nan,
        "lesion_false_positives": len(ours) - len(pairs),
        "lesion_f1": 2 * len(pairs) / (len(ours) + len(theirs)) if ours or theirs else nan,
        "lesion_dice": sum(dices) / len(theirs) if theirs else nan,
    }


def expected_cl_dice(mask: Mask, label: Mask) -> float:
    if not mask.any() or not label.any():
        return 0.0 if mask.any() or label.any() else nan
    ours, theirs = skeletonize(mask) > 0, skeletonize(label) > 0
    precision, sensitivity = label[ours].mean(), mask[theirs].mean()
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def test_values_follow_from_the_masks(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, root = trained
    assert evaluate(run, "--dataset", str(root), "--include-trained", *SETTINGS) == 0
    (folder,) = run.glob("evaluation_*")
    rows, lesions, branches = (table(folder / f"{name}.csv") for name in ("cases", "lesions", "branches"))
    summary = json.loads((folder / "summary.json").read_text())
    assert set(rows[0]) >= {*DEFAULT_METRICS, *LESION_METRICS, *VESSEL_METRICS}
    counts: dict[str, list[int]] = {}
    for row in rows:
        mask, true = (
            nibabel.load(path)
            for path in (folder / f"masks/{row['case']}.nii.gz", root / f"labelsTr/{row['case']}.nii.gz")
        )
        pair = [np.asarray(file.dataobj) == VALUES[row["label"]] for file in (mask, true)]
        for name, number in expected_lesions(*pair, 0.05).items():
            assert float(row[name] or nan) == pytest.approx(number, abs=1e-9, nan_ok=True), (row, name)
        own = [one for one in lesions if (one["case"], one["label"]) == (row["case"], row["label"])]
        voxel_ml = float(np.prod(true.header.get_zooms())) / 1000
        for kind, each in zip(("predicted", "true"), pair, strict=True):
            listed = [one for one in own if one["mask"] == kind]
            numbers = components_of(each, connectivity=3)
            places = [np.argwhere(numbers == one) for one in range(1, numbers.max() + 1)]
            found = sorted([float(one[key]) for key in ("x", "y", "z", "volume_ml")] for one in listed)
            wanted = sorted([*place.mean(axis=0), len(place) * voxel_ml] for place in places)
            np.testing.assert_allclose(np.array(found).reshape(-1, 4), np.array(wanted).reshape(-1, 4), rtol=1e-6)
            counts.setdefault(kind, []).append(len(places))
        assert sum(one["matched"] == "yes" for one in own if one["mask"] == "predicted") == sum(
            one["matched"] == "yes" for one in own if one["mask"] == "true"
        )
        vessels = [one for one in branches if (one["case"], one["label"]) == (row["case"], row["label"])]
        if row["label"] == "ball2":
            assert {row[name] for name in VESSEL_METRICS} == {""} and not vessels
            continue
        assert float(row["cl_dice"] or nan) == pytest.approx(expected_cl_dice(*pair), abs=1e-9, nan_ok=True)
        for name, of_kind in (
            ("branches_found", vessels),
            ("thin_branches_found", [one for one in vessels if float(one["diameter_mm"]) < 6]),
            ("thick_branches_found", [one for one in vessels if float(one["diameter_mm"]) >= 6]),
        ):
            share = np.mean([float(one["covered"]) >= 0.5 for one in of_kind]) if of_kind else nan
            assert float(row[name] or nan) == pytest.approx(share, nan_ok=True)
        assert all((one["found"] == "yes") == (float(one["covered"]) >= 0.5) for one in vessels)
        assert 0 < sum(int(one["voxels"]) for one in vessels) <= (skeletonize(np.pad(pair[1], 1)) > 0).sum()
    assert max(counts["true"]) >= 2 and sum(counts["predicted"]), "a case has several lesions, and some are predicted"
    for name in (*LESION_METRICS, *VESSEL_METRICS):
        for of_class in VALUES:
            values = [float(row[name]) for row in rows if row["label"] == of_class and row[name]]
            found = summary["classes"][of_class][name]
            assert found["cases"] == len(values)
            assert found["mean"] == (pytest.approx(np.mean(values)) if values else None)
        known = [one[name]["mean"] for one in summary["classes"].values() if one[name]["mean"] is not None]
        assert summary["metrics"][name] == (pytest.approx(np.mean(known)) if known else None)
        assert summary["definitions"][name]["text"] == DEFINITIONS[name].text
    parameters = {"classes": ["ball2", "ball1"], "min_iou": 0.05, "min_ml": 0}
    assert summary["definitions"]["lesion_f1"]["parameters"] == parameters
    assert summary["definitions"]["thin_branches_found"]["parameters"]["calibre_mm"] == 6
    out = re.sub(" +", " ", capsys.readouterr().out)
    assert "| class | cases | clDice | branches found | thin branches found | thick branches found |" in out
    vessel_table = out.partition("| clDice")[2]
    assert "| ball1 |" in vessel_table and "| ball2 |" not in vessel_table
    assert "cases.csv, lesions.csv, branches.csv, summary.json" in out


def test_small_lesions_are_left_out(trained: tuple[Path, Path]) -> None:
    run, root = trained
    words = ("--dataset", str(root), "--include-trained", "evaluate.lesions=[ball2]")
    listed = {}
    for least in (0.0, 0.05):
        assert evaluate(run, *words, f"evaluate.lesion_min_ml={least}") == 0
        (folder,) = run.glob("evaluation_*")
        listed[least] = table(folder / "lesions.csv")
        assert not (folder / "branches.csv").exists(), "a table of an earlier evaluation is not one of this summary"
    key = ("case", "label", "mask", "volume_ml")
    large = [[one[name] for name in key] for one in listed[0.0] if float(one["volume_ml"]) >= 0.05]
    assert [[one[name] for name in key] for one in listed[0.05]] == large
    assert 0 < len(large) < len(listed[0.0])


def test_settings_and_tables_belong_to_the_evaluation(trained: tuple[Path, Path]) -> None:
    run, _ = trained
    summary = run / "evaluation/summary.json"

    def skipped(*words: str) -> bool:
        before = summary.stat().st_mtime_ns if summary.exists() else None
        assert evaluate(run, "--skip-existing", *words) == 0
        return summary.stat().st_mtime_ns == before

    assert not skipped() and not skipped(*CHOSEN) and skipped(*CHOSEN)
    assert not skipped(*CHOSEN, "evaluate.calibre_mm=3") and not skipped(*CHOSEN, "evaluate.lesion_iou=0.5")
    assert not skipped(*CHOSEN)
    (run / "evaluation/branches.csv").unlink()
    assert not skipped(*CHOSEN) and (run / "evaluation/branches.csv").exists()
    assert not skipped() and not (run / "evaluation/lesions.csv").exists()
    assert set(table(run / "evaluation/cases.csv")[0]) >= set(DEFAULT_METRICS)
    assert not set(table(run / "evaluation/cases.csv")[0]) & {*LESION_METRICS, *VESSEL_METRICS}


def test_a_file_of_the_user_is_not_replaced(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained
    assert evaluate(run) == 0
    path = run / "evaluation/lesions.csv"
    path.write_text("case,reader\n")
    assert evaluate(run, *CHOSEN) == 2
    assert f"{path}: is no table of an evaluation" in capsys.readouterr().err
    assert evaluate(run) == 0 and path.read_text() == "case,reader\n"
    path.unlink()


def test_unknown_names_are_refused_with_the_known_ones(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    assert evaluate(run, "evaluate.lesions=[bal1,background,ball2]", "evaluate.vessels=[artery]") == 2
    err = capsys.readouterr().err
    assert "evaluate.lesions: no class or region 'bal1'; did you mean ball1? Valid: ball1, ball2" in err
    assert "evaluate.lesions: no class or region 'background'; valid: ball1, ball2" in err
    assert "evaluate.vessels: no class or region 'artery'; valid: ball1, ball2" in err
    with pytest.raises(UserError, match=r"evaluate\.lesions"):
        validate({"model": {"name": "unet"}, "evaluate": {"lesions": "ball1"}})
    with pytest.raises(UserError, match=r"evaluate\.lesion_iou"):
        validate({"model": {"name": "unet"}, "evaluate": {"lesion_iou": 1.0}})


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [{"case": "a", "label": "b", "dice": nan}], {}, [], {"lesions.csv": []})
    assert (tmp_path / "lesions.csv").read_text().startswith("case,label,mask,lesion,volume_ml")
    assert isnan(float(table(tmp_path / "cases.csv")[0]["dice"] or nan)) and not table(tmp_path / "lesions.csv")


def test_a_training_with_unknown_names_does_not_start(
    balls: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config(balls, tmp_path, evaluate={"vessels": ["ball1", "ball3"]})))
    assert train.main(["--config", str(config)]) == 2
    assert "evaluate.vessels: no class or region 'ball3'; did you mean ball" in capsys.readouterr().err
