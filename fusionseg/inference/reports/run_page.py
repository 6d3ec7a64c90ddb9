"""The page of a run: its data and settings, its curves, its time, its GPUs, its pictures and its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fusionseg.inference.reports.gpu_section import gpu_section
from fusionseg.observability.progress import duration
from fusionseg.runs.cases.split_file import NO_VALIDATION, plain_split, validates_none
from fusionseg.runs.environment import read_environment
from fusionseg.runs.evaluations import evaluations_of
from fusionseg.runs.json_files import is_number
from fusionseg.runs.paths import CONFIG, REPORT, RunPaths, is_run_folder
from fusionseg.runs.records import Record, RecordKind, RunStatus, read_records
from fusionseg.runs.run_config import plain_config, recorded_task
from fusionseg.utils.charts import Curve, curve_chart, share_chart
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import write_text
from fusionseg.utils.html_page import fact_table, figure, heading, html_page, paragraph, picture_uri, table, tiles
from fusionseg.utils.tables import counted

MOST_CURVES = 8
"""Number of lines in a chart of scores by class."""
_SECONDS = 0.005
"""Share of the time below which a phase is added to the others."""
_TRAINING_CHARTS = (
    ("loss", "loss"),
    ("lr", "learning rate"),
    ("grad_norm", "norm of the gradient"),
    ("samples_per_s", "samples a second"),
    ("memory_gb", "memory of rank 0 (GB)"),
    ("mfu", "model FLOP utilisation"),
)


def write_run_page(run: Path) -> Path:
    """Write report.html into a run folder.

    Args:
        run: the run folder.

    Returns:
        The path of the page.

    Raises:
        UserError: the path is no run folder, or its configuration cannot be read.
    """
    if not is_run_folder(run):
        raise UserError(f"{run}: is no run folder ({CONFIG} is missing): give the folder that a training wrote")
    plain = plain_config(run)
    score = recorded_task(plain, RunPaths(run).config).score
    records = read_records(run)
    train, val, end = (
        [one for one in records if one["kind"] == kind] for kind in (RecordKind.TRAIN, RecordKind.VAL, RecordKind.END)
    )
    last_end = end[-1] if end and records[-1] is end[-1] else None
    parts = [
        paragraph(str(run.resolve()), "note"),
        _tiles(run, score, train, val, last_end),
        heading("Data"),
        *_data(run, plain),
        heading("Training"),
        *_settings(run, plain),
        *_curves(score, train, val),
        *_time(last_end),
        *gpu_section(run, last_end),
        *_pictures(run),
        *_evaluations(run),
        *_configuration(run),
    ]
    page = RunPaths(run).report
    write_text(page, html_page(f"Run {run.resolve().name}", parts))
    return page


def _tiles(run: Path, score: str, train: Sequence[Record], val: Sequence[Record], last_end: Record | None) -> str:
    status = str(last_end.get("status")) if last_end else RunStatus.UNFINISHED
    step = max((int(record["step"]) for record in (*train, *val, *([last_end] if last_end else []))), default=0)
    values = [(escape(status), "status"), (f"{step}", "steps")]
    known = [(float(record[score]), int(record["step"])) for record in val if is_number(record.get(score))]
    if known:
        best, at = max(known, key=lambda pair: (pair[0], -pair[1]))
        values += [(f"{known[-1][0]:.4f}", f"last {escape(score)}, prepared grid")]
        values += [(f"{best:.4f}", f"best {escape(score)}, step {at}")]
    elif validates_none(run):
        values.append(("none", NO_VALIDATION))
    if last_end is not None and is_number(last_end.get("total_s")):
        values.append((duration(float(last_end["total_s"])), "wall time of all starts"))
    environment = read_environment(run)
    if is_number(environment.get("parameters")):
        values.append((f"{int(environment['parameters']):,}", "parameters"))
    devices = [str(rank.get("device")) for rank in environment.get("ranks") or () if isinstance(rank, Mapping)]
    if devices:
        values.append((f"{len(devices)}", f"ranks: {escape(some_of(sorted(set(devices))))}"))
    return tiles(values)


def _data(run: Path, plain: Mapping[str, Any]) -> list[str]:
    split, data = plain_split(run), plain.get("data", {})
    rows = [("data set", ", ".join(map(str, split.get("datasets") or [data.get("root")])))]
    if split:
        rows += [
            ("training cases", str(len(split.get("training") or ()))),
            ("validation cases", _named(split.get("validation") or ())),
            ("fold", f"{split.get('fold')} of {split.get('folds')}"),
            ("channels", ", ".join(map(str, split.get("channels") or ()))),
            ("classes", ", ".join(map(str, (split.get("labels") or {}).values()))),
        ]
    for key, name in (("spacing", "voxel size (mm)"), ("patch", "patch (voxels)"), ("intensity", "intensities")):
        if data.get(key) is not None:
            rows.append((name, _text(data[key])))
    parts = [fact_table(rows)]
    if trained := split.get("trained_on"):
        text = f"Validated on {counted(len(trained), 'case')} that were trained on: {some_of(trained)}."
        parts.append(paragraph(text, "warning"))
    return parts


def _named(cases: Sequence[Any]) -> str:
    names = [str(case.get("name")) for case in cases if isinstance(case, Mapping)]
    return f"{len(cases)}" + (f": {some_of(names)}" if names else "")


def _settings(run: Path, plain: Mapping[str, Any]) -> list[str]:
    environment = read_environment(run)
    train = plain.get("train", {})
    model = dict(plain.get("model") or {})
    rows = [("network", f"{model.pop('name', '')} {_text(model)}".strip())]
    for section, name in (("loss", "loss"), ("optim", "optimizer"), ("schedule", "schedule")):
        if plain.get(section):
            rows.append((name, _text(plain[section])))
    rows += [
        (name, _text(train[key]))
        for key, name in (
            ("steps", "steps"),
            ("global_batch", "global batch"),
            ("micro_batch", "micro-batch"),
            ("precision", "precision"),
        )
        if train.get(key) is not None
    ]
    if plain.get("init_from"):
        rows.append(("started from", str(plain["init_from"])))
    if plain.get("seed") is not None:
        rows.append(("seed", str(plain["seed"])))
    versions = {"fusionseg": environment.get("fusionseg"), **(environment.get("packages") or {})}
    rows += [
        ("versions", ", ".join(f"{name} {one}" for name, one in versions.items() if one)),
        ("commit", str(environment.get("commit") or "unknown")),
        ("command", " ".join(map(str, environment.get("command") or ()))),
    ]
    return [fact_table(rows)]


def _text(value: Any) -> str:
    """A setting as text: mappings and lists without quotes and braces."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return (" x " if all(isinstance(one, int) for one in value) else ", ").join(map(_text, value))
    return str(value)


