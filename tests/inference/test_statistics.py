"""fusionseg statistics: pooled cross-validation, intervals, paired tests and ranks, from the files of run folders."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats
from written_runs import table, write_cases, write_run
from written_sweep import NAMES, SHIFTS, row_of, score, write_sweep

from fusionseg.cli import main
from fusionseg.inference.comparison.rows import compare
from fusionseg.inference.statistics.intervals import mean_interval
from fusionseg.inference.statistics.paired_tests import holm, paired_test, rank_biserial
from fusionseg.inference.statistics.pooled import pool
from fusionseg.inference.statistics.ranks import rank_stability
from fusionseg.inference.statistics.resampling import bounds, resample_counts
from fusionseg.utils.errors import UserError


def recorded(folder: Path, network: str, metric: str) -> dict[str, float]:
    """The value of each case, by its own reading of all cases.csv: classes are averaged first, then seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in folder.glob(f"{network}-*/evaluation/cases.csv"):
        for row in csv.DictReader(path.open()):
            if row[metric]:
                found.setdefault(row["case"], {}).setdefault(path.parts[-3], []).append(float(row[metric]))
    return {case: fmean(map(fmean, found[case].values())) for case in sorted(found)}


def pooled_of(folder: Path, **options: Any) -> Any:
    return pool(compare([folder], **options))


