"""compare: rows are configurations on data sets, seeds and folds are averaged over, columns are what differs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from statistics import stdev

import pytest
from written_runs import CASES, table, write_evaluation, write_run

from fusionseg.cli import main
from fusionseg.inference.comparison.layout import row_name, with_names
from fusionseg.inference.comparison.paired import paired_difference, with_baseline
from fusionseg.inference.comparison.rows import compare
from fusionseg.inference.comparison.run_summary import name_without_repetition
from fusionseg.inference.comparison.table import comparison_csv, comparison_markdown
from fusionseg.utils.errors import UserError

DICE = "dice (prepared grid)"


def compared(*paths: Path, weights: str = "last") -> str:
    return comparison_markdown(compare(paths, weights))


def csv_rows(*paths: Path, weights: str = "last") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comparison_csv(compare(paths, weights)))))


def test_seeds_and_folds_are_one_row_and_the_highest_is_bold(tmp_path: Path) -> None:
    for seed, score in enumerate((0.70, 0.72, 0.74)):
        write_run(tmp_path / f"a{seed}", [0.9, score], seed=seed)
    write_run(tmp_path / "b0", [0.8], optim={"lr": 1e-2})
    write_run(tmp_path / "b1", [0.9], optim={"lr": 1e-2}, data={"root": "/elsewhere", "fold": 1}, dataset="moved")
    text = compared(tmp_path)
    first, second = table(text)
    assert list(first)[:4] == ["optim.lr", "folds", "runs", DICE]
    assert (first["runs"], second["runs"]) == ("3", "2")
    assert first[DICE] == "0.7200 ± 0.0200"  # of the last validation of each run
    assert second[DICE] == f"**0.8500 ± {stdev([0.8, 0.9]):.4f}**"
    assert second["parameters"] == "1.50 M"
    assert (first["steps"], second["steps"]) == ("20", "10")
    assert first["samples_per_s"] == "3.00 ± 0.00"
    assert first["mfu"] == "18.8 ± 0.0 %"
    assert (first["folds"], second["folds"]) == ("0", "0, 1")
    assert "not over the same folds" in text and "last validation" in text


def test_the_best_validation_on_request(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5, 0.9, 0.7])
    assert table(compared(tmp_path))[0][DICE] == "0.7000"
    text = compared(tmp_path, weights="best")
    assert table(text)[0][DICE] == "0.9000" and "chosen on the cases that these metrics are of" in text
    assert [row["weights"] for row in csv_rows(tmp_path, weights="best")] == ["best"]


def test_a_score_that_is_not_known_is_neither_the_best_nor_zero(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [None, 0.4, None])
    write_run(tmp_path / "b", [None, 0.6], seed=1)
    assert table(compared(tmp_path, weights="best"))[0][DICE] == f"0.5000 ± {stdev([0.4, 0.6]):.4f}"
    assert table(compared(tmp_path))[0][DICE] == "0.6000 (1 of 2)"
    (row,) = csv_rows(tmp_path)
    assert (row[DICE], row[f"{DICE}_runs"], row["runs"]) == ("0.6", "1", "2")


def test_other_data_sets_are_other_rows(tmp_path: Path) -> None:
    """By content: another place or name is no other data set; a case more, or other labels, are."""
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "moved", [0.7], data={"root": "/moved"}, dataset="other name", seed=1)
    write_run(tmp_path / "fewer", [0.8], cases=CASES[1:])
    write_run(tmp_path / "renamed", [0.9], labels=("background", "b"))
    text = compared(tmp_path)
    rows = table(text)
    assert [row["runs"] for row in rows] == ["2", "1", "1"]
    assert len({row["data set"] for row in rows}) == 3
    assert "different data sets" in text and "**" not in text
    assert "data set" not in table(compared(tmp_path / "a", tmp_path / "moved"))[0]
    by_count = table(compared(tmp_path / "a", tmp_path / "fewer"))
    assert [row["data set"] for row in by_count] == ["T, 10 cases", "T, 9 cases"]


def test_groups_of_labels_are_one_column(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], data={"root": "/d", "classes": {"liver": [5], "kidneys": [2, 3]}})
    write_run(tmp_path / "b", [0.5], data={"root": "/d", "classes": {f"vertebra{k}": k for k in range(1, 25)}})
    first, second = table(compared(tmp_path))
    assert first["data.classes"] == "liver: [5], kidneys: [2, 3]"
    assert second["data.classes"].startswith("vertebra1: [1], ") and len(second["data.classes"]) < 80
    assert [key for key in first if key.startswith("data.")] == ["data.classes"]


def test_without_split_json_the_place_tells_data_sets_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], cases=None)
    write_run(tmp_path / "b", [0.7], cases=None, data={"root": "/elsewhere"}, seed=1)
    text = compared(tmp_path)
    assert [row["data set"] for row in table(text)] == ["/data", "/elsewhere"]
    assert "a, b: there is no readable split.json" in text
    (tmp_path / "a/split.json").write_text('{"training": 3}')
    assert [row["data set"] for row in table(compared(tmp_path))] == ["/data", "/elsewhere"]


def test_a_run_that_waits_is_in_the_row_of_the_others(tmp_path: Path) -> None:
    """It has no split.json yet."""
    write_run(tmp_path / "a", [], status="", cases=None)
    write_run(tmp_path / "b", [0.5], seed=1)
    text = compared(tmp_path)
    (row,) = table(text)
    assert (row["runs"], row[DICE]) == ("2 (1 unfinished)", "0.5000 (1 of 2)")
    assert "split.json" not in text


def test_folds_that_train_on_a_part_of_the_cases_are_one_data_set(tmp_path: Path) -> None:
    for fold in range(2):
        run = write_run(tmp_path / f"f{fold}", [0.5], data={"root": "/data", "fold": fold, "train_cases": 5})
        split = json.loads((run / "split.json").read_text())
        split["training"] = split["training"][:5]
        (run / "split.json").write_text(json.dumps(split))
    (row,) = table(compared(tmp_path))
    assert row["runs"] == "2"


def test_a_pre_training_for_each_fold_is_one_row(tmp_path: Path) -> None:
    for fold in range(2):
        data = {"root": "/data", "fold": fold}
        pretrain = {"model": {"name": "swin_unetr"}, "pretrain": {}}
        write_run(tmp_path / f"pre/pre{fold}", [0.5], data=data, **pretrain)
        start = str(tmp_path / f"pre/pre{fold}")
        write_run(tmp_path / f"runs/a{fold}", [0.6], data=data, model={"name": "swin_unetr"}, init_from=start)
        write_run(tmp_path / f"runs/b{fold}", [0.5], data=data, model={"name": "swin_unetr"})
    rows = table(compared(tmp_path / "runs"))
    assert [row["runs"] for row in rows] == ["2", "2"]
    assert [row["init_from"] for row in rows] == [f"{tmp_path}/pre/pre...", "-"]


def test_pre_trainings_stand_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "seg", [0.5])
    write_run(tmp_path / "pre", [0.9], model={"name": "swin_unetr"}, pretrain={})
    old = write_run(tmp_path / "pre_old", [0.95], model={"name": "swin_unetr"}, pretrain={"ratio": 0.7})
    records = (old / "metrics.jsonl").read_text().replace(', "grid": "prepared"', "")
    (old / "metrics.jsonl").write_text(records)
    text = compared(tmp_path)
    assert text.startswith("segmentation:\n\n|") and "pre-training:\n\n|" in text
    (segmentation,) = table(text)
    assert segmentation[DICE] == "0.5000" and not [name for name in segmentation if "ssim" in name]
    new, before = table(text, 1)
    assert new["ssim (prepared grid)"] == "0.9000" and new["ssim (per patch, old)"] == "-"
    assert before["ssim (prepared grid)"] == "-" and before["ssim (per patch, old)"] == "0.9500"
    assert [row["task"] for row in csv_rows(tmp_path)] == ["segmentation", "pre-training", "pre-training"]


def test_evaluations_of_the_same_weights_have_columns_of_their_own(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", [0.9, 0.8], seed=seed)
    write_evaluation(tmp_path / "a0", 20, 0.6)
    write_evaluation(tmp_path / "a1", 20, 0.7, cases=1, request={"dataset": None, "with": [], "tta": True})
    for other in ({"dataset": "/elsewhere"}, {"with": ["/runs/b"]}):
        write_evaluation(tmp_path / "a1", 20, 0.99, folder=f"evaluation_{len(str(other))}", request=other)
    write_evaluation(tmp_path / "a2", 10, 0.1, checkpoint="checkpoints/best.pt")
    text = compared(tmp_path)
    (row,) = table(text)
    assert row["dice (files)"] == f"0.6500 ± {stdev([0.6, 0.7]):.4f} (2 of 3)"
    assert row["dice_per_class.a (files)"].startswith("0.6500") and row["hd95_mm (files)"].startswith("3.00")
    assert row[DICE] == "0.8000 ± 0.0000"
    assert "a2: its evaluation is not used: it is of other weights (best.pt)" in text
    assert "a1: was evaluated with --tta" in text and "a1: its evaluation is of 1 cases, its validation of 2" in text
    (best,) = table(compared(tmp_path, weights="best"))
    assert best["dice (files)"] == "0.1000 (1 of 3)" and best[DICE] == "0.9000 ± 0.0000"


def test_results_on_cases_that_were_trained_on_are_marked_and_never_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "b", [0.6], optim={"lr": 1e-2})
    write_run(tmp_path / "leak", [0.99], optim={"lr": 1e-3}, val={"trained_on": 1})
    text = compared(tmp_path)
    _, second, leak = table(text)
    assert not [name for name in leak if name.startswith("trained_on")]  # a number of cases is no score
    assert leak["runs"] == "1 [1]" and "- [1] validated on cases that were trained on" in text
    assert leak[DICE] == "0.9900" and second[DICE] == "**0.6000**"
    assert [row["marks"] for row in csv_rows(tmp_path)][2] == "validated on cases that were trained on"


@pytest.mark.parametrize("where", ["split.json", "evaluation/summary.json"])
def test_the_mark_is_found_wherever_it_stands(tmp_path: Path, where: str) -> None:
    run = write_run(tmp_path / "a", [0.5])
    write_evaluation(run, 10, 0.5)
    content = json.loads((run / where).read_text())
    (run / where).write_text(json.dumps({**content, "trained_on": ["c0"]}))
    assert "validated on cases that were trained on" in compared(run)


def test_a_start_from_unknown_weights_is_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5])
    content = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**content, "seen": [{"path": "/weights.pt", "images": None}]}))
    assert "- [1] started from weights that do not say what they were trained on" in compared(run)


def test_a_last_step_that_was_chosen_by_validation_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], status="plateau")
    text = compared(tmp_path)
    assert table(text)[0]["runs"] == "1 [1]" and "- [1] stopped by stop.plateau" in text
    assert "stop.plateau" not in compared(tmp_path, weights="best")


def test_the_csv_has_the_same_in_full_precision(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", [1 / 3])
    write_run(tmp_path / "a1", [2 / 3], seed=1)
    (row,) = csv_rows(tmp_path)
    assert float(row[DICE]) == pytest.approx(0.5, abs=1e-15)
    assert float(row[f"{DICE}_std"]) == pytest.approx(stdev([1 / 3, 2 / 3]), abs=1e-15)


def test_networks_are_told_apart_by_their_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], model={"name": "unet"})
    write_run(tmp_path / "b", [0.6], model={"name": "segresnet"})
    rows = table(compared(tmp_path))
    assert [row["model.name"] for row in rows] == ["unet", "segresnet"]
    assert not [column for column in rows[0] if column.startswith("model.") and column != "model.name"]
    write_run(tmp_path / "c", [0.7], model={"name": "segresnet", "init_filters": 8})
    rows = table(compared(tmp_path))
    assert [row["model.init_filters"] for row in rows] == ["-", "16", "8"]


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "b", [0.6], status="", seed=1)
    write_run(tmp_path / "c", [], status="failed", seed=2)
    text = compared(tmp_path)
    (row,) = table(text)
    assert row["runs"] == "3 (1 unfinished, 1 failed)"
    assert row[DICE] == f"0.5500 ± {stdev([0.5, 0.6]):.4f} (2 of 3)"
    assert "count with the last validation they have" in text
    assert csv_rows(tmp_path)[0]["not_finished"] == "2"


def test_steps_that_differ_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "b", [0.6, 0.7], seed=1)
    assert table(compared(tmp_path))[0]["steps"] == "10 to 20"


def test_runs_and_folders_are_listed_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5])
    assert len(compare([run, tmp_path]).rows[0].runs) == 1


def test_damaged_runs_do_not_keep_the_others_from_being_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5, 0.6])
    broken = write_run(tmp_path / "b", [0.7, 0.8], seed=1)
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    lines[2:3] = ["{broken", "[1, 2]", '{"kind": "val"}', "\x00\x00"]
    (broken / "metrics.jsonl").write_text("\n".join(lines))
    (broken / "environment.json").write_text("[]")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c/config.yaml").write_text("- a list\n")
    text = compared(tmp_path)
    (row,) = table(text)
    assert row[DICE] == f"0.7000 ± {stdev([0.6, 0.8]):.4f}" and row["runs"] == "2"
    assert "b: 4 damaged lines of metrics.jsonl are ignored" in text
    assert f"left out: {tmp_path / 'c/config.yaml'}: is no configuration" in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        compare([tmp_path / "empty", tmp_path / "nowhere"])
    assert len(caught.value.problems) == 2
    write_run(tmp_path / "a", [])
    with pytest.raises(UserError, match="none of the 1 runs has a validation"):
        compare([tmp_path])
    (tmp_path / "a" / "config.yaml").write_text("{broken\n")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        compare([tmp_path])


def test_the_command_prints_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/a", [0.9, 0.8])
    assert main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/compare.md").read_text() == printed
    assert table(printed)[0][DICE] == "0.8000"
    (row,) = csv.DictReader((tmp_path / "out/compare.csv").read_text().splitlines())
    assert (row["weights"], row[DICE], row["data_set"]) == ("last", "0.8", "T")
    assert main(["compare", str(tmp_path / "runs"), "--checkpoint", "best"]) == 0
    assert table(capsys.readouterr().out)[0][DICE] == "0.9000"


def test_the_second_best_of_three_is_in_italics(tmp_path: Path) -> None:
    for number, score in enumerate((0.7, 0.9, 0.8)):
        write_run(tmp_path / f"r{number}", [score], optim={"lr": 10.0**-number})
    assert [row[DICE] for row in table(compared(tmp_path))] == ["0.7000", "**0.9000**", "*0.8000*"]
    write_run(tmp_path / "leak", [0.95], optim={"lr": 1e-5}, val={"trained_on": 1})
    assert sorted(row[DICE] for row in table(compared(tmp_path))) == ["**0.9000**", "*0.8000*", "0.7000", "0.9500"]
    assert [row[DICE] for row in table(compared(tmp_path / "r0", tmp_path / "r1"))] == ["0.7000", "**0.9000**"]


def test_rows_by_name_and_chosen_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("small", 1e-3), ("large", 1e-2)):
        for seed in range(2):
            write_run(tmp_path / f"{name}-seed{seed}", [0.5 + seed / 10], seed=seed, optim={"lr": rate})
    command = ["compare", str(tmp_path), "--rows", "name", "--output", str(tmp_path / "out")]
    assert main([*command, "--metrics", "parameters", "dice"]) == 0
    first, second = table(capsys.readouterr().out)
    assert list(first) == ["name", "runs", "parameters", DICE]
    assert (first["name"], second["name"]) == ("large", "small")
    assert "name," in (tmp_path / "out/compare.csv").read_text().splitlines()[0]
    assert main([*command, "--metrics", "dice_per_class", "dcie"]) == 2
    assert "these runs have no metric 'dcie'" in capsys.readouterr().err
    assert main([*command, "--metrics", "dice_per_class"]) == 0
    assert "dice_per_class.a (prepared grid)" in table(capsys.readouterr().out)[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet-seed0", "unet"),
        ("seed3-unet", "unet"),
        ("a-seed0-fold12", "a"),
        ("manifold2", "manifold2"),
        ("fold0", "fold0"),
    ],
)
def test_a_row_is_called_like_its_runs_without_seed_and_fold(name: str, expected: str) -> None:
    assert name_without_repetition(name) == expected


def test_the_score_of_the_pre_training_is_a_column(tmp_path: Path) -> None:
    for seed, ssim in enumerate((0.6, 0.8)):
        write_run(tmp_path / f"pre/p{seed}", [0.1, ssim], seed=seed, model={"name": "swin_unetr"}, pretrain={})
        start = tmp_path / f"pre/p{seed}" / ("checkpoints/last.pt" if seed else "")
        write_run(tmp_path / f"runs/a{seed}", [0.5], seed=seed, model={"name": "swin_unetr"}, init_from=str(start))
    write_run(tmp_path / "runs/scratch", [0.4], model={"name": "swin_unetr"})
    write_run(tmp_path / "runs/tuned", [0.4], model={"name": "swin_unetr"}, init_from=str(tmp_path / "runs/scratch"))
    column = "ssim of init_from (prepared grid)"
    shown = {row["init_from"].removeprefix(f"{tmp_path}/"): row[column] for row in table(compared(tmp_path / "runs"))}
    assert shown == {"pre/p...": f"0.7000 ± {stdev([0.6, 0.8]):.4f}", "-": "-", "runs/scratch": "-"}


def test_the_control_from_scratch_has_no_score_of_the_weights_it_did_not_read(tmp_path: Path) -> None:
    start = write_run(tmp_path / "pre/p", [0.6], pretrain={}, model={"name": "swin_unetr"}, data={"patch": [64] * 3})
    for name, finetune in (("tuned", {}), ("control", {"from_scratch": True})):
        shared = {"model": {"name": "swin_unetr"}, "init_from": str(start), "finetune": finetune}
        write_run(tmp_path / f"runs/{name}", [0.5], **shared)
    shown = {
        row["finetune.from_scratch"]: row["ssim of init_from (prepared grid)"]
        for row in table(compared(tmp_path / "runs"))
    }
    assert shown == {"-": "0.6000", "True": "-"}


def test_ensembles_are_rows_on_request(tmp_path: Path) -> None:
    for seed in range(2):
        runs = [
            write_run(tmp_path / f"{name}-seed{seed}", [0.5], seed=seed, model={"name": name})
            for name in ("unet", "resunet")
        ]
        request = {"dataset": None, "with": [str(runs[1])], "checkpoint": "last"}
        write_evaluation(runs[0], 10, 0.7 + seed / 10, folder="evaluation_ensemble", request=request)
        write_evaluation(runs[0], 5, 0.1, folder="evaluation_ensemble_old", request=request)
    assert len(table(compared(tmp_path))) == 2
    rows = table(comparison_markdown(with_names(compare([tmp_path], ensembles=True))))
    assert [row["name"] for row in rows] == ["resunet", "unet", "resunet + unet"]
    assert rows[2]["dice (files)"] == f"0.7500 ± {stdev([0.7, 0.8]):.4f}" and rows[2]["runs"] == "2"
    assert rows[2]["parameters"] == "3.00 M"
    (settings,) = (
        row for row in table(comparison_markdown(compare([tmp_path], ensembles=True))) if row["ensemble"] != "-"
    )
    assert (settings["ensemble"], settings["model.name"]) == ("2 runs", "unet + resunet")
    shutil.rmtree(tmp_path / "resunet-seed1")
    assert "left out: an ensemble of" in comparison_markdown(compare([tmp_path], ensembles=True))


def test_masks_with_post_processing_are_rows_on_request(tmp_path: Path) -> None:
    """Of runs and of ensembles. They never stand in the row of the plain masks, and each request has its own row."""
    runs = [write_run(tmp_path / f"{name}-seed0", [0.5], model={"name": name}) for name in ("unet", "resunet")]
    alone = {"dataset": None, "with": [], "checkpoint": "last"}
    together = {**alone, "with": [str(runs[1])]}
    for number, request in enumerate((alone, together)):
        for asked in (
            {},
            {"postprocess": "auto"},
            {"postprocess": "/my steps.json"},
            {"postprocess": "auto", "tta": True},
        ):
            dice = 0.5 + 0.1 * number + 0.01 * len(asked)
            name = f"evaluation_{number}_{'_'.join(map(str, asked.values())).strip('/')}"
            write_evaluation(runs[0], 10, dice, folder=name, request={**request, **asked})

    def rows(**asked: bool) -> list[tuple[str, str]]:
        found = table(comparison_markdown(compare([tmp_path], **asked)))
        return [(row.get("ensemble", "-"), row.get("postprocess", "-")) for row in found if "0." in row["dice (files)"]]

    assert rows() == [("-", "-")]
    assert rows(ensembles=True) == [("-", "-"), ("2 runs", "-")]
    of_runs = [("-", "/my steps.json"), ("-", "auto"), ("-", "auto")]
    assert sorted(rows(postprocessed=True)) == [("-", "-"), *of_runs]
    of_ensembles = [("2 runs", asked) for asked in ("-", "/my steps.json", "auto", "auto")]
    assert sorted(rows(ensembles=True, postprocessed=True)) == [("-", "-"), *of_runs, *of_ensembles]
    named = comparison_markdown(with_names(compare([tmp_path], ensembles=True, postprocessed=True)))
    assert "resunet + unet + post-processing" in named and "was evaluated with --tta" in named
    assert "it is not known whether its post-processing was chosen on the scored cases" in named


# -- differences from a baseline -------------------------------------------------------------------------------


def pairs(folder: Path) -> Path:
    """A baseline with three seeds, and two variants: `better` lacks a seed, `single` has one."""
    for seed, dice in enumerate((0.70, 0.80, 0.60)):
        write_run(folder / f"scratch-seed{seed}", [dice], seed=seed)
    for seed, dice in ((0, 0.72), (1, 0.81)):
        write_run(folder / f"better-seed{seed}", [dice], seed=seed, optim={"lr": 0.01})
    write_run(folder / "single-seed2", [0.50], seed=2, optim={"lr": 0.02})
    return folder


def test_differences_are_of_runs_of_the_same_seed(tmp_path: Path) -> None:
    comparison = with_baseline(compare([pairs(tmp_path)]), "scratch")
    (table,) = comparison.tables
    rows = {row_name(row): row for row in table.rows}
    found = paired_difference(rows["better"], rows["scratch"], DICE)
    assert found is not None and found.pairs == 2 and found.mean == pytest.approx(0.015)
    # Differences 0.02 and 0.01: standard error 0.005, and 12.706 is Student's t of one degree of freedom at 97.5 %.
    assert found.half_width == pytest.approx(12.7062 * 0.005, rel=1e-4)
    markdown = comparison_markdown(with_names(comparison))
    assert "Difference from `scratch`, run by run, with the 95% interval of the mean:" in markdown
    differences = re.sub(" +", " ", markdown.split("Difference from")[1])  # without the padding of the columns
    assert "| better | 2 | +0.0150 [-0.0485, +0.0785] |" in differences
    assert "| single | 1 | -0.1000 |" in differences and "| scratch |" not in differences
    assert "parameters" not in differences
    by_name = {line["name"]: line for line in csv.DictReader(io.StringIO(comparison_csv(with_names(comparison))))}
    assert float(by_name["better"][f"{DICE}_minus_baseline"]) == pytest.approx(0.015)
    assert by_name["single"][f"{DICE}_half_width"] == "" and by_name["scratch"][f"{DICE}_pairs"] == "0"


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(pairs(tmp_path)), "--against", "scrach"]) == 2
    assert "--against: no runs are called 'scrach'" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--against", "scratch"]) == 0
    assert "+0.0150" in capsys.readouterr().out
