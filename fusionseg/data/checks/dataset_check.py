"""`fusionseg check`: find every problem of a data set before the training.

`check_dataset` reads all files in parallel (`fusionseg.data.checks.case_check` has the checks of one case) and then
compares the cases with each other. No problem ends the report.

Codes of errors: missing, unreadable, truncated, corrupt, trailing-data, header, dimensions, spacing, affine, channels,
channel-shape, channel-affine, label-shape, label-affine, non-finite, constant, label-fraction, label-value, memory,
crashed, dataset. Codes of warnings: label-affine and channel-affine (slight), label-order and channel-order,
label-float, empty-foreground, no-annotation, constant-channel, class-absent, small-volume, spacing-outlier,
orientation, duplicate, region-order, qform-sform, pixdim, shear, units, unlabelled, left-out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from fusionseg.data.checks.case_check import CaseReport, check_case
from fusionseg.data.checks.label_summary import label_lines, summarise_labels
from fusionseg.data.fingerprint.fingerprint import DamagedCase, Fingerprint
from fusionseg.data.fingerprint.kept import source_digest
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.ignored_entries import unlabelled_cases
from fusionseg.data.formats.problems import Problem
from fusionseg.data.labels.scheme import ranges
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.parallel import map_cases
from fusionseg.utils.tables import counted

__all__ = ["CheckReport", "Problem", "check_dataset"]

SPACING_OUTLIER = 3.0
"""A case gets a warning if its spacing along an axis differs from the median by more than this factor."""
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`, for people (`to_text`) and programs (`to_json`).

    Args:
        dataset: its name.
        cases: the number of cases.
        problems: errors first.
        summary: measurements in JSON's types: cases, shape, spacing_mm, orientations, dtypes, labels, intensity.
        fingerprint: of the training cases, if it was asked for.
    """

    dataset: str
    cases: int
    problems: tuple[Problem, ...]
    summary: dict[str, Any]
    fingerprint: Fingerprint | None = None

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that have to be corrected before a training."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that a training accepts, and that may be a mistake."""
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
        """The report as plain text: all errors, all warnings, the summary, the number of each."""
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
            f"{self.dataset}: {counted(self.cases, 'case')}, {counted(len(self.errors), 'error')}, "
            f"{counted(len(self.warnings), 'warning')}"
        )
        return "\n".join(lines)


