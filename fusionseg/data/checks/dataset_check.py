"""`fusionseg check`: every problem of a data set, found before the training and none fatal to the report.

`check_dataset` reads all files in parallel (`fusionseg.data.checks.case_check` has the checks of one case) and then
looks at the cases together. Codes of errors: missing, unreadable, truncated, corrupt, trailing-data, header,
dimensions, spacing, affine, channels, channel-shape, channel-affine, label-shape, label-affine, non-finite,
constant, label-fraction, label-value, memory, crashed, dataset. Of warnings: label-affine and channel-affine
(slight), label-order and channel-order, label-float, empty-foreground, constant-channel, class-absent,
small-volume, spacing-outlier, orientation, duplicate, qform-sform, pixdim, shear, units, unlabelled, left-out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from fusionseg.data.checks.case_check import check_case
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.ignored_entries import unlabelled_cases
from fusionseg.data.formats.problems import CaseFacts, Problem
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.parallel import map_cases

__all__ = ["CheckReport", "Problem", "check_dataset"]

SPACING_OUTLIER = 3.0
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found, for people (`to_text`) and programs (`to_json`).

    Args:
        summary: facts in JSON's types: cases, shape, spacing_mm, orientations, dtypes, labels, intensity.
    """

    dataset: str
    cases: int
    problems: tuple[Problem, ...]
    summary: dict[str, Any]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What has to be corrected before training."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What deserves a look."""
        return tuple(p for p in self.problems if p.severity == "warning")

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "dataset": self.dataset,
            "cases": self.cases,
            "errors": [asdict(p) for p in self.errors],
            "warnings": [asdict(p) for p in self.warnings],
            "summary": self.summary,
        }

    def to_text(self) -> str:
        """The report as plain text: all errors, all warnings, the facts, the verdict."""
        lines = []
        for title, problems in (("Errors", self.errors), ("Warnings", self.warnings)):
            if problems:
                lines += [f"{title} ({len(problems)})"]
                for p in problems:
                    lines += [f"  [{p.code}] {p.case + ': ' if p.case else ''}{p.message}"]
                    lines += [f"      {p.file}", f"      -> {p.remedy}"]
                lines.append("")
        lines += [*_summary_lines(self.summary), ""]
        lines.append(
            f"{self.dataset}: {_count(self.cases, 'case')}, {_count(len(self.errors), 'error')}, "
            f"{_count(len(self.warnings), 'warning')}"
        )
        return "\n".join(lines)


