"""Files of an evaluation: metrics from the kept masks, definitions, masks that are never lost, metrics that fail."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from fusionseg import cli
from fusionseg.inference.predictor import Predictor
from fusionseg.metrics.definitions import DEFAULT_METRICS

Run = Callable[..., Path]


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """A run of one step on two classes, of this test alone."""
    return Path(shutil.copytree(tiny_run(), tmp_path / "run"))


@pytest.fixture(scope="module")
def root(tiny_run: Run) -> Path:
    """The data set of the run."""
    return tiny_run().parent / "Task93_run"


def evaluate(run: Path, *words: str) -> int:
    return cli.main(["evaluate", str(run), "--device", "cpu", "--checkpoint", "last", *words])


def results(run: Path, name: str = "evaluation") -> tuple[list[dict[str, str]], dict[str, Any]]:
    with (run / name / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream)), json.loads((run / name / "summary.json").read_text())


def expected(mask: NDArray[Any], label: NDArray[Any], sizes: list[float]) -> dict[str, float]:
    """The metrics of a class once more, from its two masks."""
    both, ours, theirs = int((mask & label).sum()), int(mask.sum()), int(label.sum())
    values = {
        "dice": 2 * both / (ours + theirs) if ours + theirs else nan,
        "iou": both / (ours + theirs - both) if ours + theirs else nan,
        "sensitivity": both / theirs if theirs else nan,
        "precision": both / ours if ours else nan,
        "volume_ml_error": (ours - theirs) * float(np.prod(sizes)) / 1000,
        "volume_similarity": 1 - abs(ours - theirs) / (ours + theirs) if ours + theirs else nan,
        "assd_mm": nan,
    }
    if ours and theirs:
        surfaces = [one & ~binary_erosion(one) for one in (mask, label)]
        distances = [distance_transform_edt(~b, sampling=sizes)[a] for a, b in (surfaces, surfaces[::-1])]
        values["assd_mm"] = float(np.concatenate(distances).mean())
    return values


def test_all_numbers_follow_from_the_kept_masks(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run) == 0
    rows, summary = results(run)
    assert list(summary["definitions"]) == list(DEFAULT_METRICS)
    assert set(rows[0]) == {"case", "label", "voxels_true", "voxels_predicted", "trained_on", *DEFAULT_METRICS}
    sums: dict[str, NDArray[Any]] = {}
    for row in rows:
        mask = nibabel.load(run / f"evaluation/masks/{row['case']}.nii.gz")
        label = nibabel.load(root / f"labelsTr/{row['case']}.nii.gz")
        np.testing.assert_array_equal(mask.affine, label.affine)
        value = {"ball1": 1, "ball2": 2}[row["label"]]
        pair = [np.asarray(file.dataobj) == value for file in (mask, label)]
        for name, number in expected(*pair, [float(s) for s in label.header.get_zooms()]).items():
            assert float(row[name] or nan) == pytest.approx(number, rel=1e-6, abs=1e-9, nan_ok=True), (row, name)
        counts = np.array([(pair[0] & pair[1]).sum(), pair[0].sum(), pair[1].sum()])
        sums[row["label"]] = sums.get(row["label"], 0) + counts
    total = sum(sums.values())
    for found, (both, ours, theirs) in (
        (summary["micro"], total),
        *((summary["classes"][name]["micro"], counts) for name, counts in sums.items()),
    ):
        assert found["dice"] == pytest.approx(2 * both / (ours + theirs))
        assert found["sensitivity"] == pytest.approx(both / theirs)
        assert found["precision"] == (pytest.approx(both / ours) if ours else None)
    for name in ("iou", "nsd", "volume_similarity"):
        means = [summary["classes"][label][name]["mean"] for label in sums]
        assert summary["metrics"][name] == pytest.approx(np.mean(means))
    out = re.sub(" +", " ", capsys.readouterr().out)
    assert "| class | cases | Dice | HD95 mm | IoU | sensitivity | precision |" in out and "| all voxels |" in out
    assert "| class | cases | ASSD mm | NSD | volume error ml | volume similarity |" in out and "masks/" in out


def test_kept_masks_are_those_of_predict_and_are_made_once(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    predict = Predictor.predict_outputs

    def counted(self: Predictor, *arguments: Any) -> Any:
        calls.append(arguments)
        return predict(self, *arguments)

    monkeypatch.setattr(Predictor, "predict_outputs", counted)
    assert evaluate(run) == 0
    (mask,) = (run / "evaluation/masks").iterdir()
    assert len(calls) == 1 and (run / "evaluation/best_and_worst.png").exists()
    inputs = ("--input", str(root / "imagesTr" / mask.name), "--output", str(tmp_path / "masks"))
    assert cli.main(["predict", str(run), *inputs, "--device", "cpu", "--checkpoint", "last"]) == 0
    assert (tmp_path / "masks" / mask.name).read_bytes() == mask.read_bytes()
    assert evaluate(run, "--no-masks") == 0
    assert not (run / "evaluation/masks").exists(), "masks of an earlier evaluation are not those of this summary"


def test_a_mask_that_was_corrected_by_hand_is_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run) == 0
    (path,) = (run / "evaluation/masks").iterdir()
    file = nibabel.load(path)
    corrected = np.asarray(file.dataobj).copy()
    corrected[0, 0, 0] = 1 - min(1, corrected[0, 0, 0])
    nibabel.save(nibabel.Nifti1Image(corrected, file.affine, file.header), path)
    content, before = path.read_bytes(), results(run)
    assert evaluate(run) == 2
    err = capsys.readouterr().err
    assert f"{path}: was not written by fusionseg, or was changed since" in err and "--no-masks" in err
    assert path.read_bytes() == content and results(run) == before
    assert evaluate(run, "--no-masks") == 0
    assert path.read_bytes() == content


def test_an_evaluation_with_other_settings_is_not_current(run: Path) -> None:
    assert evaluate(run) == 0
    summary = run / "evaluation/summary.json"

    def skipped(*words: str) -> bool:
        before = summary.stat().st_mtime_ns
        assert evaluate(run, "--skip-existing", *words) == 0
        return summary.stat().st_mtime_ns == before

    assert skipped()
    first = results(run)[1]
    assert not skipped("evaluate.tolerance_mm=3") and skipped("evaluate.tolerance_mm=3")
    second = results(run)[1]
    assert second["definitions"]["nsd"]["parameters"] == {"tolerance_mm": 3}
    assert second["metrics"]["nsd"] >= first["metrics"]["nsd"] and second["dice"] == first["dice"]
    assert not skipped() and skipped("--no-masks")
    shutil.rmtree(run / "evaluation/masks")
    assert skipped("--no-masks") and not skipped()
    plain = json.loads(summary.read_text())  # of a version without definitions
    plain.pop("definitions")
    summary.write_text(json.dumps(plain))
    assert not skipped()


METRICS = """
def odd(prediction, label, num_classes, voxels):
    if int((label == 1).sum()) == voxels:
        raise ZeroDivisionError("of no use")
    return [1.0] * (num_classes - 1)