def check_dataset(
    dataset: Dataset,
    *,
    patch: Sequence[int] | None = None,
    fingerprint: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every file of a data set to its last byte, and report all problems.

    Args:
        dataset: opened with `require_files=False`, so that the report has missing files too.
        patch: size of the training patch in voxels; smaller volumes get a warning.
        fingerprint: measure the training cases in the same reading.
        workers: number of processes; None is one for each CPU that this job may use. 1 uses this process.
        progress: called with (cases done, all cases).

    Raises:
        ValueError: `patch` does not have three numbers.
    """
    if patch is not None and len(patch) != 3:
        raise ValueError(f"patch: expected three numbers, got {tuple(patch)}")
    cases = dataset.training + dataset.testing
    workers = max(1, min(workers or available_cpus(), len(cases)))
    check = partial(
        check_case,
        scheme=dataset.scheme,
        channels=len(dataset.channels),
        readers=dataset.readers,
        patch=patch,
        measured=frozenset(case.name for case in dataset.training) if fingerprint else (),
    )
    reports = _check_cases(cases, check, workers, progress)
    root = str(dataset.root)
    problems = [Problem("error", "", root, "dataset", *_message_and_remedy(fault)) for fault in dataset.faults]
    problems += [Problem("warning", "", root, "left-out", *_message_and_remedy(note)) for note in dataset.notes]
    problems += [problem for case in reports for problem in case.problems]
    problems += _problems_between(dataset, cases, reports)
    problems.sort(key=lambda problem: problem.severity)  # errors first, each kind in the order of the cases
    return CheckReport(
        dataset.name,
        len(cases),
        tuple(problems),
        _summarise(dataset, reports),
        _fingerprint(dataset, reports[: len(dataset.training)]) if fingerprint else None,
    )


def _fingerprint(dataset: Dataset, reports: Sequence[CaseReport]) -> Fingerprint:
    """The fingerprint of the data set.

    Args:
        dataset: the data set.
        reports: of its training cases.
    """
    labelled = any(case.label is not None for case in dataset.training)
    return Fingerprint(
        dataset=dataset.name,
        channels=dataset.channels,
        outputs=dataset.scheme.output_names if labelled else (),
        is_regions=dataset.scheme.is_regions,
        cases=tuple(report.fingerprint for report in reports if report.fingerprint is not None),
        damaged=tuple(
            DamagedCase(report.name, tuple(map(str, report.errors))) for report in reports if report.fingerprint is None
        ),
        source=source_digest(dataset),
        previews={report.name: report.preview for report in reports if report.preview is not None},
    )


def _check_cases(
    cases: Sequence[Case],
    check: Callable[[Case], CaseReport],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseReport]:
    """Check every case.

    A worker process that dies costs the report of its own case at most.

    Returns:
        The reports, in the order of the cases.
    """
    done: dict[int, CaseReport] = {}
    # A case is known by its index, because names are not unique in a data set that has this fault.
    items = list(enumerate(cases))
    for (index, case), outcome in map_cases(partial(_check_indexed, check), items, workers=workers, modules=[__name__]):
        if isinstance(outcome, Exception):
            report = CaseReport(case.name)
            report.add(
                "error",
                case.images[0],
                "crashed",
                str(outcome),
                "check whether memory ran out (dmesg, the job's limit), and the files of this case",
            )
            outcome = report
        done[index] = outcome
        if progress is not None:
            progress(len(done), len(cases))
    return [done[index] for index in range(len(cases))]


def _check_indexed(check: Callable[[Case], CaseReport], item: tuple[int, Case]) -> CaseReport:
    return check(item[1])


def _problems_between(dataset: Dataset, cases: Sequence[Case], reports: Sequence[CaseReport]) -> list[Problem]:
    """Problems that only a comparison of the cases shows."""
    problems = []

    def warn(case: str, file: object, code: str, message: str, remedy: str) -> None:
        problems.append(Problem("warning", case, str(file), code, message, remedy))

    spacings = [report.spacing_mm for report in reports if report.spacing_mm is not None]
    median = np.median(spacings, axis=0) if spacings else np.ones(3)
    seen: dict[str, tuple[str, str]] = {}
    for case, report in zip(cases, reports, strict=True):
        ratio = np.asarray(report.spacing_mm) / median if report.spacing_mm is not None else np.ones(3)
        if np.maximum(ratio, 1 / ratio).max() > SPACING_OUTLIER:
            warn(
                case.name,
                case.images[0],
                "spacing-outlier",
                f"has a spacing of {_mm(report.spacing_mm or ())}, the median of the data set is {_mm(median)}",
                "compare the header with the scanner's data, or take the case out",
            )
        name, twin = seen.setdefault(report.digest or case.name, (case.name, str(case.images[0])))
        if name != case.name:
            warn(
                case.name,
                case.images[0],
                "duplicate",
                f"has the same voxels as {twin} ({name})",
                "remove one of them: in different folds they make the validation score too high",
            )
    orientations = defaultdict(list)
    for report in reports:
        if report.orientation:
            orientations[report.orientation].append(report.name)
    if len(orientations) > 1:
        groups = sorted(orientations.items(), key=lambda group: -len(group[1]))
        listed = "; ".join(
            f"{axes}: {counted(len(names), 'case')} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for axes, names in groups
        )
        warn(
            "",
            dataset.root,
            "orientation",
            f"the volumes are stored in different orientations: {listed}",
            "set data.orientation (RAS), so that the preparation turns them to one orientation",
        )
    labelled = [case for case in dataset.training if case.label is not None]
    if labelled:
        for index, label in enumerate(dataset.scheme.classes):
            if index and not any(report.label_voxels.get(index) for report in reports):
                warn(
                    "",
                    dataset.root,
                    "class-absent",
                    f"class {ranges(label.values)} {label.name} is in no label file",
                    "check the labels; take the name out if the class does not exist",
                )
        for name, other in dataset.scheme.repainted.items() if dataset.scheme.is_regions else ():
            warn(
                "",
                dataset.root,
                "region-order",
                f"a mask of class {name} is painted with the value of {other}, which is in other regions",
                "state other values or another order of the regions (regions_class_order)",
            )
        for note in unlabelled_cases(dataset.training):
            warn("", dataset.root, "unlabelled", *_message_and_remedy(note))
    return problems


def _summarise(dataset: Dataset, reports: Sequence[CaseReport]) -> dict[str, Any]:
    """Measurements of the data set, in JSON's types."""
    intensity = []
    for channel, name in enumerate(dataset.channels):
        parts = [report.intensity[channel] for report in reports if channel in report.intensity]
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
        "shape": _spread([report.shape for report in reports if report.shape is not None]),
        "spacing_mm": _spread([report.spacing_mm for report in reports if report.spacing_mm is not None]),
        "orientations": dict(Counter(report.orientation for report in reports if report.orientation).most_common()),
        "image_dtypes": dict(Counter(dtype for report in reports for dtype in report.image_dtypes).most_common()),
        "label_dtypes": dict(Counter(report.label_dtype for report in reports if report.label_dtype).most_common()),
        **summarise_labels(dataset, reports),
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

    lines = ["Summary", f"  cases         {counts(summary['cases'])}"]
    for key, title in (("shape", "shape"), ("spacing_mm", "spacing (mm)")):
        spread = [f"{level} {'x'.join(f'{v:.4g}' for v in values)}" for level, values in summary[key].items()]
        lines.append(f"  {title:<13} {', '.join(spread) or '-'}")
    for key in ("orientations", "image_dtypes", "label_dtypes"):
        lines.append(f"  {key.replace('_', ' '):<13} {counts(summary[key])}")
    lines += label_lines(summary)
    for channel in summary["intensity"]:
        levels = ", ".join(f"{key} {value:.5g}" for key, value in channel.items() if key != "channel")
        lines.append(f"  intensity     {channel['channel']}: {levels}")
    return lines


def _message_and_remedy(fault: str) -> tuple[str, str]:
    """Split a fault, "the message; the remedy", into the two."""
    message, _, remedy = fault.rpartition("; ")
    return message, remedy


def _mm(spacing: Sequence[float] | np.ndarray[Any, np.dtype[Any]]) -> str:
    return "x".join(f"{s:.3g}" for s in spacing) + " mm"
