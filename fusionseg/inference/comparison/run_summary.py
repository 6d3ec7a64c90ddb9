"""Summary of a run for a table over many runs: configuration, data set, metrics, cost."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fusionseg.config.data.splits import ALL
from fusionseg.config.parts.task import TaskInfo
from fusionseg.inference.comparison.matching_evaluation import (
    MatchingEvaluation,
    further_evaluations,
    matching_evaluation,
)
from fusionseg.runs.cases.split_file import NO_VALIDATION, plain_split
from fusionseg.runs.environment import read_environment
from fusionseg.runs.evaluations import read_summary
from fusionseg.runs.json_files import JsonObject, is_number
from fusionseg.runs.paths import METRICS, SPLIT, RunPaths, run_of_weights
from fusionseg.runs.records import Record, RecordKind, RunStatus, sift_records
from fusionseg.runs.run_config import plain_config, recorded_task, resume_relevant
from fusionseg.utils.errors import UserError

REPEATED = ("seed", "data.fold", "data.fold_seed")
"""Keys whose values only repeat the experiment. The table averages over their values."""
PREPARED, FILES, PATCHES = " (prepared grid)", " (files)", " (per patch, old)"
"""Suffixes of the metrics' names: the grid of the measurement. Metrics of different grids never share a column."""

VALIDATED_ON_TRAINING_CASES = "validated on cases that were trained on"
UNKNOWN_START = "started from weights that do not say what they were trained on"
STOPPED_BY_PLATEAU = "stopped by stop.plateau, so that its last step was chosen by the validation too"


OF_PRETRAINING = " of init_from"
"""Added to the names of scores of the pre-training that a run started from."""
_REPETITION = re.compile(r"(?:^|[-_.])(?:fold_seed|seed|fold)_?\d+(?=$|[-_.])")

_LABEL_GROUPS = tuple(f"data.{key}" for key in ("labels", "classes", "regions", "annotated"))
_MAX_TEXT = 60


