"""Pages of evaluations and runs, and pictures of masks: real runs, as the commands write them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel
import numpy as np
import pytest
import torch
from html_pages import NEEDS_CHROMIUM, assert_self_contained, open_in_chromium
from PIL import Image
from scipy.stats import spearmanr

from fusionseg.cli import main
from fusionseg.config import RunConfig, validate
from fusionseg.inference.predictor import Predictor
from fusionseg.inference.reports.evaluated_cases import EvaluatedCases, LabelledVolume
from fusionseg.inference.reports.worst_cases import compare_worst, properties_of, spearman
from fusionseg.observability.case_pictures import IGNORED
from fusionseg.runs.records import RecordKind, RecordWriter, RunStatus
from fusionseg.runs.run_config import write_run_config

MakeDataset = Callable[..., Path]
TinyConfig = Callable[..., RunConfig]
CASES = 7


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Path], make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run with an evaluation of seven cases that it was not trained on, and the pages of both."""
    folder = tmp_path_factory.mktemp("reports")
    other = make_dataset(folder / "Task94_<other> #1", cases=CASES, classes=3, seed=5)
    copy = folder / "tiny"
    shutil.copytree(tiny_run(), copy)
    assert main(["evaluate", str(copy), "--dataset", str(other), "--device", "cpu"]) == 0
    assert main(["report", str(copy), "--device", "cpu"]) == 0
    return copy


@pytest.fixture(scope="module")
def evaluation(run: Path) -> Path:
    (found,) = run.glob("evaluation*")
    return found


def test_the_page_of_an_evaluation_has_every_case_and_score(evaluation: Path) -> None:
    page = assert_self_contained(evaluation / "report.html")
    text = (evaluation / "report.html").read_text()
    with (evaluation / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["case"] for row in rows}) == CASES
    for row in rows:
        assert row["case"] in text
        for metric, digits in (("dice", 4), ("hd95_mm", 2)):
            if row[metric]:
                assert f"<td>{float(row[metric]):.{digits}f}</td>" in text, (row["case"], metric)
    summary = json.loads((evaluation / "summary.json").read_text())
    assert f"<b>{summary['dice']:.4f}</b>" in text
    assert len(page.sources) == 6, "the three worst and the three best of seven cases"
    assert len([name for name in page.ids if name.startswith("picture-")]) == 6
    assert "What the worst cases have in common" in text and "Mean Dice and size" in text
    assert "&lt;other&gt;" in text
    assert (evaluation / "report.html").stat().st_size < 10e6


def test_the_pictures_of_a_page_are_large(evaluation: Path) -> None:
    import base64
    import io

    source = assert_self_contained(evaluation / "report.html").sources[0]
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        assert picture.width >= 900 and picture.height >= 600


def test_the_same_evaluation_gives_the_same_page(evaluation: Path) -> None:
    before = (evaluation / "report.html").read_bytes()
    assert main(["report", str(evaluation), "--device", "cpu"]) == 0
    assert (evaluation / "report.html").read_bytes() == before


