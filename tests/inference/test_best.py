"""fusionseg best: the choice on pooled cross-validation, its certainty, and the command that it prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from written_runs import table, write_cases, write_run
from written_sweep import NAMES, row_of, score, write_sweep

from fusionseg.cli import main
from fusionseg.inference.statistics.best import out_of_bag_score
from fusionseg.inference.statistics.intervals import mean_interval
from fusionseg.inference.statistics.resampling import resample_counts
from fusionseg.runs import evaluations


def test_the_best_row_and_the_command_that_predicts_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "a sweep", ("unet", "resunet", "small"))
    assert main(["best", str(folder)]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert [row["name"] for row in rows] == ["resunet", "unet", "small"]
    values = {
        name: [fmean(score(name, case, label, seed) for label in "ab" for seed in (0, 1)) for case in NAMES]
        for name in ("resunet", "unet", "small")
    }
    assert rows[0]["Dice"].startswith(f"{fmean(values['resunet']):.4f} [") and rows[0]["difference"] == "-"
    differences = mean_interval(np.array(values["unet"]) - np.array(values["resunet"]))
    assert rows[1]["difference"] == f"{differences.mean:+.4f} [{differences.low:+.4f}, {differences.high:+.4f}]"
    assert "every other row is worse" in out and "averages the 10 runs of the row" in out
    (line,) = (line for line in out.splitlines() if line.startswith("fusionseg predict "))
    words = shlex.split(line)
    runs = [str(folder / f"resunet-seed{seed}-fold{fold}") for seed in (0, 1) for fold in range(5)]
    assert words[2:12] == runs and words[12:] == ["--checkpoint", "last", "-i", "INPUT", "-o", "OUTPUT"]
    (content,) = json.loads((folder / "best.json").read_text())
    assert content["command"] == line and content["best"] == "resunet" and content["runs"] == runs
    assert content["score"]["mean"] == pytest.approx(fmean(values["resunet"])) and content["cases"] == 40
    assert content["not_clearly_worse"] == []


def test_a_lower_distance_is_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet", "resunet"), seeds=(0,))
    assert main(["best", str(folder), "--metric", "hd95_mm"]) == 0
    assert "best: resunet, with the lowest mean HD95 mm" in capsys.readouterr().out


def test_rows_that_the_cases_cannot_tell_apart_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet", "small"), seeds=(0,))
    for fold in range(5):  # small is worse in 19 cases, and better in 21
        rows = [
            row_of("unet", case, label, 0, dice=score("unet", case, label, 0) + (0.02 if int(case[1:]) < 21 else -0.02))
            for case in NAMES[fold::5]
            for label in "ab"
        ]
        write_cases(folder / f"small-seed0-fold{fold}", rows)
        environment = folder / f"small-seed0-fold{fold}" / "environment.json"
        environment.write_text(json.dumps({"parameters": 2_000_000}))
    assert main(["best", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "best: small" in out and "zero in it): unet" in out and "unet has fewer parameters" in out


def test_the_score_on_cases_that_did_not_choose() -> None:
    """Resample by resample. Rows of noise alone: the best of ten looks better than it is."""
    merits = np.random.default_rng(1).normal(0.8, 0.1, (20, 10))
    scores = []
    for counts in np.concatenate(list(resample_counts(20))):
        chosen = int(np.argmax(counts @ merits))
        if (counts == 0).any():
            scores.append(merits[counts == 0, chosen].mean())
    assert out_of_bag_score(merits) == pytest.approx(fmean(scores))
    assert out_of_bag_score(merits) < merits.mean(axis=0).max()
    assert np.isnan(out_of_bag_score(merits[:, :1]))


def test_ensembles_are_candidates_with_all_of_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet", "resunet"), seeds=(0,))
    for fold in range(5):
        other = folder / f"resunet-seed0-fold{fold}"
        run = folder / f"unet-seed0-fold{fold}"
        rows = [row_of("unet", case, label, 0, dice=0.99) for case in NAMES[fold::5] for label in "ab"]
        request = evaluations.EvaluationRequest(dataset=None, given=None, others=[other]).to_json()
        summary = {"checkpoint": f"{run}/checkpoints/last.pt", "step": 10, "dice": 0.99, "hd95_mm": 1.0, "classes": {}}
        (run / "evaluation_ensemble").mkdir()
        evaluations.write_evaluation(
            run / "evaluation_ensemble", rows, {**summary, "request": request, "cases": 8}, rows
        )
    assert main(["best", str(folder)]) == 0
    assert "best: resunet" in capsys.readouterr().out
    assert main(["best", str(folder), "--ensembles"]) == 0
    out = capsys.readouterr().out
    assert "best: resunet + unet" in out and "averages all 10 runs of the ensembles" in out
    (content,) = json.loads((folder / "best.json").read_text())
    assert len(content["runs"]) == 10 and content["score"]["mean"] == pytest.approx(0.99)


def test_one_row_is_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    assert main(["best", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "best: unet" in out and "optimistic" not in out and "worse" not in out


@pytest.mark.parametrize(
    ("metric", "message"), [("volume_ml_error", "no better direction"), ("dise", "did you mean dice")]
)
def test_a_metric_that_cannot_choose_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, message: str
) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    assert main(["best", str(folder), "--metric", metric]) == 2
    assert message in capsys.readouterr().err and not (folder / "best.json").exists()


def test_rows_without_a_shared_case_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, fold, learning_rate in (("a", 0, 1e-3), ("b", 1, 1e-2)):
        run = write_run(
            tmp_path / name, [0.5], cases=NAMES, data={"root": "/data", "fold": fold}, optim={"lr": learning_rate}
        )
        write_cases(run, [row_of("unet", case, "a", 0) for case in NAMES[fold::5]])
    assert main(["best", str(tmp_path)]) == 2
    assert "no case of T has a value of dice in all rows" in capsys.readouterr().err
