"""The model card as Markdown. What is not known is said, and what only the author knows is marked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from fusionseg.export.card.facts import SHOWN, VALIDATION, CardFacts, Measured, entry, fold_text
from fusionseg.inference.postprocessing.evaluated import postprocessing_notes
from fusionseg.inference.statistics.tables import interval_text
from fusionseg.runs.accounts.history import Change
from fusionseg.runs.paths import GPU_TABLE, run_of_weights
from fusionseg.utils.tables import markdown_table, plain_number

AUTHOR = "**To be written by the author.**"
UNKNOWN = "unknown"
_WITHOUT = {"hd95_mm": " It has none where label or prediction is empty: missed structures are not in the mean."}
_TITLES = {"dice": ("Dice", 4), "nsd": ("surface Dice", 4), "hd95_mm": ("HD95 (mm)", 2)}


def card_text(facts: CardFacts, licence: str | None = None) -> str:
    """Write the model card of a run.

    Args:
        facts: of the run.
        licence: of the weights; None if it is not stated.
    """
    parts = [
        ("Model", _model(facts)),
        ("Intended use", [f"{AUTHOR} Task, patients, scanners, users; misuse. It is no medical device."]),
        ("Data", _data(facts)),
        ("Preparation of the images", _preparation(facts)),
        ("Training", _training(facts)),
        ("Results", list(_results(facts))),
        ("Compute and energy", _compute(facts)),
        ("Limits", _limits(facts)),
        ("Licence", [licence or f"{AUTHOR} The licence of the weights is not stated."]),
    ]
    head = [f"# Model card: {facts.config.get('name')}", "", "Made by fusionseg from the files of the run."]
    return "\n".join([*head, *(line for title, lines in parts for line in ("", f"## {title}", "", *lines)), ""])


def _table(rows: Sequence[tuple[str, Any]]) -> list[str]:
    shown = [("", ""), *((name, UNKNOWN if value in (None, "") else str(value)) for name, value in rows)]
    return markdown_table(shown).splitlines()


def _model(facts: CardFacts) -> list[str]:
    parameters = facts.environment.get("parameters")
    split = facts.split
    return _table(
        [
            ("network", entry(facts.config, "model", "name")),
            ("parameters", None if parameters is None else f"{parameters:,}"),
            ("input", None if split is None else f"3D, channels {', '.join(split.channels)}"),
            ("outputs", None if split is None else ", ".join(split.scheme.output_names)),
            ("window", _times(entry(facts.config, "data", "patch"), "voxels")),
            ("fusionseg", _version(facts)),
            *((name, version) for name, version in (facts.environment.get("packages") or {}).items()),
        ]
    )


def _data(facts: CardFacts) -> list[str]:
    split = facts.split
    if split is None:
        return ["The run has no record of its cases."]
    annotated = sum(case.annotated is not None for case in (*split.training, *split.validation))
    rows = [
        ("data sets", ", ".join(split.datasets)),
        ("training cases", len(split.training)),
        ("validation cases", len(split.validation)),
        ("split", ", ".join(dict.fromkeys(method.name for method in split.method_of_each))),
        ("fold", fold_text(split)),
        ("digest of the training images", _digest([case.image for case in split.training])),
        ("digest of the validation images", _digest([case.image for case in split.validation]) or "none"),
        ("cases with partial annotation", annotated),
        ("first weights", _start(facts)),
        ("validation cases that were trained on", len(split.trained_on)),
    ]
    return [*_table(rows), "", f"{AUTHOR} Source of the images, dates, scanners, patients, annotators, consent."]


def _preparation(facts: CardFacts) -> list[str]:
    data = facts.config["data"]
    return _table(
        [
            ("orientation", data.get("orientation") or "of the file"),
            ("voxel size", _times(data.get("spacing"), "mm") or "of the file"),
            ("intensity", _intensity(data.get("intensity"))),
            ("crop", _settings(data.get("crop_foreground")) or "none"),
        ]
    )


def _training(facts: CardFacts) -> list[str]:
    config = facts.config
    augment = {key: value for key, value in (config.get("augment") or {}).items() if value}
    ema = entry(config, "train", "ema")
    return _table(
        [
            ("optimizer steps", _steps(facts)),
            ("patches a step", entry(config, "train", "global_batch")),
            ("loss", entry(config, "loss", "name")),
            ("optimizer", _settings(config.get("optim"))),
            ("schedule", _settings(config.get("schedule"))),
            ("precision", entry(config, "train", "precision")),
            *([("averaged weights", f"exponential moving average, decay {ema}")] if ema is not None else []),
            ("augmentation", ", ".join(augment) or "none"),
            ("seed", config.get("seed")),
            *[("continued", _change(change)) for change in facts.changes],
            ("status", None if facts.end is None else facts.end.get("status")),
        ]
    )


def _steps(facts: CardFacts) -> str | None:
    """The steps that were done, and those of the configuration where they differ."""
    planned, done = entry(facts.config, "train", "steps"), facts.steps_done
    if done is None:
        return None if planned is None else f"{UNKNOWN} of {planned}"
    return str(done) if done == planned else f"{done} of {planned}"


def _change(change: Change) -> str:
    """The step from which the run went on with other settings, and these."""
    other = "" if change.origin is None else f" of {run_of_weights(change.origin).name}"
    return f"from step {change.step}{other}: {'; '.join(change.changes) or 'nothing changed'}"


def _results(facts: CardFacts) -> Iterator[str]:
    if facts.best is not None:
        best = facts.best
        yield (
            f"Best validation during the training: Dice {best['dice']:.4f} at step {best['step']},"
            f" {best.get('cases', UNKNOWN)} cases, on the {best.get('grid', UNKNOWN)} grid. It chose the best weights."
        )
    if not facts.evaluations:
        yield ""
        yield "There is no evaluation in the geometry of the files: `fusionseg evaluate RUN` makes one."
        return
    for measured in facts.evaluations:
        yield from ("", f"### {measured.name}", "", _heading(measured), "")
        yield from _measured_table(measured)
        if notes := list(_notes(measured)):
            yield from ("", *notes)
    yield ""
    yield "Mean over the cases and its 95 % confidence interval over cases; it has no spread over seeds and trainings."


def _heading(measured: Measured) -> str:
    summary = measured.summary
    step = summary.get("step", UNKNOWN)
    text = f"{summary.get('cases', UNKNOWN)} cases of {measured.dataset}, weights of step {step}"
    if trained := summary.get("trained_on"):
        text += f"; {trained} of them were trained on, so the values do not hold for new cases"
    if entry(summary, "request", "tta"):
        text += "; averaged over flips"
    return f"{text}."


def _notes(measured: Measured) -> Iterator[str]:
    """Sentences about the cases that a reader of a table needs."""
    summary = measured.summary
    if failed := summary.get("failed"):
        yield f"- Cases that failed, and have no part in the values: {len(failed)}."
    if unknown := summary.get("trained_on_unknown"):
        yield f"- Whether {unknown} of the cases were trained on is unknown."
    if left_out := summary.get("left_out"):
        yield f"- Cases that were trained on, and have no part in the values: {len(left_out)}."
    if ignored := summary.get("ignored"):
        yield f"- {ignored['voxels']} voxels of {ignored['cases']} cases are marked as ignored, and were not scored."
    if isinstance(postprocessing := summary.get("postprocessing"), dict):
        for note in postprocessing_notes(postprocessing, summary.get("cases", UNKNOWN)):
            yield f"- {note[:1].upper()}{note[1:]}."
    for (label, metric), interval in measured.intervals.items():
        if interval.n < (cases := measured.rows[label]):
            why = _WITHOUT.get(metric, "")
            yield f"- {_TITLES[metric][0]} of {label}: {interval.n} of {cases} cases have a value.{why}"


def _measured_table(measured: Measured) -> list[str]:
    metrics = [metric for metric in SHOWN if any(name == metric for _, name in measured.intervals)]
    rows = [["class", *(_TITLES[metric][0] for metric in metrics)]]
    for label in dict.fromkeys(label for label, _ in measured.intervals):
        cells = [
            interval_text(measured.intervals[label, metric], _TITLES[metric][1])
            if (label, metric) in measured.intervals
            else ""
            for metric in metrics
        ]
        rows.append([label, *cells])
    return markdown_table(rows).splitlines()


def _compute(facts: CardFacts) -> list[str]:
    ranks = [rank for rank in facts.environment.get("ranks") or () if isinstance(rank, dict)]
    devices = dict.fromkeys(f"{rank.get('device')} {rank.get('name') or ''}".strip() for rank in ranks)
    total = entry(facts.end, "total_s")
    hours = None if total is None else total / 3600
    energy = facts.energy_kwh
    rows = [
        ("devices of the last start", ", ".join(devices) or None),
        ("ranks of the last start", facts.environment.get("world_size")),
        ("hours", None if hours is None else plain_number(hours)),
        ("energy of the GPUs (kWh)", None if energy is None else plain_number(energy)),
    ]
    note = "The energy is that of the GPUs of the first node, by NVML; processors, memory and cooling are not in it."
    if energy is None:
        why = "its driver gave no power" if facts.has_gpu_table else f"the run has no {GPU_TABLE}"
        note = f"The energy was not measured: {why}."
    return [*_table(rows), "", f"The hours are those of the whole run, pauses between its starts left out. {note}"]


def _limits(facts: CardFacts) -> list[str]:
    found = ["The values are of one training; another seed gives other values."]
    split = facts.split
    if split is not None and split.trained_on:
        found.append("Validation cases were trained on: the values do not hold for new cases.")
    if split is not None and split.unknown:
        found.append("It started from weights that do not say what they were trained on.")
    if not any(measured.dataset != VALIDATION for measured in facts.evaluations):
        found.append("It was not evaluated on data of another source: `fusionseg evaluate RUN --dataset FOLDER`.")
    if facts.best is not None:
        found.append("The best weights were chosen on the validation cases, so that their values are optimistic.")
    return [*(f"- {text}" for text in found), "", f"{AUTHOR} Known failures, groups of patients that are missing."]


def _version(facts: CardFacts) -> str | None:
    version, commit = facts.environment.get("fusionseg"), facts.environment.get("commit")
    return f"{version}, commit {commit}" if version and commit else version


def _start(facts: CardFacts) -> str:
    if not facts.config.get("init_from"):
        return "random"
    seen = facts.split.seen if facts.split is not None else ()
    images = {image for ancestor in seen for image in ancestor.images or ()}
    return f"those of another training, which saw {len(images)} images that are known"


def _intensity(setting: Any) -> str | None:
    if isinstance(setting, dict) and "mode" not in setting:  # by channel
        return "; ".join(f"{name}: {_settings(each)}" for name, each in setting.items())
    return _settings(setting)


def _settings(section: Any) -> str | None:
    if not isinstance(section, dict):
        return None if section is None else str(section)
    return ", ".join(f"{key} {value}" for key, value in section.items() if value is not None)


def _digest(images: Sequence[str]) -> str | None:
    """A digest of a set of images, of the digests of their voxels in alphabetic order."""
    return hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest() if images else None


def _times(values: Any, unit: str) -> str | None:
    return " x ".join(map(str, values)) + f" {unit}" if isinstance(values, list | tuple) else None
