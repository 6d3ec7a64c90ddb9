"""compare: rows are configurations, seeds and folds are averaged over, columns are what differs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from fusionseg.config import dump_config, validate
from fusionseg.errors import UserError
from fusionseg.inference.compare import compare


def write_run(folder: Path, scores: list[float], *, status: str = "completed", **config: Any) -> Path:
    """A run folder as training leaves it: a validation every ten steps, with these Dice values."""
    folder.mkdir(parents=True)
    raw = {"model": {"name": "unet"}, "data": {"root": "/data"}, **config, "name": folder.name}
    (folder / "config.yaml").write_text(dump_config(validate(raw)))
    (folder / "environment.json").write_text(json.dumps({"parameters": 1_500_000}))
    lines: list[dict[str, Any]] = []
    for step, dice in enumerate(scores, start=1):
        lines.append({"kind": "train", "step": 10 * step, "loss": 0.5, "samples_per_s": 2.0 * step, "memory_gb": 1.0})
        lines.append({"kind": "val", "step": 10 * step, "dice": dice, "dice_per_class": {"a": dice}, "val_s": 1.0})
    if status:
        lines.append({"kind": "end", "step": 10 * len(scores), "status": status, "total_s": 60.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(markdown: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by the names of its columns."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_seeds_and_folds_are_one_row_and_the_best_is_marked(tmp_path: Path) -> None:
    for seed, score in enumerate((0.70, 0.72, 0.74)):
        write_run(tmp_path / f"a{seed}", [0.5, score, 0.1], seed=seed)
    write_run(tmp_path / "b0", [0.8], optim={"lr": 1e-2})
    write_run(tmp_path / "b1", [0.9], optim={"lr": 1e-2}, data={"root": "/elsewhere", "fold": 1})
    first, second = table(compare([tmp_path]).to_markdown())
    assert list(first)[:3] == ["optim.lr", "runs", "dice"]
    assert (first["runs"], second["runs"]) == ("3", "2")
    assert first["dice"] == "0.7200 ± 0.0200"  # of the best validation of each run
    assert second["dice"] == f"**0.8500 ± {stdev([0.8, 0.9]):.4f}**"
    assert second["parameters"] == "1.50 M"
    assert first["steps"] == "30"
    assert first["samples_per_s"] == "4.00 ± 0.00"


def test_the_csv_has_the_same_in_full_precision(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", [1 / 3])
    write_run(tmp_path / "a1", [2 / 3], seed=1)
    (row,) = csv.DictReader(io.StringIO(compare([tmp_path]).to_csv()))
    assert float(row["dice"]) == pytest.approx(0.5, abs=1e-15)
    assert float(row["dice_std"]) == pytest.approx(stdev([1 / 3, 2 / 3]), abs=1e-15)


def test_networks_are_told_apart_by_their_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5], model={"name": "unet"})
    write_run(tmp_path / "b", [0.6], model={"name": "segresnet"})
    rows = table(compare([tmp_path]).to_markdown())
    assert [row["model.name"] for row in rows] == ["unet", "segresnet"]
    assert not [column for column in rows[0] if column.startswith("model.") and column != "model.name"]
    write_run(tmp_path / "c", [0.7], model={"name": "segresnet", "init_filters": 8})
    rows = table(compare([tmp_path]).to_markdown())
    assert [row["model.init_filters"] for row in rows] == ["-", "16", "8"]


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "b", [0.6], status="", seed=1)
    write_run(tmp_path / "c", [], status="", seed=2)
    (row,) = table(compare([tmp_path]).to_markdown())
    assert row["runs"] == "3 (2 not finished)"
    assert row["dice"].startswith("0.5500")


def test_runs_and_folders_are_listed_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [0.5])
    assert len(compare([run, tmp_path]).rows[0].runs) == 1


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        compare([tmp_path / "empty", tmp_path / "nowhere"])
    assert len(caught.value.problems) == 2
    write_run(tmp_path / "a", [])
    with pytest.raises(UserError, match="has validated yet"):
        compare([tmp_path])
    (tmp_path / "a" / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match="cannot be read"):
        compare([tmp_path])