@dataclass(frozen=True)
class DataIdentity:
    """The identity of a run's data set, by content where the run recorded its split."""

    name: str
    cases: frozenset[str]
    """Digests of the images and labels of all training and validation cases; empty where there is no split."""
    labels: tuple[str, ...]
    root: str
    """The folders of the data sets. They identify the data set of a run without a split."""

    @cached_property
    def key(self) -> str:
        """A hash that is equal for equal data sets, whatever their names and folders are."""
        content = "\n".join([*(sorted(self.cases) or [self.root]), "", *self.labels])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run."""

    path: Path
    name: str
    """Name of the run folder; of an ensemble, the names of its runs."""
    task: TaskInfo
    config: dict[str, Any]
    """Plain values by dotted key; only those that the results depend on."""
    key: str
    """A hash that is equal for runs whose configurations differ in seed and fold only."""
    data: DataIdentity
    fold: str
    """Index of the fold and, unless the data set states the folds, the seed that drew them."""
    status: str
    """See `RunStatus`."""
    metrics: dict[str, float]
    """Metrics of the chosen weights, and the cost of the run; empty without a validation."""
    marks: tuple[str, ...] = ()
    """Reasons why the metrics are not those of a run that was validated on unseen cases."""
    remarks: tuple[str, ...] = ()
    """Notes for below the table."""
    evaluation: Path | None = None
    """The folder of the evaluation that the metrics of the files are from."""
    further: tuple[MatchingEvaluation, ...] = ()
    """Evaluations of ensembles of this run and others, and of masks with post-processing."""

    @cached_property
    def evaluation_request(self) -> JsonObject | None:
        """The request that the evaluation recorded; None without an evaluation, or if an older version wrote it."""
        return self._evaluation_facts[0]

    @cached_property
    def evaluation_definitions(self) -> JsonObject:
        """The definitions of the metrics that the evaluation recorded; empty if there are none."""
        return self._evaluation_facts[1]

    @cached_property
    def evaluation_postprocessing(self) -> JsonObject | None:
        """The post-processing of the evaluated masks; None without one."""
        return self._evaluation_facts[2]

    @cached_property
    def _evaluation_facts(self) -> tuple[JsonObject | None, JsonObject, JsonObject | None]:
        summary = {} if self.evaluation is None else read_summary(self.evaluation)
        found = [summary.get(name) for name in ("request", "definitions", "postprocessing")]
        request, definitions, postprocessing = (one if isinstance(one, dict) else None for one in found)
        return request, definitions or {}, postprocessing


def name_without_repetition(name: str) -> str:
    """A name without its seed and fold, in the form that a sweep gives them: `unet-seed0` becomes `unet`."""
    return _REPETITION.sub("", name).strip("-_.") or name


def summarise_run(run: Path, weights: str) -> RunSummary:
    """Read a run folder.

    Args:
        run: the run folder.
        weights: "last" takes the metrics of the last validation, "best" those of the best one.

    Raises:
        UserError: the configuration cannot be read.
    """
    plain = plain_config(run)
    task = recorded_task(plain, RunPaths(run).config)
    remarks: list[str] = []
    records, damaged = sift_records(run)
    if damaged:
        remarks.append(f"{damaged} damaged lines of {METRICS} are ignored")
    split = plain_split(run) or None
    if split is None and records:
        remarks.append(f"there is no readable {SPLIT}: data.root identifies its data set")
    validations = [record for record in records if record["kind"] == RecordKind.VAL]
    chosen = _chosen_validation(validations, task.score, weights)
    metrics = {} if chosen is None else _validation_metrics(chosen)
    last = records[-1] if records else {}
    status = str(last.get("status")) if last.get("kind") == RecordKind.END else RunStatus.UNFINISHED
    trained_on = bool((split or {}).get("trained_on") or (chosen or {}).get("trained_on"))
    evaluation = None
    if task.evaluation == "masks" and chosen is not None and (found := matching_evaluation(run, chosen, weights)):
        metrics = {**{f"{key}{FILES}": value for key, value in found.metrics.items()}, **metrics}
        trained_on = trained_on or found.trained_on
        remarks += found.remarks
        evaluation = found.folder
    further = further_evaluations(run, chosen, weights) if task.evaluation == "masks" and chosen is not None else []
    if metrics and plain.get("init_from") and not plain.get("finetune", {}).get("from_scratch"):
        metrics |= _pretraining_score(Path(str(plain["init_from"])))
    on_all = plain["data"].get("fold") == ALL
    if metrics or on_all:
        metrics |= _cost(records, read_environment(run))
    marks = [VALIDATED_ON_TRAINING_CASES] if trained_on else []
    if any(isinstance(one, dict) and one.get("images") is None for one in (split or {}).get("seen") or ()):
        marks.append(UNKNOWN_START)
    if on_all:
        marks.append(NO_VALIDATION)
    if weights == "last" and status == RunStatus.PLATEAU:
        marks.append(STOPPED_BY_PLATEAU)
    config = dict(_dotted(resume_relevant(plain)))
    return RunSummary(
        path=run,
        name=run.name,
        task=task,
        config=config,
        key=_configuration_key(config),
        data=_data_identity(plain, split),
        fold=_fold(plain, split),
        status=status,
        metrics=metrics,
        marks=tuple(marks),
        remarks=tuple(remarks),
        evaluation=evaluation,
        further=tuple(further),
    )


def _pretraining_score(start: Path) -> dict[str, float]:
    """The score of the last validation of the pre-training that a run started from; empty if it was another start.

    Args:
        start: `init_from` of the run.
    """
    run = run_of_weights(start)
    try:
        task = recorded_task(plain_config(run), RunPaths(run).config)
    except UserError:
        return {}
    if task.evaluation != "reconstruction":
        return {}
    validations = [record for record in sift_records(run)[0] if record["kind"] == RecordKind.VAL]
    scores = _validation_metrics(validations[-1]) if validations else {}
    return {
        f"{name}{OF_PRETRAINING} ({grid}": value
        for key, value in scores.items()
        for name, _, grid in [key.partition(" (")]
        if name == task.score
    }


def _chosen_validation(validations: Sequence[Record], score: str, weights: str) -> Record | None:
    """The last validation, or the first one with the highest score; validations without a score are not the best."""
    if weights == "last":
        return validations[-1] if validations else None
    known = [record for record in validations if is_number(record.get(score))]
    return max(known, key=lambda record: float(record[score]), default=None)


def _validation_metrics(record: Record) -> dict[str, float]:
    # Pre-trainings of versions that did not record the grid scored patches. Dice was always on the prepared grid.
    grid = PATCHES if "ssim" in record and "grid" not in record else PREPARED
    # Integers are counts of cases, not metrics. Losses of different runs may be different functions.
    return {
        f"{key}{grid}": value
        for key, value in _dotted(record)
        if isinstance(value, float) and is_number(value) and not key.endswith("_s") and key != "loss"
    }


def _cost(records: Sequence[Record], environment: Mapping[str, Any]) -> dict[str, float]:
    """Parameters, steps, and the means of the measurements over the records."""
    trained = [record for record in records if record["kind"] == RecordKind.TRAIN]
    cost: dict[str, float] = {}
    if is_number(environment.get("parameters")):
        cost["parameters"] = environment["parameters"]
    if trained:
        cost["steps"] = trained[-1]["step"]
        for key in ("samples_per_s", "mfu", "roofline", "memory_gb"):
            if known := [record[key] for record in trained if is_number(record.get(key))]:
                cost[key] = fmean(known)
    totals = [record.get("total_s") for record in records if record["kind"] == RecordKind.END]
    if known_totals := [total for total in totals if total is not None and is_number(total)]:
        cost["total_s"] = known_totals[-1]
        ranks = environment.get("ranks")
        devices = (
            [str(rank.get("device")) for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
        )
        if gpus := sum(device.startswith("cuda") for device in devices):
            cost["gpu_hours"] = known_totals[-1] * gpus / 3600
    return cost


def _data_identity(plain: Mapping[str, Any], split: Mapping[str, Any] | None) -> DataIdentity:
    data = plain["data"]
    # A run without a split, or with a damaged one, is identified by the folders of its data sets.
    roots = [data.get("root"), *(further.get("root") for further in data.get("also") or ())]
    root = " + ".join(str(path) for path in roots)
    try:
        if split is None:
            raise ValueError("no split")
        cases = [*split["training"], *split["validation"]]
        digests = frozenset(f"{case['image']} {case.get('label')}" for case in cases)
        labels = tuple(str(name) for _, name in sorted(split["labels"].items(), key=lambda item: int(item[0])))
        scheme = split.get("label_scheme") or {}
        labels += tuple(str(region[0]) for region in scheme.get("regions", ()))
        return DataIdentity(" + ".join(map(str, split["datasets"])), digests, labels, root)
    except (KeyError, TypeError, ValueError, AttributeError):
        names = data.get("labels")
        return DataIdentity(root, frozenset(), tuple(map(str, names)) if isinstance(names, list) else (), root)


def _fold(plain: Mapping[str, Any], split: Mapping[str, Any] | None) -> str:
    data = plain["data"]
    stated = bool((split or {}).get("stated"))
    seed, fold = data.get("fold_seed"), data.get("fold")
    return f"{fold}" + (f" (fold_seed {seed})" if seed and not stated and isinstance(fold, int) else "")


def _configuration_key(config: Mapping[str, Any]) -> str:
    """A hash of the settings without seed and fold.

    `init_from` is replaced by the configuration of the pre-training that it names: each fold has a pre-training of its
    own, and their folders differ.
    """
    settings = {key: value for key, value in config.items() if key not in REPEATED}
    if config.get("data.fold") == ALL:  # it repeats no run that holds a fold out, and has a row of its own
        settings["data.fold"] = ALL
    if settings.get("init_from"):
        start = Path(str(settings["init_from"]))
        run = run_of_weights(start)
        try:
            before = dict(_dotted(resume_relevant(plain_config(run))))
        except UserError:
            pass
        else:
            settings["init_from"] = {k: v for k, v in before.items() if k not in (*REPEATED, "init_from")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _dotted(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their dotted keys; mappings from names of labels become texts."""
    for key, value in plain.items():
        if f"{prefix}{key}" in _LABEL_GROUPS and isinstance(value, Mapping):
            yield f"{prefix}{key}", _short_text(value)
        elif isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short_text(names: Mapping[str, Any]) -> str:
    """A mapping as text for one cell of a table: a long one is cut, with a hash of the whole."""
    text = ", ".join(f"{name}: {value}" for name, value in names.items())
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}... ({hashlib.sha256(text.encode()).hexdigest()[:6]})"