def volumes(prediction, label, num_classes, factor=1):
    return [float((prediction == value).sum()) * factor for value in range(1, num_classes)]
"""


@pytest.fixture(scope="module")
def metrics_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of metrics of the user's own."""
    file = tmp_path_factory.mktemp("metrics") / "metrics_of_the_user.py"
    file.write_text(METRICS)
    return file


def test_a_metric_that_raises_on_one_case_names_itself_and_the_case(
    run: Path, root: Path, metrics_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = int((np.asarray(nibabel.load(root / "labelsTr/case_001.nii.gz").dataobj) == 1).sum())
    chosen = f"metrics=[{{name: '{metrics_file}:odd', args: {{voxels: {voxels}}}}}]"
    assert evaluate(run, chosen, "--dataset", str(root), "--include-trained") == 1
    err = capsys.readouterr().err
    assert "error: case_001 is not scored: " in err and "Traceback" not in err
    assert f"the metric odd raised ZeroDivisionError: of no use ({metrics_file}:4)" in err
    (folder,) = run.glob("evaluation_*")
    rows, summary = results(run, folder.name)
    assert {row["case"] for row in rows} == {"case_000"} and list(summary["failed"]) == ["case_001"]
    assert [path.name for path in (folder / "masks").iterdir()] == ["case_000.nii.gz"]


def test_metrics_of_the_configuration_stand_beside_the_default_ones(run: Path, metrics_file: Path) -> None:
    file = metrics_file
    own = f"metrics=[iou,'{file}:volumes',{{name: nsd, title: nsd_9mm, args: {{tolerance_mm: 9}}}}]"
    assert evaluate(run, own) == 0
    rows, summary = results(run)
    assert [name for name in summary["definitions"] if name not in DEFAULT_METRICS] == ["volumes", "nsd_9mm"]
    assert summary["definitions"]["nsd_9mm"]["parameters"] == {"tolerance_mm": 9}
    assert summary["definitions"]["nsd_9mm"]["text"] == summary["definitions"]["nsd"]["text"]
    assert all(float(row["volumes"]) == int(row["voxels_predicted"]) for row in rows)
    assert float(rows[0]["nsd_9mm"]) >= float(rows[0]["nsd"])
    assert list(rows[0])[-2:] == ["volumes", "nsd_9mm"]
    # A metric of the user's with the name of a default one is shown in its place, and its definition says so.
    assert evaluate(run, f"metrics=[{{name: '{file}:volumes', title: precision, args: {{factor: 0}}}}]") == 0
    rows, summary = results(run)
    assert {float(row["precision"]) for row in rows} == {0}
    assert summary["definitions"]["precision"]["text"] == f"the metric {file}:volumes of the configuration"