def _curves(score: str, train: Sequence[Record], val: Sequence[Record]) -> list[str]:
    charts = []
    scored = [key for key in dict.fromkeys(key for one in val for key in one) if key == score or key == "loss"]
    for key in scored:
        name = "loss of the validation" if key == "loss" else f"{key} of the validation"
        charts.append((name, _chart(val, {name: [one.get(key) for one in val]}, name)))
    by_class: dict[str, list[Any]] = {}
    tables = [one.get(f"{score}_per_class") or {} for one in val]
    for name in dict.fromkeys(name for one in tables for name in one):
        by_class[name] = [one.get(name) for one in tables]
    if len(by_class) > 1:
        shown = dict(list(by_class.items())[:MOST_CURVES])
        more = f", first {MOST_CURVES} of {len(by_class)}" if len(by_class) > MOST_CURVES else ""
        charts.append((f"{score} by class{more}", _chart(val, shown, score)))
    for key, name in _TRAINING_CHARTS:
        log_y = key in ("loss", "grad_norm")
        charts.append((name, _chart(train, {name: [one.get(key) for one in train]}, name, log_y=log_y)))
    figures = [figure(chart, name) for name, chart in charts if chart]
    if not figures:
        return [paragraph("There are no records yet.", "note")]
    note = "Scores of the validation are measured on the prepared grid; those of an evaluation in the files' geometry."
    return [heading("Curves", note), f"<div class='charts'>{''.join(figures)}</div>"]


def _chart(records: Sequence[Record], lines: Mapping[str, list[Any]], label: str, *, log_y: bool = False) -> str:
    steps = [float(record["step"]) for record in records]
    curves = [
        Curve(name, steps, [float(value) if is_number(value) else None for value in values])
        for name, values in lines.items()
    ]
    return curve_chart(curves, "step", label, log_y=log_y)


def _time(last_end: Record | None) -> list[str]:
    """The time account of the run: a bar of its phases."""
    phases = {name: float(value) for name, value in ((last_end or {}).get("phases_s") or {}).items() if value}
    whole = sum(phases.values())
    if whole <= 0:
        return []
    shown = {name: value for name, value in phases.items() if value >= _SECONDS * whole and name != "other"}
    shown["other"] = whole - sum(shown.values())
    note = "Wall time of rank 0 over all starts of the run, by phase."
    return [heading("Where the time went", note), share_chart(shown, "s")]


def _pictures(run: Path) -> list[str]:
    """The pictures of the first and of the last validation."""
    found = sorted(RunPaths(run).pictures.glob("validation_*.png"))
    shown = list(dict.fromkeys([found[0], found[-1]])) if found else []
    parts = []
    for path in shown:
        if (uri := _embedded(path)) is not None:
            step = path.stem.rpartition("_")[2].lstrip("0") or "0"
            parts.append(figure(f"<img class=wide alt='' src='{uri}'>", f"step {step}"))
    if not parts:
        return []
    return [heading("Validation pictures", "The first validation case, at the first and the last validation."), *parts]


def _embedded(path: Path) -> str | None:
    from PIL import Image  # slow to import

    try:
        with Image.open(path) as picture:
            return picture_uri(np.asarray(picture.convert("RGB")), "jpeg")
    except OSError:  # an incomplete or damaged file costs its own picture only
        return None


def _evaluations(run: Path) -> list[str]:
    rows = []
    for folder, summary in evaluations_of(run):
        if not summary:
            continue
        name = escape(folder.name)
        if (folder / REPORT).is_file():
            name = f"<a href='./{quote(folder.name)}/{REPORT}'>{name}</a>"
        means = {"dice": summary.get("dice"), "hd95_mm": summary.get("hd95_mm"), "score": summary.get("score")}
        cells = [_score(one) for one in means.values()]
        rows.append([name, str(summary.get("cases", "")), str(summary.get("step", "")), *cells])
    if not rows:
        return []
    head = ["evaluation", "cases", "step", "Dice", "HD95 mm", "score"]
    return [heading("Evaluations", "In the geometry of the label files."), table(head, rows)]


def _score(value: Any) -> str:
    return f"{float(value):.4f}" if is_number(value) and isfinite(float(value)) else ""


def _configuration(run: Path) -> list[str]:
    try:
        text = RunPaths(run).config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    written = datetime.fromtimestamp(RunPaths(run).config.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        heading("Configuration", f"{CONFIG}, written {written}"),
        f"<details><summary>all settings</summary><pre>{escape(text)}</pre></details>",
    ]
