"""Pooled scores: classes that a network missed, parameters of metrics, equal names, renamed cases, and the notes."""

from __future__ import annotations

import csv
import json
import shlex
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from written_runs import table, write_cases, write_run
from written_sweep import NAMES, row_of, write_sweep

from fusionseg.cli import main
from fusionseg.cluster.sweep import Sweep
from fusionseg.commands.tables import _write_statistics
from fusionseg.config.parts.metric import MetricConfig, title_problems
from fusionseg.inference.comparison.rows import compare
from fusionseg.inference.evaluation.results import segmentation_table
from fusionseg.inference.statistics.analysis import analyse
from fusionseg.inference.statistics.best import choose
from fusionseg.inference.statistics.pooled import pool
from fusionseg.runs.evaluations import read_scores
from fusionseg.utils.errors import UserError


def edit_summary(evaluation: Path, **fields: Any) -> None:
    """Add fields to the summary of an evaluation; None removes one."""
    path = evaluation / "summary.json"
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def evaluations(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{pattern}/evaluation"))


def write_missed(folder: Path) -> Path:
    """unet is 1 mm worse than resunet in each class, but misses the far class b in every second case."""
    write_sweep(folder, seeds=(0,))
    for network in ("unet", "resunet"):
        for fold in range(5):
            rows = []
            for number, case in enumerate(NAMES):
                for label, distance in (("a", 2.0), ("b", 20.0)):
                    is_missed = network == "unet" and label == "b" and number % 2 == 0
                    own = distance + (number % 3) / 10 + (network == "unet")
                    rows.append(row_of(network, case, label, 0, hd95_mm=nan if is_missed else own))
                    rows[-1] |= {"dice": 0.0} if is_missed else {}
            write_cases(folder / f"{network}-seed0-fold{fold}", [row for row in rows if row["case"] in NAMES[fold::5]])
    return folder


def test_a_network_does_not_gain_by_missing_a_far_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_missed(tmp_path)
    pooled = pool(compare([folder]))
    (group,) = analyse(pooled, "resunet").groups
    row = next(row for row in group.rows if row.name == "unet")
    test = row.metrics["hd95_mm"].test
    assert test is not None and test.pairs == 40 and test.difference.mean == pytest.approx(1)
    own = {row.name: row.metrics["hd95_mm"].cases.mean for row in group.rows}
    assert own["unet"] < own["resunet"], "the means of the rows alone are over other classes"
    ranks = dict(zip([row.name for row in group.rows], group.ranks["hd95_mm"].ranks, strict=True))
    assert ranks == {"resunet": 1, "unet": 2}
    dice = row.metrics["dice"].test
    assert dice is not None and dice.difference.mean < -0.1, "the Dice of a missed class is 0 and counts"
    assert main(["best", str(folder), "--metric", "hd95_mm"]) == 0
    out = capsys.readouterr().out
    assert "best: resunet" in out
    assert "hd95_mm: resunet has no value of 0, unet has no value of 20 of the 80 classes of cases" in out
    assert main(["statistics", str(folder), "--metrics", "hd95_mm", "dice"]) == 0
    printed = capsys.readouterr().out
    assert all("*" not in row["mean"] for row in table(printed, 0)), "the means are not over the same classes"
    assert any("**" in row["mean"] for row in table(printed, 2))


def test_rows_with_other_seeds_are_paired_by_case_and_class(tmp_path: Path) -> None:
    write_sweep(tmp_path, ("unet",), seeds=(0,))
    write_sweep(tmp_path, ("resunet",), seeds=(1,))
    (group,) = analyse(pool(compare([tmp_path])), "unet").groups
    test = next(row for row in group.rows if row.name == "resunet").metrics["hd95_mm"].test
    assert test is not None and test.pairs == 40


def test_parameters_of_a_metric_are_equal_among_pooled_runs(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    for evaluation in evaluations(folder):
        edit_summary(evaluation, definitions={"hd95_mm": {"parameters": {"tolerance_mm": 1}}})
    (group,) = analyse(pool(compare([folder]))).to_json()["groups"]
    assert group["definitions"]["hd95_mm"]["parameters"] == {"tolerance_mm": 1}
    assert group["definitions"]["dice"]["parameters"] == {}
    edit_summary(evaluations(folder)[0], definitions={"hd95_mm": {"parameters": {"tolerance_mm": 2}}})
    with pytest.raises(UserError, match=r'hd95_mm: .*"tolerance_mm": 2} \(resunet-seed0-fold0\)') as error:
        pool(compare([folder]))
    assert '"tolerance_mm": 1}' in str(error.value)


def test_the_direction_of_a_titled_metric_is_that_of_its_definition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    for evaluation in evaluations(folder):
        rows = [{**row_of(evaluation.parent.name.split("-")[0], score.case, score.label, 0), "nsd_3mm": 0.5, "own": 1.0}
                for score in read_scores(evaluation)]  # fmt: skip
        rows = [{**row, "nsd_3mm": row["dice"]} for row in rows]
        write_cases(evaluation.parent, rows)
        absent = "empty in both masks: no value; empty in one of them: 0"
        definitions = {
            "nsd_3mm": {"higher_is_better": True, "absent": absent, "parameters": {"tolerance_mm": 3}},
            "own": {"higher_is_better": None, "absent": "as the metric says", "parameters": {}},
        }
        edit_summary(evaluation, definitions=definitions)
    assert main(["best", str(folder), "--metric", "nsd_3mm"]) == 0
    assert "best: resunet, with the highest mean nsd_3mm" in capsys.readouterr().out
    assert main(["statistics", str(folder), "--metrics", "nsd_3mm"]) == 0
    out = capsys.readouterr().out
    assert "nsd_3mm (higher is better):" in out and "nsd_3mm: Kendall's tau" in out and "Dice: Kendall" not in out
    assert main(["best", str(folder), "--metric", "own"]) == 2
    assert "the direction of own is not known" in capsys.readouterr().err


def test_remarks_and_options_of_the_evaluations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    for evaluation in evaluations(folder):
        request = json.loads((evaluation / "summary.json").read_text())["request"]
        edit_summary(evaluation, request={**request, "tta": True, "overlap": 0.25, "precision": "fp32"})
    records = folder / "unet-seed0-fold0" / "metrics.jsonl"
    records.write_text(records.read_text().replace('"completed"', '"plateau"'))
    for command in ("statistics", "best", "compare"):
        assert main([command, str(folder)]) == 0
        out = capsys.readouterr().out
        for option in ("--tta", "--overlap 0.25", "--precision fp32"):
            assert f"was evaluated with {option}" in out, command
        assert "stopped by stop.plateau" in out
    (choice,), _ = choose(pool(compare([folder])), "dice")
    assert shlex.split(choice.command)[-11:-4] == [
        "--checkpoint", "last", "--tta", "--overlap", "0.25", "--precision", "fp32"
    ]  # fmt: skip


def test_runs_of_one_name_in_two_folders_are_two_runs(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_sweep(tmp_path / folder, ("unet",), seeds=(0,))
    with pytest.raises(UserError) as error:
        pool(compare([tmp_path / "one", tmp_path / "two"]))
    for folder in ("one", "two"):
        assert str((tmp_path / folder / "unet-seed0-fold3").resolve()) in str(error.value)


def test_cases_that_were_renamed_since_the_training_count(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    table_of_cases = folder / "unet-seed0-fold0" / "evaluation" / "cases.csv"
    table_of_cases.write_text(table_of_cases.read_text().replace("c00,", "patient7,"))
    pooled = pool(compare([folder]))
    assert "patient7" in pooled.groups[0].rows[0].cases and len(pooled.groups[0].rows[0].cases) == 40
    edit_summary(table_of_cases.parent, request=None)  # as an older version wrote it
    older = pool(compare([folder]))
    assert "patient7" not in older.groups[0].rows[0].cases
    assert any("1 case left out, as its split.json does not name them" in note for note in older.notes)


def test_the_remedy_for_missing_evaluations_has_the_weights_and_all_folders(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", ("unet",), seeds=(0,))
    for name in ("b", "with space"):
        write_run(tmp_path / name / "none", [0.5], cases=NAMES, labels=("background", "a", "b"))
    on_all = write_run(tmp_path / "b" / "final", [], cases=NAMES, data={"root": "/data", "fold": "all"})
    folders = [tmp_path / name for name in ("a", "b", "with space")]
    message = "\n".join(pool(compare(folders, "best")).notes)
    expected = (
        f"fusionseg evaluate {tmp_path / 'b'} {shlex.quote(str(tmp_path / 'with space'))} --checkpoint best makes it"
    )
    assert expected in message
    notes = pool(compare([tmp_path / "a", tmp_path / "b"])).notes
    assert f"{on_all.name}: trained on all cases; no validation" in notes
    assert not any(on_all.name in note for note in notes if "without an evaluation" in note)


def test_the_choice_has_the_scored_runs_and_says_what_could_be_scored(tmp_path: Path) -> None:
    for seed in (0, 1):
        data = {"root": "/data", "fold": 0}
        run = write_run(tmp_path / f"unet-seed{seed}", [0.5], cases=NAMES, data=data, seed=seed)
        write_cases(run, [row_of("unet", case, "a", seed) for case in NAMES[0::5]])
    run = write_run(tmp_path / "unet-fold1", [0.5], cases=NAMES, data={"root": "/data", "fold": 1})
    write_cases(run, [row_of("unet", case, "a", 0, trained_on="yes") for case in NAMES[1::5]])
    (choice,), _ = choose(pool(compare([tmp_path])), "dice")
    assert [path.name for path in choice.chosen.runs] == ["unet-seed0", "unet-seed1"]
    (remark,) = (text for text in choice.to_json()["notes"] if "averages the 2 runs" in text)
    assert "unseen by all" not in remark and "fusionseg evaluate RUN --with RUN" in remark


def test_one_data_set_without_a_choice_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "good", seeds=(0,))
    names = tuple(f"d{number}" for number in range(10))
    for name, fold, rate in (("x", 0, 1e-3), ("y", 1, 1e-2)):
        config: dict[str, Any] = {"data": {"root": "/other", "fold": fold}, "optim": {"lr": rate}}
        run = write_run(tmp_path / "bad" / name, [0.5], cases=names, dataset="Other", **config)
        write_cases(run, [{**row_of("unet", "c00", "a", 0), "case": case} for case in names[fold::5]])
    assert main(["best", str(tmp_path / "good"), str(tmp_path / "bad")]) == 0
    out = capsys.readouterr().out
    assert "best: resunet" in out and "no case of Other has a value of dice in all rows" in out


def test_a_baseline_that_no_row_is_called_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    sweep = SimpleNamespace(table=SimpleNamespace(against="unett"), folder=folder, file="s.yaml")
    _write_statistics(cast(Sweep, sweep), compare([folder]))
    said = capsys.readouterr()
    assert "no row is called 'unett'" in said.out + said.err and "did you mean unet" in said.out + said.err
    assert "best: resunet" in said.out


def test_a_table_of_cases_that_is_no_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(f"case,label,dice\nc0,a,{'0' * (csv.field_size_limit() + 1)}\n")
    with pytest.raises(UserError, match="is no table of scores"):
        read_scores(tmp_path)


def test_a_cell_over_other_cases_has_their_number() -> None:
    metrics = {"dice": {"mean": 0.5, "std": 0.1, "cases": 24}, "hd95_mm": {"mean": 3.0, "std": 1.0, "cases": 20}}
    summary = {"cases": 24, "classes": {"a": metrics}, "metrics": {}, "dice": 0.5, "hd95_mm": 3.0, "micro": {}}
    first = table(segmentation_table(summary))[0]
    assert (first["cases"], first["Dice"], first["HD95 mm"]) == ("24", "0.5000 ± 0.1000", "3.00 ± 1.00 (20)")


@pytest.mark.parametrize("title", ["micro", "annotated", "voxels_ignored"])
def test_titles_that_a_summary_has_already_are_refused(title: str) -> None:
    (problem,) = title_problems([MetricConfig(name="iou", title=title)])
    assert title in problem