def test_every_number_of_the_tables_is_found_in_the_run_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are computed again from the files, without the code of the statistics but the bootstrap."""
    folder = write_sweep(tmp_path / "sweep", ("unet", "resunet", "small"))
    assert main(["statistics", str(folder), "--against", "unet", "--metrics", "dice", "hd95_mm"]) == 0
    printed = capsys.readouterr().out
    markdown = (folder / "statistics.md").read_text()
    assert markdown.strip() in printed
    names = sorted(SHIFTS)
    for number, (metric, digits) in enumerate((("dice", 4), ("hd95_mm", 2))):
        values = {name: recorded(folder, name, metric) for name in names}
        rows = {row["name"]: row for row in table(markdown, 2 * number)}
        p_values = {
            name: stats.wilcoxon([values[name][case] - values["unet"][case] for case in NAMES]).pvalue
            for name in names
            if name != "unet"
        }
        best = (max if metric == "dice" else min)(names, key=lambda name: fmean(values[name].values()))
        for name in names:
            row, own = rows[name], list(values[name].values())
            interval = mean_interval(own)
            mean = f"{fmean(own):.{digits}f}"
            assert row["cases"] == "40" and row["mean"] == (f"**{mean}**" if name == best else mean)
            assert row["95% interval"] == f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
            assert row["SD cases"] == f"{stdev(own):.{digits}f}"
            folds = [fmean(own[fold::5]) for fold in range(5)]
            assert row["SD folds"] == f"{stdev(folds):.{digits}f} (5)"
            seeds = [fmean(score(name, case, label, seed) for case in NAMES for label in "ab") for seed in (0, 1)]
            if metric == "dice":
                assert row["SD seeds"] == f"{stdev(seeds):.4f} (2)"
            if name == "unet":
                assert row["difference"] == "baseline"
                continue
            differences = [values[name][case] - values["unet"][case] for case in NAMES]
            assert row["difference"].startswith(f"{fmean(differences):+.{digits}f} [") and row["pairs"] == "40"
            p, larger = p_values[name], max(p_values.values())
            corrected = min(1, 2 * p) if p < larger else max(p, min(1, 2 * min(p_values.values())))
            assert row["p"] == shown(p) and row["p (Holm)"] == shown(corrected)
        classes = {row["name"]: row for row in table(markdown, 2 * number + 1)}
        of_class = [score("unet", case, "a", seed) for case in NAMES for seed in (0, 1)]
        expected = fmean(of_class) if metric == "dice" else 10 - 5 * fmean(of_class)
        assert classes["unet"]["a"].startswith(f"{expected:.{digits}f} [")
    latex = (folder / "statistics.tex").read_text()
    assert numbers(latex) == numbers(markdown)
    check_csv_and_json(folder)


def shown(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def numbers(text: str) -> list[str]:
    """The numbers in the cells of the tables, in their order."""
    lines = [line for line in text.splitlines() if line.startswith("|") or line.endswith(r"\\")]
    return re.findall(r"[-+]?\d+\.\d+", "\n".join(lines))


def check_csv_and_json(folder: Path) -> None:
    content = json.loads((folder / "statistics.json").read_text())
    assert content["level"] == 0.95 and content["against"] == "unet" and content["resamples"] == 3999
    (group,) = content["groups"]
    rows = list(csv.DictReader((folder / "statistics.csv").open()))
    assert {row["metric"] for row in rows} == {"dice", "hd95_mm", "volume_ml_error"}
    for entry in group["rows"]:
        assert entry["cases"] == entry["cases_of_data_set"] == 40 and len(entry["runs"]) == 10
        for metric in ("dice", "hd95_mm", "volume_ml_error"):
            values = recorded(folder, entry["name"], metric)
            (row,) = (
                row for row in rows if (row["name"], row["metric"], row["label"]) == (entry["name"], metric, "all")
            )
            found = entry["metrics"][metric]
            assert float(row["mean"]) == found["cases"]["mean"] == pytest.approx(fmean(values.values()))
            assert float(row["low"]) == found["cases"]["low"] and int(row["n"]) == found["cases"]["n"] == 40
            assert set(found["folds"]) == set("01234") and set(found["repetitions"]) == {"seed 0", "seed 1"}
            assert ("against" in found) == (entry["name"] != "unet")
    assert set(group["ranks"]) == {"dice", "hd95_mm"}, "a signed error has no better direction"
    scores = list(csv.DictReader((folder / "pooled.csv").open()))
    assert len(scores) == 3 * 40 * 2 * 2
    for row in scores:
        assert float(row["dice"]) == score(row["name"], row["case"], row["label"], int(row["repetition"][-1]))
        assert row["run"] == f"{row['name']}-seed{row['repetition'][-1]}-fold{row['fold']}"


def test_seeds_do_not_multiply_the_cases(tmp_path: Path) -> None:
    (group,) = pooled_of(write_sweep(tmp_path, seeds=(0, 1, 2))).groups
    for row in group.rows:
        values = row.by_case("dice")
        assert list(values) == list(NAMES) and row.repetitions == ["seed 0", "seed 1", "seed 2"]
        assert values["c03"] == pytest.approx(
            fmean(score(row.name, "c03", label, seed) for label in "ab" for seed in range(3))
        )


def test_a_class_without_a_value_leaves_the_case_out_of_the_class_alone(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    rows = [
        row_of("unet", case, label, 0, **({"hd95_mm": nan} if case == "c00" and label == "b" else {}))
        for case in NAMES[0::5]
        for label in "ab"
    ]
    write_cases(folder / "unet-seed0-fold0", rows)
    (group,) = pooled_of(folder).groups
    row = next(row for row in group.rows if row.name == "unet")
    assert row.by_case("hd95_mm")["c00"] == pytest.approx(10 - 5 * score("unet", "c00", "a", 0))
    assert np.isnan(row.by_case("hd95_mm", label="b")["c00"])
    found = paired_test(row.by_case("hd95_mm", label="b"), group.rows[0].by_case("hd95_mm", label="b"))
    assert found.pairs == 39


def test_cases_that_were_trained_on_and_missing_evaluations_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    rows = [row_of("unet", case, label, 0) for case in NAMES[0::5] for label in "ab"]
    write_cases(
        folder / "unet-seed0-fold0", [{**row, "trained_on": "yes" if row["case"] == "c00" else "no"} for row in rows]
    )
    for file in (folder / "unet-seed0-fold1" / "evaluation").iterdir():
        file.unlink()
    # A case of another fold, which the run was trained on.
    foreign = [
        *(row_of("unet", case, label, 0) for case in NAMES[2::5] for label in "ab"),
        row_of("unet", "c03", "a", 0, trained_on="yes"),
    ]
    write_cases(folder / "unet-seed0-fold2", foreign)
    pooled = pooled_of(folder)
    (group,) = pooled.groups
    row = next(row for row in group.rows if row.name == "unet")
    assert len(row.cases) == 40 - 1 - 8 and "c00" not in row.cases and "c01" not in row.cases
    notes = "\n".join(pooled.notes)
    assert "unet-seed0-fold0: 1 case left out" in notes and "unet-seed0-fold2: 1 case left out" in notes
    assert "unet-seed0-fold1: left out, without an evaluation" in notes and "fusionseg evaluate" in notes
    assert "31 of the 40 cases" in notes and "not of the same cases" in notes


def test_a_case_that_two_runs_scored_is_refused(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    run = write_run(folder / "unet-again", [0.5], cases=NAMES, labels=("background", "a", "b"), optim={"lr": 1e-3})
    write_cases(run, [row_of("unet", case, label, 0) for case in NAMES[0::5] for label in "ab"])
    with pytest.raises(UserError, match=r"unet-again and \S+/unet-seed0-fold0: scored the same cases.*c00"):
        pooled_of(folder)


def test_runs_without_evaluations_are_refused_with_the_command_that_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "a", [0.5])
    assert main(["statistics", str(tmp_path / "runs")]) == 2
    assert "fusionseg evaluate" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "statistics.md").exists()


def test_an_unknown_baseline_or_metric_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, seeds=(0,))
    assert main(["statistics", str(folder), "--against", "unett"]) == 2
    assert "'unett'" in (message := capsys.readouterr().err) and "unet" in message
    assert main(["statistics", str(folder), "--metrics", "dise"]) == 2
    assert "dice" in capsys.readouterr().err
    assert not list(folder.glob("statistics.*"))


def test_a_damaged_table_of_cases_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, ("unet",), seeds=(0,))
    (folder / "unet-seed0-fold0" / "evaluation" / "cases.csv").write_text("case,label,dice\nc00,a,high\n")
    assert main(["statistics", str(folder)]) == 2
    assert "unet-seed0-fold0/evaluation/cases.csv" in capsys.readouterr().err


@pytest.mark.parametrize("number", [8, 30, 70])
def test_the_paired_test_is_that_of_scipy(number: int) -> None:
    generator = np.random.default_rng(number)
    ours, theirs = generator.beta(8, 2, number).round(2), generator.beta(8, 3, number).round(2)
    found = paired_test(mapping(ours), mapping(theirs))
    differences = (ours - theirs).round(12)
    assert found.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found.difference.mean == pytest.approx(differences.mean()) and found.pairs == number
    assert (found.higher, found.lower) == ((differences > 0).sum(), (differences < 0).sum())
    # scipy's statistic is the smaller sum of ranks.
    count = (differences != 0).sum()
    smaller = stats.wilcoxon(differences).statistic
    assert abs(found.effect) == pytest.approx(1 - 2 * smaller / (count * (count + 1) / 2))
    assert found.effect_low <= found.effect <= found.effect_high


def mapping(values: Any) -> Mapping[str, float]:
    return {f"c{index}": float(value) for index, value in enumerate(values)}


def test_the_interval_of_the_effect_size_ranks_each_resample_again() -> None:
    differences = np.array([0.3, -0.1, 0.1, 0.2, 0.0, 0.5, -0.2, 0.2, 0.4, 0.1])
    _, low, high = rank_biserial(differences)
    effects = []
    for counts in np.concatenate(list(resample_counts(10))).astype(int):
        drawn = np.repeat(differences, counts)
        drawn = drawn[drawn != 0]
        ranks = stats.rankdata(np.abs(drawn))
        effects.append((ranks * np.sign(drawn)).sum() / ranks.sum())
    assert (low, high) == pytest.approx(tuple(map(float, bounds(np.array(effects), 0.95))))


def test_rows_without_a_difference() -> None:
    values = mapping(np.linspace(0.5, 1, 20))
    found = paired_test(values, values)
    assert (found.p, found.effect, found.higher, found.lower) == (1, 0, 0, 0)
    nothing = paired_test(mapping([0.5]), {"other": 0.5})
    assert nothing.pairs == 0 and np.isnan(nothing.p) and np.isnan(nothing.effect)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([0.02, nan]) == pytest.approx([0.02, nan], nan_ok=True)
    assert holm([]) == []


def test_rank_stability_resample_by_resample() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal([0.80, 0.81, 0.70], 0.1, (30, 3))
    found = rank_stability(values, higher_is_better=True)
    ranks, taus = [], []
    exact = stats.rankdata(-values.mean(axis=0))
    for counts in np.concatenate(list(resample_counts(30))):
        line = stats.rankdata(-(counts @ values / 30))
        ranks.append(line)
        taus.append(stats.kendalltau(line, exact).statistic)
    assert found.ranks == exact.tolist() and found.tau == pytest.approx(fmean(taus))
    assert found.first == pytest.approx([(np.array(ranks)[:, index] == 1).mean() for index in range(3)])
    low, high = bounds(np.array(ranks), 0.95)
    assert (found.low, found.high) == (low.tolist(), high.tolist())
    lower = rank_stability(-values, higher_is_better=False)
    assert lower == found


def test_equal_rows_share_their_ranks() -> None:
    values = np.repeat(np.random.default_rng(0).random((20, 1)), 2, axis=1)
    found = rank_stability(values, higher_is_better=True)
    assert found.ranks == [1.5, 1.5] and found.first == [0.5, 0.5] and found.tau == 0
