"""The evaluation of masks with post-processing: its folder, its scores, and what is said about the choice."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from written_runs import table
from written_sweep import NAMES, row_of, write_sweep

import fusionseg
from fusionseg import cli, train
from fusionseg.config import RunConfig, dump_config
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.inference.postprocessing.choice import choose, dice_with, try_candidates
from fusionseg.inference.postprocessing.steps import PostProcessing, Steps
from fusionseg.inference.predictor import Predictor
from fusionseg.runs import evaluations

CHANGING = {"largest_foreground": True, "steps": {"ball1": {"largest": True}}}
"""Steps that change the masks of a network that has learnt nothing."""
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def trained_folds(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Path], tiny_config: Callable[..., RunConfig]
) -> Path:
    """Two folds of one step each, evaluated without post-processing."""
    folder = tmp_path_factory.mktemp("folds")
    shutil.copytree(tiny_run(), folder / "runs/unet-fold0")
    root = Path(fusionseg.load_run(folder / "runs/unet-fold0").config.data.root)
    changes = {"data": {"folds": 2, "fold": 1}, "train": {"steps": 1}, "validate": {"every": 1}}
    second = tiny_config(root, folder / "runs", **changes).model_copy(update={"name": "unet-fold1"})
    config = folder / "fold1.yaml"
    config.write_text(dump_config(second))
    assert train.main(["--config", str(config)]) == 0
    assert cli.main(["evaluate", str(folder / "runs"), *CPU]) == 0
    return folder / "runs"


@pytest.fixture
def folds(trained_folds: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_folds, tmp_path / "runs")
    return tmp_path / "runs"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**read(path), **changes}))


def test_each_fold_is_scored_by_a_choice_on_the_other(
    folds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [folds / "unet-fold0", folds / "unet-fold1"]
    assert cli.main(["postprocess", str(folds)]) == 0
    said = capsys.readouterr().out
    assert "held out: the cases of each run" in said and "held out" in table(said)[0]
    stored = [read(run / "postprocessing.json") for run in runs]
    assert len(stored[0]["chosen"]["images"]) == 2 and stored[0]["steps"] == stored[1]["steps"]
    scheme = LabelScheme.of_names(["background", "ball1", "ball2"])
    trials = []
    for run in runs:
        (mask,) = (run / "evaluation/masks").iterdir()
        root = fusionseg.load_run(run).config.data.root
        label = nibabel.load(Path(root) / "labelsTr" / mask.name)
        arrays = [np.asarray(image.dataobj).astype(np.uint8) for image in (nibabel.load(mask), label)]
        spacing = label.header.get_zooms()
        trials.append(try_candidates(arrays[0], arrays[1], np.array([True, True]), scheme, spacing))
    for own, other, content in ((0, 1, stored[0]), (1, 0, stored[1])):
        expected = choose([trials[other]], scheme.output_names).chosen
        assert PostProcessing.from_json(content["without_own_cases"]) == expected
        edit(runs[own] / "postprocessing.json", without_own_cases=CHANGING)
    with monkeypatch.context() as patch:  # the kept masks need no network
        patch.setattr(Predictor, "predict_outputs", None)
        assert cli.main(["evaluate", str(folds), "--postprocess", "auto", *CPU]) == 0
    said = capsys.readouterr().out
    assert (
        "largest component of the foreground; ball1: largest component (chosen on the cases of the other runs)" in said
    )
    for run, trial in zip(runs, trials, strict=True):
        plain, processed = run / "evaluation", run / "evaluation_postprocessed"
        summary = read(processed / "summary.json")
        assert summary["request"] == {**read(plain / "summary.json")["request"], "postprocess": "auto"}
        recorded = summary["postprocessing"]
        assert (recorded["origin"], recorded["chosen_on"]) == ("without own cases", 0)
        steps = PostProcessing(True, {"ball1": Steps(largest=True)})
        expected = dice_with([trial], scheme.output_names, steps)[0]
        dice = [score.metrics["dice"] for score in evaluations.read_scores(processed)]
        assert dice == pytest.approx(expected, nan_ok=True)
        (mask,) = (plain / "masks").iterdir()
        image = nibabel.load(mask)
        applied = steps.apply(np.asarray(image.dataobj).astype(np.uint8), scheme, image.header.get_zooms())
        assert np.array_equal(np.asarray(nibabel.load(processed / "masks" / mask.name).dataobj), applied)
        assert (applied != np.asarray(image.dataobj)).any()
    # A mask that was changed since is predicted again, and so is one of other options.
    (mask,) = (runs[0] / "evaluation/masks").iterdir()
    image = nibabel.load(mask)
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(np.asarray(image.dataobj)), image.affine, image.header), mask)
    first = runs[0] / "evaluation_postprocessed/cases.csv"
    before = first.read_text()
    first.unlink()
    assert cli.main(["evaluate", str(runs[0]), "--postprocess", "auto", *CPU]) == 0
    assert first.read_text() == before
    capsys.readouterr()
    # The rows of both are candidates; the command predicts with the choice on all folds.
    assert cli.main(["best", str(folds)]) == 0
    names = {row["name"] for row in table(capsys.readouterr().out)}
    assert names == {"unet", "unet + post-processing"}
    assert cli.main(["compare", str(folds), "--rows", "name", "--postprocessed"]) == 0
    assert {row["name"] for row in table(capsys.readouterr().out)} == names
    assert cli.main(["report", str(runs[0]), str(folds)]) == 0
    page = (runs[0] / "evaluation_postprocessed/report.html").read_text()
    assert "With post-processing: largest component of the foreground" in page and "There are no" not in page
    assert "unet + post-processing" in (folds / "report.html").read_text()


def test_an_evaluation_is_kept_until_the_steps_change(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folds / "unet-fold0"
    evaluate = ["evaluate", str(run), "--postprocess", "auto", "--skip-existing", *CPU]
    assert cli.main(evaluate) == 2
    assert f"a run has none; fusionseg postprocess {run} chooses it" in capsys.readouterr().err
    assert cli.main(["postprocess", str(run)]) == 0
    said = capsys.readouterr().out
    assert "is optimistic, as the same cases chose it" in said and "held out" not in table(said)[0]
    assert cli.main(evaluate) == 0
    said = capsys.readouterr().out
    assert "optimistic scores: the post-processing was chosen on 1 of the 1 cases" in said
    summary = run / "evaluation_postprocessed/summary.json"
    written = summary.stat().st_mtime_ns
    assert cli.main(evaluate) == 0 and summary.stat().st_mtime_ns == written
    edit(run / "postprocessing.json", **CHANGING)
    shutil.rmtree(run / "evaluation")
    assert cli.main(["compare", str(run), "--postprocessed"]) == 0
    said = capsys.readouterr().out
    assert "has no evaluation without post-processing" in said
    assert "its post-processing has changed since" in said and "scores are optimistic" in said
    assert cli.main(evaluate) == 0 and summary.stat().st_mtime_ns != written
    assert read(summary)["postprocessing"]["largest_foreground"] is True
    # A file by its path is another request, in a folder of its own; one without a record of its choice is said to be.
    content = read(run / "postprocessing.json")
    del content["chosen"]
    file = folds.parent / "my steps.json"
    file.write_text(json.dumps(content))
    found = fusionseg.evaluate(run, postprocess=file, device="cpu")
    assert found.folder.name.startswith("evaluation_postprocessed_") and found.summary["request"]["postprocess"] == str(
        file
    )
    assert found.summary["postprocessing"]["chosen_on"] is None
    content["steps"] = {"ball3": {"largest": True}}
    file.write_text(json.dumps(content))
    with pytest.raises(fusionseg.UserError, match="steps of 'ball3'"):
        fusionseg.evaluate(run, postprocess=file, device="cpu")


def test_the_python_interface_predicts_with_post_processing(folds: Path) -> None:
    run = fusionseg.load_run(folds / "unet-fold0")
    image = min(Path(run.config.data.root).glob("imagesTr/*.nii.gz"))
    with pytest.raises(fusionseg.UserError, match="a run has none"):
        run.predict(image, postprocess="auto", device="cpu")
    assert cli.main(["postprocess", str(run.folder)]) == 0
    edit(run.folder / "postprocessing.json", **CHANGING)
    plain = run.predict(image, device="cpu")
    processed = run.predict(image, postprocess="auto", device="cpu")
    steps = PostProcessing(True, {"ball1": Steps(largest=True)})
    source = nibabel.load(image)
    scheme = LabelScheme.of_names(["background", "ball1", "ball2"])
    assert np.array_equal(processed, steps.apply(plain, scheme, source.header.get_zooms()))
    assert not np.array_equal(processed, plain)
    of_array = run.predict(source.get_fdata(), affine=source.affine, postprocess="auto", device="cpu")
    assert np.array_equal(of_array, processed)
    files = run.predict(image, output=folds.parent / "masks", postprocess="auto", device="cpu")
    assert np.array_equal(np.asarray(nibabel.load(*files.values()).dataobj), processed)
    with pytest.raises(fusionseg.UserError, match="postprocess: changes masks"):
        run.predict(image, postprocess="auto", probabilities=True, device="cpu")


def write_processed(folder: Path, gain: float, folds: range, origin: str, chosen_on: int | None) -> None:
    """Evaluations of the runs `unet` with post-processing, whose Dice is higher by `gain`."""
    for fold in folds:
        run = folder / f"unet-seed0-fold{fold}"
        request = evaluations.EvaluationRequest(dataset=None, given=None, postprocess="auto")
        summary = read(run / "evaluation/summary.json")
        facts = {"origin": origin, "largest_foreground": True, "steps": {}, "chosen_on": chosen_on}
        summary |= {"request": request.to_json(), "postprocessing": facts}
        rows = [row_of("unet", case, label, 0) for case in NAMES[fold::5] for label in ("a", "b")]
        rows = [{**row, "dice": row["dice"] + gain} for row in rows]
        summary.pop("scores")
        evaluations.write_evaluation(run / request.folder_name, rows, summary, rows)
        content = {"format": "fusionseg post-processing", "largest_foreground": True, "steps": {}}
        content |= {"without_own_cases": dict(content)} if origin == "without own cases" else {}
        (run / "postprocessing.json").write_text(json.dumps(content))


def test_the_best_row_may_be_one_with_post_processing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    write_processed(folder, 0.05, range(4), "without own cases", 0)
    assert cli.main(["best", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "best: unet," in said and "unet + post-processing: left out, as only 32 of 40 cases have scores" in said
    write_processed(folder, 0.05, range(5), "without own cases", 0)
    assert cli.main(["best", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "best: unet + post-processing" in said and "chosen for each run on the cases of the other runs" in said
    (line,) = (line for line in said.splitlines() if line.startswith("fusionseg predict "))
    assert shlex.split(line)[2:7] == [str(folder / f"unet-seed0-fold{fold}") for fold in range(5)]
    assert shlex.split(line)[7:11] == ["--checkpoint", "last", "--postprocess", "auto"]
    assert "optimistic where the same cases chose it" not in said
    write_processed(folder, 0.05, range(5), "stored", 8)
    edit(folder / "unet-seed0-fold3/postprocessing.json", largest_foreground=False)
    assert cli.main(["best", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "optimistic where the same cases chose it" in said and "scores are optimistic" in said
    assert "the command needs one post-processing of all runs" in said
    (content,) = read(folder / "best.json")
    assert "--postprocess auto" in content["command"] and content["candidates"][0]["notes"]
    # Without the option, the other commands are about the plain evaluations alone.
    assert cli.main(["statistics", str(folder)]) == 0
    assert "post-processing" not in capsys.readouterr().out
    assert cli.main(["statistics", str(folder), "--postprocessed", "--against", "unet"]) == 0
    assert "unet + post-processing" in capsys.readouterr().out


def test_the_table_of_a_sweep_has_a_row_with_post_processing(
    folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice is made for the runs of the row, again after one of them was evaluated anew, and not otherwise."""
    shutil.copy(folds / "unet-fold0/config.yaml", tmp_path / "base.yaml")
    (tmp_path / "sweep.yaml").write_text(
        "name: runs\nbase: base.yaml\ngrid: {data.fold: [0, 1]}\n"
        "table: {rows: name, metrics: [dice (files)], postprocess: true}\nrun_name: unet-fold{data.fold}\n"
    )
    words = ["table", str(tmp_path / "sweep.yaml"), f"output={tmp_path}", "cluster.gpus_per_node=0", *CPU]
    # A choice on the cases of one fold alone is optimistic, and is no choice for the row.
    assert cli.main(["postprocess", str(folds / "unet-fold0")]) == 0
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "optimistic" not in capsys.readouterr().out
    with (folds / "compare.csv").open() as stream:
        scores = {row["name"]: float(row["dice (files)"]) for row in csv.DictReader(stream)}
    assert set(scores) == {"unet", "unet + post-processing"}
    stored = [folds / f"unet-fold{fold}/postprocessing.json" for fold in (0, 1)]
    assert read(stored[0])["chosen"] == read(stored[1])["chosen"] and len(read(stored[0])["chosen"]["runs"]) == 2
    means = [read(folds / f"unet-fold{fold}/evaluation_postprocessed/summary.json")["dice"] for fold in (0, 1)]
    assert scores["unet + post-processing"] == pytest.approx(np.mean(means))
    times = [file.stat().st_mtime_ns for file in stored]
    assert cli.main(words) == 0
    assert [file.stat().st_mtime_ns for file in stored] == times
    assert cli.main(["evaluate", str(folds / "unet-fold1"), *CPU]) == 0
    assert cli.main(words) == 0
    assert [file.stat().st_mtime_ns > before for file, before in zip(stored, times, strict=True)] == [True, True]
