"""The labels of a data set in the report of `fusionseg check`: voxels of each class and region, ignored voxels, cases
that annotate only some classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionseg.data.checks.case_check import CaseReport
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.labels.scheme import IGNORE, LabelScheme, ranges
from fusionseg.utils.tables import counted


def summarise_labels(dataset: Dataset, reports: Sequence[CaseReport]) -> dict[str, Any]:
    """Count the voxels of the labels, in JSON's types.

    Args:
        dataset: the data set.
        reports: of its cases.

    Returns:
        `labels`; and `regions`, `ignored` and `annotated` where the data set has them.
    """
    scheme = dataset.scheme
    summary: dict[str, Any] = {"labels": [_label(scheme, index, reports) for index in range(scheme.num_classes)]}
    if scheme.is_regions:
        summary["regions"] = [
            {"name": region.name, **_count_voxels(region.classes, reports)} for region in scheme.regions
        ]
    if scheme.ignore is not None:
        total = sum(sum(report.label_voxels.values()) for report in reports)
        counts = _count_voxels([IGNORE], reports)
        summary["ignored"] = {"value": scheme.ignore, **counts, "share": counts["voxels"] / max(1, total)}
    labelled = [case for case in dataset.training if case.label is not None]
    if any(case.annotated is not None for case in labelled):
        summary["annotated"] = {
            name: sum(case.annotated is None or name in case.annotated for case in labelled)
            for name in scheme.output_names
        }
    return summary


def label_lines(summary: dict[str, Any]) -> list[str]:
    """The lines of the report about labels.

    Args:
        summary: with the entries of `summarise_labels`.
    """
    lines = [
        f"  label {ranges(label.get('values', [label['value']])):<7} {label['name']}: {_voxels(label)}"
        for label in summary["labels"]
    ]
    lines += [f"  region        {region['name']}: {_voxels(region)}" for region in summary.get("regions", [])]
    if ignored := summary.get("ignored"):
        lines.append(f"  ignored       value {ignored['value']}: {_voxels(ignored)}, {ignored['share']:.1%} of all")
    for name, cases in summary.get("annotated", {}).items():
        lines.append(f"  annotated     {name}: in {cases} of {summary['cases']['labelled']} labelled training cases")
    return lines


def _label(scheme: LabelScheme, index: int, reports: Sequence[CaseReport]) -> dict[str, Any]:
    label = scheme.classes[index]
    values = {} if label.values == (index,) else {"values": list(label.values)}
    return {"value": label.values[0], **values, "name": label.name, **_count_voxels([index], reports)}


def _count_voxels(classes: Sequence[int], reports: Sequence[CaseReport]) -> dict[str, int]:
    counts = [sum(report.label_voxels.get(index, 0) for index in classes) for report in reports]
    return {"voxels": sum(counts), "cases": sum(count > 0 for count in counts)}


def _voxels(counts: dict[str, Any]) -> str:
    return f"{counted(counts['voxels'], 'voxel')} in {counted(counts['cases'], 'case')}"
