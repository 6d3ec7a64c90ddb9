"""Run folders written by hand, as trainings and evaluations leave them, and tables of Markdown read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionseg.config import dump_config, validate
from fusionseg.runs import evaluations

CASES = tuple(f"c{number}" for number in range(10))


def write_run(
    folder: Path,
    scores: Sequence[float | None],
    *,
    status: str = "completed",
    cases: Sequence[str] | None = CASES,
    labels: Sequence[str] = ("background", "a"),
    dataset: str = "T",
    val: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run folder as training leaves it: a validation every ten steps, with these Dice values.

    Args:
        cases: names of the data set's cases, dealt into five folds; their content follows from the name. None writes no
            split.json, as older versions did.
        val: further fields of the val records.
    """
    folder.mkdir(parents=True)
    raw = {"model": {"name": "unet"}, "data": {"root": "/data"}, **config, "name": folder.name}
    parsed = validate(raw)
    (folder / "config.yaml").write_text(dump_config(parsed))
    (folder / "environment.json").write_text(json.dumps({"parameters": 1_500_000}))
    lines: list[dict[str, Any]] = []
    for step, dice in enumerate(scores, start=1):
        lines.append(
            {
                "kind": "train",
                "step": 10 * step,
                "loss": 0.5,
                "samples_per_s": 2.0 * step,
                "memory_gb": 1.0,
                "mfu": 0.125 * step,
            }
        )
        score = {"dice": dice, "dice_per_class": {"a": dice}, "grid": "prepared"}
        if parsed.pretrain is not None:
            score = {"ssim": dice, "grid": "prepared"}
        lines.append({"kind": "val", "step": 10 * step, **score, "cases": 2, "val_s": 1.0, **(val or {})})
    if status:
        lines.append({"kind": "end", "step": 10 * len(scores), "status": status, "total_s": 60.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if cases is not None:
        parts: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
        for number, name in enumerate(cases):
            digest = hashlib.sha256(name.encode()).hexdigest()[:32]
            entry = {"name": name, "dataset": dataset, "image": digest, "label": digest}
            parts["validation" if number % 5 == parsed.data.fold else "training"].append(entry)
        split = {"datasets": [dataset], "labels": dict(enumerate(labels)), "stated": False, "trained_on": [], **parts}
        (folder / "split.json").write_text(json.dumps(split))
    return folder


def write_evaluation(run: Path, step: int, dice: float, folder: str = "evaluation", **fields: Any) -> None:
    """<folder>/summary.json as `fusionseg evaluate` leaves it."""
    entry = {"dice": {"mean": dice, "std": 0.0, "cases": 2}, "hd95_mm": {"mean": 3.0, "std": 0.0, "cases": 2}}
    summary = {"checkpoint": f"{run}/checkpoints/last.pt", "step": step, "cases": 2, "dice": dice, "hd95_mm": 3.0}
    (run / folder).mkdir(exist_ok=True)
    (run / folder / "summary.json").write_text(json.dumps({**summary, "classes": {"a": entry}, **fields}))


def write_cases(run: Path, rows: Sequence[dict[str, Any]], step: int = 10) -> None:
    """evaluation/ as `fusionseg evaluate` leaves it: cases.csv with these rows, and a summary."""
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    request = evaluations.EvaluationRequest(dataset=None, given=None).to_json()
    entry = {"dice": {"mean": 0.5, "std": 0.0, "cases": 2}}
    summary = {"checkpoint": f"{run}/checkpoints/last.pt", "step": step, "cases": 2, "dice": 0.5, "hd95_mm": 3.0}
    summary |= {"request": request, "failed": {}, "classes": {"a": entry}}
    evaluations.write_evaluation(folder, rows, summary, list(rows))


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of a Markdown table, by the names of its columns."""
    tables: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in tables[number])
    return [dict(zip(header, row, strict=True)) for row in rows]
