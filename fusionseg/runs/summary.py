"""The part of a run folder that a table over runs needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from fusionseg.config import validate
from fusionseg.runs.folder import resume_relevant
from fusionseg.runs.records import read_object, read_regular, sift_records
from fusionseg.runs.stored_evaluation import is_number, stored_evaluation
from fusionseg.utils.errors import UserError

REPEATED = ("seed", "data.fold", "data.fold_seed")
"""Keys that repeat a configuration: their values are averaged over."""
MEASURES = {"segmentation": "dice", "pre-training": "ssim"}
"""The score of each task."""
FINISHED = ("completed", "plateau")
PREPARED, FILES, PATCHES = " (prepared grid)", " (files)", " (per patch, old)"
"""Behind a figure's name: what it was measured on. Figures of different kinds never share a column."""

ON_TRAINED = "validated on cases that were trained on"
UNKNOWN_START = "started from weights that do not say what they were trained on"
BY_PLATEAU = "stopped by stop.plateau, so that its last step was chosen by the validation too"


@dataclass(frozen=True)
class DataIdentity:
    """The data set of a run, by content where the run says so."""

    name: str
    cases: frozenset[str]
    """Digests of the images and labels of all training and validation cases; empty where there is no split.json."""
    labels: tuple[str, ...]
    root: str
    """Tells the data set of a run without split.json."""

    @cached_property
    def key(self) -> str:
        """Equal for equal data sets, whatever they are called and wherever they lie."""
        content = "\n".join([*(sorted(self.cases) or [self.root]), "", *self.labels])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class RunSummary:
    """A run."""

    path: Path
    task: str
    """One of `MEASURES`."""
    config: dict[str, Any]
    """Plain values under dotted keys; only those that the results depend on."""
    key: str
    """Equal for runs of one configuration, but for their seeds and folds."""
    data: DataIdentity
    fold: str
    status: str
    """completed, plateau, interrupted, failed; `unfinished` if the run is still at work or was killed."""
    figures: dict[str, float]
    """Of the chosen weights, and what the run took."""
    marks: tuple[str, ...] = ()
    """Reasons why its figures are not those of a run that was validated on unseen cases."""
    remarks: tuple[str, ...] = field(default=())
    """For a note below the table."""