def check_dataset(
    dataset: Dataset,
    *,
    patch: Sequence[int] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every file of a data set to its last byte, and report all that is wrong.

    Args:
        dataset: opened with `require_files=False`, so that missing files come into the report too.
        patch: training patch in voxels; smaller volumes are then warned about.
        workers: processes; by default one per CPU that this job may use. 1 stays in this process.
        progress: called with (cases done, all cases).
    """
    if patch is not None and len(patch) != 3:
        raise ValueError(f"patch={tuple(patch)}: three numbers are needed")
    cases = dataset.training + dataset.testing
    workers = max(1, min(workers or available_cpus(), len(cases)))
    check = partial(check_case, num_classes=dataset.num_classes, channels=len(dataset.channels), patch=patch)
    facts = _check_cases(cases, check, workers, progress)
    root = str(dataset.root)
    problems = [Problem("error", "", root, "dataset", *_halves(fault)) for fault in dataset.faults]
    problems += [Problem("warning", "", root, "left-out", *_halves(note)) for note in dataset.notes]
    problems += [problem for case in facts for problem in case.problems]
    problems += _problems_between(dataset, cases, facts)
    problems.sort(key=lambda problem: problem.severity)  # errors first, otherwise in the cases' order
    return CheckReport(dataset.name, len(cases), tuple(problems), _summarise(dataset, facts))


def _check_cases(
    cases: Sequence[Case],
    check: Callable[[Case], CaseFacts],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseFacts]:
    """Facts of every case, in order. A worker that dies costs its own case at most."""
    done: dict[int, CaseFacts] = {}
    # Numbered, since names are not unique in a data set with that very fault.
    items = list(enumerate(cases))
    for (index, case), outcome in map_cases(partial(_numbered, check), items, workers=workers):
        if isinstance(outcome, Exception):
            facts = CaseFacts(case.name)
            facts.add(
                "error",
                case.images[0],
                "crashed",
                str(outcome),
                "look whether memory ran out (dmesg, the job's limit), and at the files of this case",
            )
            outcome = facts
        done[index] = outcome
        if progress is not None:
            progress(len(done), len(cases))
    return [done[index] for index in range(len(cases))]


def _numbered(check: Callable[[Case], CaseFacts], item: tuple[int, Case]) -> CaseFacts:
    return check(item[1])


def _problems_between(dataset: Dataset, cases: Sequence[Case], facts: Sequence[CaseFacts]) -> list[Problem]:
    """What only shows when the cases are seen together."""
    problems = []

    def warn(case: str, file: object, code: str, message: str, remedy: str) -> None:
        problems.append(Problem("warning", case, str(file), code, message, remedy))

    spacings = [f.spacing_mm for f in facts if f.spacing_mm is not None]
    median = np.median(spacings, axis=0) if spacings else np.ones(3)
    seen: dict[str, tuple[str, str]] = {}
    for case, fact in zip(cases, facts, strict=True):
        ratio = np.asarray(fact.spacing_mm) / median if fact.spacing_mm is not None else np.ones(3)
        if np.maximum(ratio, 1 / ratio).max() > SPACING_OUTLIER:
            warn(
                case.name,
                case.images[0],
                "spacing-outlier",
                f"has a spacing of {_mm(fact.spacing_mm or ())}, the median of the data set is {_mm(median)}",
                "check the header against the scanner's data, or take the case out",
            )
        name, twin = seen.setdefault(fact.digest or case.name, (case.name, str(case.images[0])))
        if name != case.name:
            warn(
                case.name,
                case.images[0],
                "duplicate",
                f"has the same voxels as {twin} ({name})",
                "remove one of them: in different folds they make the validation too good",
            )
    orientations = defaultdict(list)
    for fact in facts:
        if fact.orientation:
            orientations[fact.orientation].append(fact.name)
    if len(orientations) > 1:
        groups = sorted(orientations.items(), key=lambda group: -len(group[1]))
        listed = "; ".join(
            f"{axes}: {_count(len(names), 'case')} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for axes, names in groups
        )
        warn(
            "",
            dataset.root,
            "orientation",
            f"the volumes are stored in different orientations: {listed}",
            "set data.orientation (RAS), so that the preparation turns them alike",
        )
    labelled = [case for case in dataset.training if case.label is not None]
    if labelled:
        for value, name in dataset.labels.items():
            if value and not any(fact.label_voxels.get(value) for fact in facts):
                warn(
                    "",
                    dataset.root,
                    "class-absent",
                    f"class {value} {name} is in no label file",
                    "check the labels; take the name out if the class does not exist",
                )
        for note in unlabelled_cases(dataset.training):
            warn("", dataset.root, "unlabelled", *_halves(note))
    return problems


def _summarise(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    """The data set in numbers; in JSON's types only."""
    intensity = []
    for channel, name in enumerate(dataset.channels):
        parts = [fact.intensity[channel] for fact in facts if channel in fact.intensity]
        if parts:
            sample = np.concatenate([part[2] for part in parts])
            levels = {f"p{p:g}": float(np.percentile(sample, p)) for p in PERCENTILES}
            lowest, highest = min(part[0] for part in parts), max(part[1] for part in parts)
            intensity.append({"channel": name, "min": lowest, **levels, "max": highest})
    return {
        "cases": {
            "training": len(dataset.training),
            "labelled": sum(case.label is not None for case in dataset.training),
            "testing": len(dataset.testing),
        },
        "shape": _spread([fact.shape for fact in facts if fact.shape is not None]),
        "spacing_mm": _spread([fact.spacing_mm for fact in facts if fact.spacing_mm is not None]),
        "orientations": dict(Counter(fact.orientation for fact in facts if fact.orientation).most_common()),
        "image_dtypes": dict(Counter(dtype for fact in facts for dtype in fact.image_dtypes).most_common()),
        "label_dtypes": dict(Counter(fact.label_dtype for fact in facts if fact.label_dtype).most_common()),
        "labels": [
            {
                "value": value,
                "name": name,
                "voxels": sum(fact.label_voxels.get(value, 0) for fact in facts),
                "cases": sum(fact.label_voxels.get(value, 0) > 0 for fact in facts),
            }
            for value, name in dataset.labels.items()
        ],
        "intensity": intensity,
    }


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Smallest, median and largest per axis."""
    if not rows:
        return {}
    table = np.asarray(rows)
    levels = {"min": table.min(0), "median": np.median(table, 0), "max": table.max(0)}
    return {level: values.tolist() for level, values in levels.items()}


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    def counts(group: dict[str, int]) -> str:
        return ", ".join(f"{name} {n}" for name, n in group.items()) or "-"

    lines = ["Facts", f"  cases         {counts(summary['cases'])}"]
    for key, title in (("shape", "shape"), ("spacing_mm", "spacing (mm)")):
        spread = [f"{level} {'x'.join(f'{v:.4g}' for v in values)}" for level, values in summary[key].items()]
        lines.append(f"  {title:<13} {', '.join(spread) or '-'}")
    for key in ("orientations", "image_dtypes", "label_dtypes"):
        lines.append(f"  {key.replace('_', ' '):<13} {counts(summary[key])}")
    for entry in summary["labels"]:
        lines.append(
            f"  label {entry['value']:<7} {entry['name']}: {entry['voxels']} voxels in {_count(entry['cases'], 'case')}"
        )
    for entry in summary["intensity"]:
        levels = ", ".join(f"{key} {value:.5g}" for key, value in entry.items() if key != "channel")
        lines.append(f"  intensity     {entry['channel']}: {levels}")
    return lines


def _halves(fault: str) -> tuple[str, str]:
    """Message and remedy of a fault, which carries them as "what is wrong; what to do"."""
    message, _, remedy = fault.rpartition("; ")
    return message, remedy


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mm(spacing: Sequence[float] | np.ndarray[Any, np.dtype[Any]]) -> str:
    return "x".join(f"{s:.3g}" for s in spacing) + " mm"
