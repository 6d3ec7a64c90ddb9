"""The table of compare: ranks by the direction of each metric, metrics of the evaluation, GPU hours, LaTeX."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from written_runs import table, write_evaluation, write_run

from fusionseg.cli import main
from fusionseg.inference.comparison.rows import compare, higher_is_better
from fusionseg.inference.comparison.table import comparison_latex, comparison_markdown, write_comparison
from fusionseg.utils.latex import latex_table, latex_text


def write_three(folder: Path) -> Path:
    rows = (("a", 1e-2, 0.9, 3.0, 0.7), ("b", 1e-3, 0.8, 2.0, 0.9), ("c", 1e-4, 0.7, 4.0, 0.8))
    for name, rate, dice, distance, nsd in rows:
        run = write_run(folder / f"{name}_1", [dice], optim={"lr": rate})
        write_evaluation(run, 10, dice, hd95_mm=distance, metrics={"nsd": nsd, "volume_ml_error": -0.5, "own": 1.0})
    return folder


def test_lower_distances_are_better_and_signed_errors_are_not_ranked(tmp_path: Path) -> None:
    first, second, third = table(comparison_markdown(compare([write_three(tmp_path)])))
    assert (first["dice (files)"], second["dice (files)"]) == ("**0.9000**", "*0.8000*")
    distances = [row["hd95_mm (files)"] for row in (first, second, third)]
    assert distances == ["*3.00*", "**2.00**", "4.00"]
    assert [row["nsd (files)"] for row in (first, second, third)] == ["0.7000", "**0.9000**", "*0.8000*"]
    assert {row["volume_ml_error (files)"] for row in (first, second, third)} == {"-0.500"}
    assert {row["own (files)"] for row in (first, second, third)} == {"1.0000"}  # of a user's metric


def test_directions_of_columns() -> None:
    assert higher_is_better("dice_per_class.liver (files)") and higher_is_better("psnr_hidden (prepared grid)")
    assert higher_is_better("hd95_mm (files)") is False
    assert higher_is_better("total_s") is None and higher_is_better("volume_ml_error (files)") is None


def test_gpu_hours_are_those_of_all_gpus(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpus", [0.5])
    devices = ["cuda:0", "cuda:1", "cpu"]
    environment = {"parameters": 10, "ranks": [{"rank": rank, "device": device} for rank, device in enumerate(devices)]}
    (run / "environment.json").write_text(json.dumps(environment))
    write_run(tmp_path / "cpus", [0.5], optim={"lr": 1e-2})
    rows = table(comparison_markdown(compare([tmp_path])))
    assert sorted(row["gpu_hours"] for row in rows) == ["-", f"{60 * 2 / 3600:.2f}"]


def test_latex_has_the_cells_of_the_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([write_three(tmp_path / "runs")])
    text = comparison_latex(comparison)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    expected = table(comparison_markdown(comparison))
    assert len(rows) == 1 + len(expected)
    for line, row in zip(rows[1:], expected, strict=True):
        parts = line.removesuffix(r"\\").split(" & ")
        cells = [re.sub(r"\\text(?:bf|it)\{(.*)\}", r"\1", part.strip()) for part in parts]
        assert cells == [latex_text(cell.strip("*")) for cell in row.values()]
    assert r"\textbf{0.9000}" in text and r"\textit{0.8000}" in text and r"hd95\_mm (files)" in rows[0]
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert main(["compare", str(tmp_path / "runs"), "--latex"]) == 0
    assert capsys.readouterr().out.strip() == text
    write_comparison(comparison, tmp_path)
    assert (tmp_path / "compare.tex").read_text().strip() == text


def test_special_characters_of_latex() -> None:
    text = latex_table([["a_b & c", "mean ± SD %"], ["x~{1}^2 \\ $#", "**0.5 ± 0.1**"], ["<|>", "-"]])
    assert r"a\_b \& c & mean $\pm$ SD \% \\" in text
    assert r"x\textasciitilde{}\{1\}\textasciicircum{}2 \textbackslash{} \$\# & \textbf{0.5 $\pm$ 0.1} \\" in text
    assert r"\begin{tabular}{lr}" in text