def read_run(folder: Path, weights: str) -> RunSummary:
    """Read a run folder.

    Args:
        weights: "last" or "best": the validation whose figures are taken, and the evaluation.

    Raises:
        UserError: its configuration cannot be read.
    """
    plain = _configuration(folder)
    task = "segmentation" if plain.get("pretrain") is None else "pre-training"
    remarks: list[str] = []
    records, damaged = sift_records(folder / "metrics.jsonl")
    if damaged:
        remarks.append(f"{damaged} damaged lines of metrics.jsonl are passed over")
    split = read_object(folder / "split.json") or None
    if split is None and records:
        remarks.append("there is no readable split.json: its data set is told by data.root")
    validations = [record for record in records if record["kind"] == "val"]
    chosen = _chosen(validations, MEASURES[task], weights)
    figures = {} if chosen is None else _validation_figures(chosen)
    last = records[-1] if records else {}
    status = str(last.get("status")) if last.get("kind") == "end" else "unfinished"
    trained_on = bool((split or {}).get("trained_on") or (chosen or {}).get("trained_on"))
    if task == "segmentation" and chosen is not None and (found := stored_evaluation(folder, chosen, weights)):
        figures = {**{f"{key}{FILES}": value for key, value in found.figures.items()}, **figures}
        trained_on = trained_on or found.trained_on
        remarks += found.remarks
    if figures:
        figures |= _cost(records, read_object(folder / "environment.json"))
    marks = [ON_TRAINED] if trained_on else []
    if any(isinstance(one, dict) and one.get("images") is None for one in (split or {}).get("seen") or ()):
        marks.append(UNKNOWN_START)
    if weights == "last" and status == "plateau":
        marks.append(BY_PLATEAU)
    config = dict(_items(resume_relevant(plain)))
    return RunSummary(
        folder,
        task,
        config,
        _key(config),
        _identity(plain, split),
        _fold(plain, split),
        status,
        figures,
        tuple(marks),
        tuple(remarks),
    )


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        plain = yaml.load(read_regular(path).decode("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict):
        raise UserError(f"{path}: is no configuration of a run")
    try:
        return validate(plain).to_dict()  # keys that are younger than the run have their defaults
    except UserError:  # of another version: its values are as good to tell configurations apart
        return plain


def _chosen(validations: Sequence[dict[str, Any]], measure: str, weights: str) -> dict[str, Any] | None:
    """The last validation, or the first of the highest score; a score that is not known is not the best."""
    if weights == "last":
        return validations[-1] if validations else None
    known = [record for record in validations if is_number(record.get(measure))]
    return max(known, key=lambda record: float(record[measure]), default=None)


def _validation_figures(record: dict[str, Any]) -> dict[str, float]:
    # Pre-trainings wrote means over patches before they wrote the grid; that of a Dice has always been the prepared.
    kind = PATCHES if "ssim" in record and "grid" not in record else PREPARED
    # Whole numbers are counts: of cases, of those that were trained on.
    return {
        f"{key}{kind}": value
        for key, value in _items(record)
        if isinstance(value, float) and is_number(value) and not key.endswith("_s")
    }


def _cost(records: list[dict[str, Any]], environment: Mapping[str, Any]) -> dict[str, float]:
    """Parameters, steps, and the measurements, means over the records."""
    trained = [record for record in records if record["kind"] == "train"]
    cost: dict[str, float] = {}
    if is_number(environment.get("parameters")):
        cost["parameters"] = environment["parameters"]
    if trained:
        cost["steps"] = trained[-1]["step"]
        for key in ("samples_per_s", "memory_gb"):
            if known := [record[key] for record in trained if is_number(record.get(key))]:
                cost[key] = fmean(known)
    ends = [record["total_s"] for record in records if record["kind"] == "end" and is_number(record.get("total_s"))]
    if ends:
        cost["total_s"] = ends[-1]
    return cost


def _identity(plain: Mapping[str, Any], split: Mapping[str, Any] | None) -> DataIdentity:
    data = plain["data"]
    roots = [data.get("root"), *(source.get("root") for source in data.get("also") or ())]
    root = " + ".join(str(path) for path in roots)
    try:
        assert split is not None
        cases = [*split["training"], *split["validation"]]
        digests = frozenset(f"{case['image']} {case.get('label')}" for case in cases)
        labels = tuple(str(name) for _, name in sorted(split["labels"].items(), key=lambda item: int(item[0])))
        return DataIdentity(" + ".join(map(str, split["datasets"])), digests, labels, root)
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
        names = data.get("labels")
        return DataIdentity(root, frozenset(), tuple(map(str, names)) if isinstance(names, list) else (), root)


def _fold(plain: Mapping[str, Any], split: Mapping[str, Any] | None) -> str:
    data = plain["data"]
    stated = bool((split or {}).get("stated"))
    seed = data.get("fold_seed")
    return f"{data.get('fold')}" + (f" (fold_seed {seed})" if seed and not stated else "")


def _key(config: Mapping[str, Any]) -> str:
    """The settings without seed and fold. A run that was pre-trained counts by the configuration of the pre-training:
    each fold has one of its own."""
    settings = {key: value for key, value in config.items() if key not in REPEATED}
    if settings.get("init_from"):
        start = Path(str(settings["init_from"]))
        folder = start.parent.parent if start.suffix == ".pt" else start
        try:
            before = dict(_items(resume_relevant(_configuration(folder))))
        except UserError:
            pass
        else:
            settings["init_from"] = {k: v for k, v in before.items() if k not in (*REPEATED, "init_from")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _items(plain: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
