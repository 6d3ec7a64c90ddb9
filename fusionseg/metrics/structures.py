"""Metrics of the classes that the section `evaluate` names: lesions one by one, and branches of vessels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.metrics.definitions import DEFINITIONS, LESION_METRICS, VESSEL_METRICS
from fusionseg.metrics.lesions import Lesion, detect_lesions
from fusionseg.metrics.outputs import OutputComparison
from fusionseg.metrics.vessels import MIN_COVERED, Branch, VesselComparison, share_found


@dataclass(frozen=True)
class Structures:
    """The lesions and the branches of one class, or region, in one case."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of `requested_metrics`; nan without a value, and for a class that the section does not name."""
    lesions: tuple[Lesion, ...] = ()
    """Those of the label first; their centres are voxel indices of the whole volume."""
    branches: tuple[Branch, ...] = ()


def requested_metrics(settings: EvaluateConfig) -> tuple[str, ...]:
    """Names of the metrics that an evaluation has because the section names classes for them.

    Args:
        settings: the section `evaluate`.
    """
    return (*(LESION_METRICS if settings.lesions else ()), *(VESSEL_METRICS if settings.vessels else ()))


def structure_definitions(settings: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """The definition of each metric of `requested_metrics` as plain values, with its classes and settings.

    Args:
        settings: the section `evaluate`.
    """
    lesions = {"classes": list(settings.lesions), "min_iou": settings.lesion_iou, "min_ml": settings.lesion_min_ml}
    branches: dict[str, Any] = {"classes": list(settings.vessels), "min_covered": MIN_COVERED}
    parameters: dict[str, dict[str, Any]] = {
        **dict.fromkeys(LESION_METRICS, lesions),
        "cl_dice": {"classes": list(settings.vessels)},
        "branches_found": branches,
        "thin_branches_found": {**branches, "calibre_mm": settings.calibre_mm},
        "thick_branches_found": {**branches, "calibre_mm": settings.calibre_mm},
    }
    return {name: DEFINITIONS[name].to_json(parameters[name]) for name in requested_metrics(settings)}


def measure_structures(
    compared: OutputComparison, spacing_mm: Sequence[float], settings: EvaluateConfig
) -> list[Structures]:
    """Detect lesions and branches in one case.

    Args:
        compared: the prediction and the label.
        spacing_mm: size of a voxel along each axis, in mm.
        settings: the section `evaluate`.

    Returns:
        One for each output.
    """
    without = Structures(dict.fromkeys(requested_metrics(settings), nan))
    names = compared.scheme.output_names
    if not {*settings.lesions, *settings.vessels} & set(names):
        return [without] * len(names)
    found = []
    for name, known, (box, predicted, true) in zip(names, compared.annotated, compared.boxed_masks(), strict=True):
        metrics = dict(without.metrics)
        lesions: tuple[Lesion, ...] = ()
        branches: tuple[Branch, ...] = ()
        if known and name in settings.lesions:
            of_lesions, lesions = _lesions(predicted, true, spacing_mm, settings, [side.start for side in box])
            metrics |= of_lesions
        if known and name in settings.vessels:
            of_vessels, branches = _vessels(predicted, true, spacing_mm, settings)
            metrics |= of_vessels
        found.append(Structures(metrics, lesions, branches))
    return found


def _lesions(
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    settings: EvaluateConfig,
    corner: Sequence[int],
) -> tuple[dict[str, float], tuple[Lesion, ...]]:
    """The metrics of lesions, and the lesions with centres in the whole volume.

    Args:
        predicted: cut mask (X, Y, Z).
        true: of the same shape.
        spacing_mm: size of a voxel along each axis, in mm.
        settings: the section `evaluate`.
        corner: index of the first voxel of the cut masks in the whole volume.
    """
    found = detect_lesions(predicted, true, spacing_mm, min_iou=settings.lesion_iou, min_ml=settings.lesion_min_ml)
    values = (found.sensitivity, float(found.false_positives), found.f1, found.mean_dice)
    moved = tuple(
        replace(one, centre=tuple(at + first for at, first in zip(one.centre, corner, strict=True)))
        for one in found.lesions
    )
    return dict(zip(LESION_METRICS, values, strict=True)), moved


def _vessels(
    predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float], settings: EvaluateConfig
) -> tuple[dict[str, float], tuple[Branch, ...]]:
    """The metrics of vessels, and their branches; for the arguments see `_lesions`."""
    compared = VesselComparison(predicted, true, spacing_mm)
    branches = compared.branches()
    thin = [branch for branch in branches if branch.diameter_mm < settings.calibre_mm]
    thick = [branch for branch in branches if branch.diameter_mm >= settings.calibre_mm]
    values = (compared.cl_dice, share_found(branches), share_found(thin), share_found(thick))
    return dict(zip(VESSEL_METRICS, values, strict=True)), tuple(branches)
