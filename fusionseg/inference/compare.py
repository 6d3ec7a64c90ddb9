"""One table over many runs: a row for each configuration, mean and spread over its seeds and folds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from fusionseg.engine.run_folder import mathematics
from fusionseg.errors import UserError
from fusionseg.inference.runs import run_folders
from fusionseg.telemetry.tables import markdown_table

REPEATED = ("seed", "data.fold", "data.fold_seed")
"""Keys that repeat a configuration: their values are averaged over."""
SCORES = ("dice", "ssim")
MEASUREMENTS = ("parameters", "steps", "samples_per_s", "memory_gb", "total_s")


@dataclass(frozen=True)
class RunSummary:
    """What the table needs of a run."""

    path: Path
    config: dict[str, Any]
    """Plain values under dotted keys; only those that the results depend on."""
    status: str
    """Of the last record: completed, plateau, interrupted, failed; `unfinished` if the run is still at work or was
    killed."""
    figures: dict[str, float]
    """Of its best validation, and what the run took."""


@dataclass
class Row:
    """One configuration."""

    settings: dict[str, Any]
    runs: list[RunSummary] = field(default_factory=list)

    def spread(self, figure: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (None for one run) over the runs that know the figure; None if none does."""
        known = [run.figures[figure] for run in self.runs if figure in run.figures]
        return (fmean(known), stdev(known) if len(known) > 1 else None) if known else None


@dataclass(frozen=True)
class Comparison:
    """The table: a row for each configuration."""

    settings: list[str]
    """The keys that tell the configurations apart."""
    figures: list[str]
    rows: list[Row]

    def to_markdown(self) -> str:
        """Mean ± standard deviation; the best of each score in bold."""
        body = [[_setting(row.settings.get(key)) for key in self.settings] for row in self.rows]
        for cells, row in zip(body, self.rows, strict=True):
            cells.append(_count(row))
        for figure in self.figures:
            spreads = [row.spread(figure) for row in self.rows]
            best = max((spread[0] for spread in spreads if spread), default=None)
            for cells, spread in zip(body, spreads, strict=True):
                text = _spread(figure, spread)
                marked = is_score(figure) and spread is not None and spread[0] == best and len(self.rows) > 1
                cells.append(f"**{text}**" if marked else text)
        return markdown_table([[*self.settings, "runs", *self.figures], *body])

    def to_csv(self) -> str:
        """The same in full precision, mean and standard deviation apart."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.settings, "runs", *(f"{f}{end}" for f in self.figures for end in ("", "_std"))])
        for row in self.rows:
            cells: list[Any] = [_setting(row.settings.get(key)) for key in self.settings]
            cells.append(len(row.runs))
            for figure in self.figures:
                mean, deviation = row.spread(figure) or ("", None)
                cells += [mean, "" if deviation is None else deviation]
            writer.writerow(cells)
        return out.getvalue()


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare run folders, and all runs in folders of runs.

    Raises:
        UserError: a path holds no run, or no run has a validation.
    """
    runs = [read_run(folder) for folder in run_folders(paths)]
    if not any(run.figures for run in runs):
        raise UserError(f"{', '.join(map(str, paths))}: none of the {len(runs)} runs has validated yet")
    rows: dict[str, Row] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in REPEATED}
        row = rows.setdefault(json.dumps(settings, sort_keys=True), Row(settings))
        row.runs.append(run)
    figures = dict.fromkeys(name for run in runs for name in run.figures)
    ordered = [name for name in figures if name not in MEASUREMENTS] + [
        name for name in MEASUREMENTS if name in figures
    ]
    return Comparison(distinguishing([row.settings for row in rows.values()]), ordered, list(rows.values()))


def read_run(folder: Path) -> RunSummary:
    """What is on disk of one run."""
    config_file = folder / "config.yaml"
    try:
        plain = yaml.load(config_file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        records, environment = [], {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: cannot be read: {error}") from None
    validations = [record for record in records if record["kind"] == "val"]
    figures: dict[str, float] = {}
    if validations:
        score = next(name for name in SCORES if name in validations[0])
        best = max(validations, key=lambda record: -1.0 if record[score] is None else record[score])
        figures = {key: value for key, value in _flat(best).items() if isinstance(value, float)}
        figures = {key: value for key, value in figures.items() if not key.endswith("_s")}
        figures |= _cost(records, environment)
    last = records[-1] if records else {"kind": ""}
    status = last["status"] if last["kind"] == "end" else "unfinished"
    return RunSummary(folder, dict(_flat(mathematics(plain))), status, figures)


def _cost(records: list[dict[str, Any]], environment: Mapping[str, Any]) -> dict[str, float]:
    """Parameters, steps, and the measurements, means over the records."""
    trained = [record for record in records if record["kind"] == "train"]
    cost: dict[str, float] = {}
    if "parameters" in environment:
        cost["parameters"] = environment["parameters"]
    if trained:
        cost["steps"] = trained[-1]["step"]
        for key in ("samples_per_s", "memory_gb"):
            cost[key] = fmean(record[key] for record in trained)
    ends = [record["total_s"] for record in records if record["kind"] == "end"]
    if ends:
        cost["total_s"] = ends[-1]
    return cost


def distinguishing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell configurations apart.

    Networks of different names have different keys: `model.name` stands for those. A key is listed if it differs
    between configurations with the same name of that section.
    """
    keys = list(dict.fromkeys(key for one in settings for key in one))
    found = []
    for key in keys:
        name = f"{key.split('.')[0]}.name"
        values: dict[str, set[str]] = {}
        for one in settings:
            group = json.dumps(one.get(name)) if key != name else ""
            values.setdefault(group, set()).add(json.dumps(one.get(key)))
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found or ["model.name"]


def is_score(figure: str) -> bool:
    """Whether more of it is better and it is the network's doing."""
    return figure.split(".")[0] in ("dice", "dice_per_class", "ssim", "psnr", "ssim_hidden", "psnr_hidden")


def _flat(plain: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    return dict(_items(plain, at))


def _items(plain: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _count(row: Row) -> str:
    unfinished = sum(run.status not in ("completed", "plateau") for run in row.runs)
    return f"{len(row.runs)}" + (f" ({unfinished} not finished)" if unfinished else "")


def _setting(value: Any) -> str:
    return "-" if value is None else str(value)


def _spread(figure: str, spread: tuple[float, float | None] | None) -> str:
    if spread is None:
        return "-"
    mean, deviation = spread
    if figure == "parameters":
        return f"{mean / 1e6:.2f} M"
    digits = 0 if figure == "steps" else 2 if figure in MEASUREMENTS or figure.startswith("psnr") else 4
    text = f"{mean:.{digits}f}"
    return text if deviation is None or figure == "steps" else f"{text} ± {deviation:.{digits}f}"
