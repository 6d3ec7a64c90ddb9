"""The figures of compare: learning curves and the score against the cost, as PNG and SVG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_evaluation, write_run

from fusionseg.cli import main
from fusionseg.inference.comparison.figures import learning_curve, tradeoff_score
from fusionseg.inference.comparison.rows import compare


def write_rows(folder: Path) -> Path:
    for name, rate in (("a", 1e-2), ("b", 1e-3)):
        for seed in (0, 1):
            scores = [0.5, 0.6 + 0.1 * seed, None, *([0.8] if seed else [])] if name == "a" else [0.4, 0.5, 0.6, 0.7]
            run = write_run(folder / f"{name}-seed{seed}", scores, optim={"lr": rate}, seed=seed)
            write_evaluation(run, 10 * len(scores), 0.7 + 0.1 * seed - 0.1 * (name == "a"))
            parameters = {"a": 1_500_000, "b": 4_000_000}[name]
            (run / "environment.json").write_text(json.dumps({"parameters": parameters}))
    return folder


def test_figures_are_drawn_and_equal_for_equal_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_rows(tmp_path / "runs")
    for number in (1, 2):
        assert main(["compare", str(runs), "--output", str(tmp_path / f"out{number}"), "--plots"]) == 0
    names = [f"{name}.{kind}" for name in ("learning_curves", "tradeoff") for kind in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "out1/figures").iterdir()) == names
    out = capsys.readouterr().out
    for name in names:
        first, second = ((tmp_path / f"out{number}/figures" / name).read_bytes() for number in (1, 2))
        assert first == second and str(tmp_path / "out1/figures" / name) in out
    for name in ("learning_curves.png", "tradeoff.png"):
        with Image.open(tmp_path / "out1/figures" / name) as picture:
            assert picture.width >= 900 and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_learning_curve_is_the_mean_at_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    comparison = compare([write_rows(tmp_path)])
    first = comparison.tables[0].rows[0]
    assert learning_curve(first) == {10: 0.5, 20: pytest.approx(0.65)}
    assert tradeoff_score(comparison.tables[0]) == "dice (files)"


def test_rows_of_one_name_have_their_settings_in_the_legend(tmp_path: Path) -> None:
    for folder, rate in (("one", 1e-2), ("two", 1e-3)):
        write_run(tmp_path / folder / "a-seed0", [0.5, 0.6], optim={"lr": rate})
    runs = [str(tmp_path / folder) for folder in ("one", "two")]
    assert main(["compare", *runs, "--rows", "name", "--plots", "--output", str(tmp_path)]) == 0
    drawn = (tmp_path / "figures" / "learning_curves.svg").read_text()
    assert "a (optim.lr=0.01)" in drawn and "a (optim.lr=0.001)" in drawn


def test_plots_without_a_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write_rows(tmp_path)), "--plots"]) == 2
    assert "--plots: has no folder" in capsys.readouterr().err