def test_pictures_are_of_the_kept_masks_and_the_same_without_them(
    run: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that was changed by hand is not what was scored: that case is predicted again."""
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    place, calls = copy / evaluation.name, []
    predict = Predictor.predict_outputs

    def counted(self: Predictor, *arguments: Any) -> Any:
        calls.append(arguments)
        return predict(self, *arguments)

    monkeypatch.setattr(Predictor, "predict_outputs", counted)
    pictures = [assert_self_contained(evaluation / "report.html").sources]
    for change in (None, "changed", "removed"):
        masks = sorted((place / "masks").glob("*.nii.gz"))
        if change == "changed":
            for mask in masks:
                image = nibabel.load(mask)
                nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
        elif change == "removed":
            shutil.rmtree(place / "masks")
        assert main(["report", str(place), "--device", "cpu"]) == 0
        assert len(calls) == (0 if change is None else 6)
        calls.clear()
        pictures.append(assert_self_contained(place / "report.html").sources)
    assert len(pictures[0]) == 6 and all(one == pictures[0] for one in pictures)


@NEEDS_CHROMIUM
def test_a_browser_shows_the_pages(run: Path, evaluation: Path, tmp_path: Path) -> None:
    assert open_in_chromium(evaluation / "report.html", tmp_path / "first").std() > 20
    assert open_in_chromium(run / "report.html", tmp_path / "second").std() > 10


def test_without_its_data_a_page_has_the_scores_and_says_why(
    run: Path, evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    place = copy / evaluation.name
    summary = json.loads((place / "summary.json").read_text())
    summary["request"]["dataset"] = str(tmp_path / "gone/dataset.json")
    (place / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(place), "--device", "cpu"]) == 0
    page, text = assert_self_contained(place / "report.html"), (place / "report.html").read_text()
    assert not page.sources and "There are no pictures: " in text and "gone" in text
    assert f"<b>{summary['dice']:.4f}</b>" in text
    assert main(["report", str(place), "--pictures", "0"]) == 0
    assert not assert_self_contained(place / "report.html").sources


def test_an_option_makes_the_page_of_an_evaluation_again(run: Path, evaluation: Path, tmp_path: Path) -> None:
    """A page without pictures, as the data had moved, gets them when their place is given."""
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    page = copy / evaluation.name / "report.html"
    made = page.stat().st_mtime_ns
    assert main(["report", str(copy)]) == 0
    assert page.stat().st_mtime_ns == made, "newer than its scores: kept"
    assert main(["report", str(copy), "--pictures", "0"]) == 0
    assert not assert_self_contained(page).sources


def test_a_page_ends_its_pictures_without_memory(
    run: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)

    def no_memory(*args: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(EvaluatedCases, "predict", no_memory)
    place = copy / evaluation.name
    assert main(["report", str(place), "--device", "cpu"]) == 0
    text = (place / "report.html").read_text()
    assert "There are no pictures: " in text and "Tried to allocate" in text and "--device cpu" in text


def test_the_page_of_a_run_has_data_curves_time_and_evaluations(run: Path, evaluation: Path) -> None:
    page = assert_self_contained(run / "report.html", neighbours=True)
    text = (run / "report.html").read_text()
    assert f"./{quote(evaluation.name)}/report.html" in page.links
    for part in ("Run tiny", "completed", "monai_unet", "Curves", "Where the time went", "Configuration"):
        assert part in text, part
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [one for one in records if one["kind"] == "val"]
    assert f"<b>{validation['dice']:.4f}</b>" in text
    (picture,) = (run / "pictures").glob("validation_*.png")
    assert len(page.sources) == 1
    with Image.open(picture) as shown:
        assert shown.width >= 900 and np.asarray(shown).std() > 10, "of the training too"
    assert text.count("<svg") >= 5


def test_the_page_of_a_pretraining(tmp_path: Path, balls: Path) -> None:
    sections = {"data": {"root": str(balls), "patch": [64, 64, 64]}, "model": {"name": "swin_unetr"}, "pretrain": {}}
    run = tmp_path / "tiny"
    write_run_config(run, validate({"name": "tiny", "output": str(tmp_path), **sections}))
    writer = RecordWriter(run)
    for step in (1, 2):
        writer.write(RecordKind.TRAIN, step, loss=1.0 / step, lr=0.1, grad_norm=nan, skipped=0, step_s=1.0)
    writer.write(RecordKind.VAL, 2, ssim=0.75, psnr=20.0, cases=1)
    writer.close()
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert_self_contained(run / "report.html")
    assert (
        str(RunStatus.UNFINISHED) in text
        and "last ssim" in text
        and "0.7500" in text
        and "norm of the grad" not in text
    )


def test_a_run_without_records_has_a_page(tmp_path: Path, balls: Path, tiny_config: TinyConfig) -> None:
    write_run_config(tmp_path / "tiny", tiny_config(balls, tmp_path))
    assert main(["report", str(tmp_path / "tiny")]) == 0
    assert "There are no records yet." in (tmp_path / "tiny/report.html").read_text()


def test_all_wrong_paths_are_named(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    before = (run / "report.html").stat().st_mtime_ns
    assert main(["report", str(run), str(tmp_path / "empty"), str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "empty: is neither a run folder" in said and "none: is neither" in said
    assert (run / "report.html").stat().st_mtime_ns == before, "nothing was written"
    assert main(["report", str(run), "--pictures", "-1"]) == 2


def volume(label: np.ndarray, image: np.ndarray | None = None) -> LabelledVolume:
    noise = np.random.default_rng(0).normal(0, 1, label.shape).astype(np.float32)
    return LabelledVolume(noise if image is None else image, label.astype(np.uint8), (1.0, 1.0, 2.0))


def test_properties_of_a_case() -> None:
    label = np.zeros((40, 40, 30))
    label[10:20, 10:20, 10:15] = 1
    label[25:27, 25:27, 20:22] = 2
    label[0, 0, 0] = IGNORED
    image = np.random.default_rng(1).normal(0, 2, label.shape).astype(np.float32)
    image[(label > 0) & (label != IGNORED)] += 10
    found = properties_of(volume(label, image))
    assert found["foreground_ml"] == pytest.approx((500 + 8) * 2 / 1000)
    assert found["components"] == 2 and found["at_border"] == 0
    assert found["contrast"] == pytest.approx(5, rel=0.1)
    assert (found["largest_voxel_mm"], found["voxel_mm3"], found["volume_ml"]) == (2, 2, 40 * 40 * 30 * 2 / 1000)
    label[39, 5, 5] = 1
    assert properties_of(volume(label, image))["at_border"] == 1


def test_properties_without_foreground_or_rim() -> None:
    empty = properties_of(volume(np.zeros((8, 8, 8))))
    assert empty["foreground_ml"] == 0 and isnan(empty["contrast"]) and isnan(empty["at_border"])
    full = properties_of(volume(np.ones((8, 8, 8))))
    assert isnan(full["contrast"]) and full["at_border"] == 1 and full["components"] == 1
    flat = np.zeros((30, 30, 1))
    flat[10:20, 10:20] = 1
    assert properties_of(volume(flat))["at_border"] == 0, "a plane is no border"


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 15).astype(float), rng.normal(size=15)
        assert spearman(first.tolist(), second.tolist()) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert isnan(spearman([1, 1, 1], [1, 2, 3])) and isnan(spearman([1, 2], [1, 2]))


def test_the_worst_cases_are_compared_with_the_others() -> None:
    keys = ("foreground_ml", "components", "contrast", "at_border", "largest_voxel_mm", "voxel_mm3", "volume_ml")
    dice = {f"c{k}": k / 10 for k in range(8)}
    properties = {
        name: dict.fromkeys(keys, 1.0) | {"foreground_ml": 10 * value, "contrast": nan} for name, value in dice.items()
    }
    properties["c0"]["components"] = 7.0
    found = {one.name: one for one in compare_worst(dice, properties, ["c0", "c1"])}
    assert set(found) == {"foreground_ml", "components"}, "what is the same in all cases says nothing"
    assert found["foreground_ml"].correlation == pytest.approx(1) and found["foreground_ml"].cases == 8
    assert found["foreground_ml"].worst == pytest.approx(0.5) and found["foreground_ml"].others == pytest.approx(4.5)
    assert found["components"].worst == 4 and found["components"].others == 1 and found["components"].correlation < 0
    assert compare_worst(dict(list(dice.items())[:5]), properties, ["c0"]) == []


def test_render_draws_a_mask_over_its_image(tmp_path: Path, balls: Path) -> None:
    image, label = balls / "imagesTr/case_001.nii.gz", balls / "labelsTr/case_001.nii.gz"
    plain, compared = tmp_path / "plain.png", tmp_path / "new/compared.png"
    assert main(["render", str(image), str(label), "-o", str(plain), "--names", "one", "two"]) == 0
    assert main(["render", str(image), str(label), "--reference", str(label), "-o", str(compared)]) == 0
    pictures = [np.asarray(Image.open(path)) for path in (plain, compared)]
    assert all(picture.shape[1] >= 900 and picture.std() > 10 for picture in pictures)
    again = tmp_path / "again.png"
    assert main(["render", str(image), str(label), "-o", str(again), "--names", "one", "two"]) == 0
    assert again.read_bytes() == plain.read_bytes()


def test_render_refuses_what_does_not_fit(tmp_path: Path, balls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = balls / "imagesTr/case_001.nii.gz"
    small = tmp_path / "small.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), small)
    assert main(["render", str(image), str(small), "-o", str(tmp_path / "x.png")]) == 2
    assert "small.nii.gz" in capsys.readouterr().err
    assert main(["render", str(image), str(small), "-o", str(tmp_path / "x.jpg")]) == 2
    assert re.search(r"--output: .*x\.jpg: expected a name that ends in \.png", capsys.readouterr().err)
    assert not list(tmp_path.glob("x.*"))
