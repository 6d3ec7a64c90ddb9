"""`data.fold: all`: a run on every case validates nothing, and every command and table says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fusionseg
import fusionseg.cli
import fusionseg.train
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.utils.errors import UserError

SAID = "trained on all cases; no validation"
MakeDataset = Callable[..., Path]


def main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    status = fusionseg.cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out + said.err


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(balls: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of one configuration: `all` and `fold0`."""
    folder = tmp_path_factory.mktemp("fold_all")
    for name, fold in (("all", "all"), ("fold0", 0)):
        config = folder / f"{name}.yaml"
        config.write_text(dump_config(tiny_config(balls, folder / "runs", name=name, data={"fold": fold})))
        assert fusionseg.train.main(["--config", str(config)]) == 0
    return folder / "runs"


def test_the_run_trains_on_every_case_and_leaves_no_validation(runs: Path) -> None:
    run = runs / "all"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "last.pt", "step_00000001.pt", "step_00000002.pt", "step_00000004.pt"
    ]  # fmt: skip
    assert [record["kind"] for record in records(run)] == [*["train"] * 4, "end"]
    end = records(run)[-1]
    assert end["reason"] == f"step 4; {SAID}" and "best_dice" not in end
    split = json.loads((run / "split.json").read_text())
    assert (split["fold"], split["validation"], split["methods"]) == ("all", [], [{"name": "all"}])
    assert sorted(case["name"] for case in split["training"]) == [f"case_00{k}" for k in range(5)]
    log = (run / "log.txt").read_text()
    assert f"data.fold=all: {SAID}" in log and "best dice" not in log
    assert not (run / "pictures").exists()


def test_a_killed_run_resumes_exactly(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs/all"
    shutil.copytree(runs / "all", run)
    lines = records(run)[:2]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in lines))
    for name in ("last.pt", "step_00000004.pt"):
        (run / "checkpoints" / name).unlink()
    status, said = main(
        capsys, "train", "--config", runs.parent / "all.yaml", f"output={run.parent}",
        f"data.prepared={next((runs / 'prepared').iterdir())}",
    )  # fmt: skip
    assert status == 0 and "resuming from" in said
    losses = [[record["loss"] for record in records(one) if record["kind"] == "train"] for one in (run, runs / "all")]
    assert losses[0] == losses[1]
    _, said = main(capsys, "train", "--config", runs.parent / "all.yaml")
    assert "this run has finished" in said and f"fusionseg evaluate {runs / 'all'} --dataset FOLDER" in said


def test_evaluation_needs_other_cases(
    runs: Path, balls: Path, make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "all"
    status, said = main(capsys, "evaluate", run)
    assert status == 2 and SAID in said and "--dataset FOLDER" in said
    with pytest.raises(UserError, match=SAID):
        fusionseg.evaluate(run)
    status, said = main(capsys, "evaluate", run, "--dataset", balls)
    assert status == 2 and "all 5 cases were trained on" in said
    others = make_dataset(tmp_path / "others", cases=2, classes=3, seed=9)
    shutil.copy(balls / "imagesTr/case_000.nii.gz", others / "imagesTr/case_000.nii.gz")
    shutil.copy(balls / "labelsTr/case_000.nii.gz", others / "labelsTr/case_000.nii.gz")
    status, said = main(capsys, "evaluate", run, "--dataset", others)
    assert status == 0 and "has no best.pt" in said and f"weights: last.pt, step 4; {SAID}" in said
    assert json.loads((run / "evaluation_others/summary.json").read_text())["left_out"] == ["case_000"]
    status, said = main(capsys, "evaluate", runs)
    assert status == 0 and f"| no validation cases | {SAID}" in said and "| evaluated " in said


def test_prediction_takes_the_last_weights(
    runs: Path, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = balls / "imagesTr/case_001.nii.gz"
    status, said = main(capsys, "predict", runs / "all", "-i", image, "-o", tmp_path / "masks")
    assert status == 0 and f"has no best.pt ({SAID}): last.pt is used" in said
    run = fusionseg.load_run(runs / "all")
    assert run.best is None and SAID in repr(run)
    assert run.predict(image).shape == fusionseg.load_run(runs / "fold0").predict(image).shape


def test_tables_say_that_nothing_was_validated(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = main(capsys, "compare", runs)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    by_fold = {row[1]: row for row in rows[2:]}
    assert status == 0 and rows[0][1] == "folds" and by_fold.keys() == {"all", "0"}
    assert by_fold["all"][2] == "1 [1]" and by_fold["all"][3] == "-" and by_fold["0"][3] != "-"
    assert f"[1] {SAID}" in said
    status, said = main(capsys, "compare", runs / "all")
    assert status == 0 and f"[1] {SAID}" in said and "parameters" in said
    status, said = main(capsys, "status", runs)
    assert status == 0 and "| none " in said and f"score none: {SAID}" in said


def test_what_needs_a_validation_is_refused(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    for data, key in (({"folds": 1}, "data.folds: 1 trains and validates"), ({}, "stop.plateau: needs validations")):
        with pytest.raises(UserError, match=key):
            validate({"model": {"name": "unet"}, "data": {"fold": "all", **data}, "stop": {"plateau": {}}})
    status, said = main(capsys, "train", "--config", runs.parent / "all.yaml", "name=planned", "--dry-run")
    assert status == 0 and "5 to train, none to validate on (data.fold=all)" in said
