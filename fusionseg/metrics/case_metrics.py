"""The metrics that every evaluation of a segmentation has, for one case, and their definitions with the settings."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, prod
from typing import Any

from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.metrics.definitions import DEFAULT_METRICS, DEFINITIONS
from fusionseg.metrics.outputs import OutputComparison
from fusionseg.metrics.surface import SurfaceComparison


def case_metrics(
    compared: OutputComparison, spacing_mm: Sequence[float], settings: EvaluateConfig
) -> list[dict[str, float]]:
    """Compute the metrics of one case.

    Args:
        compared: the prediction and the label.
        spacing_mm: size of a voxel along each axis, in mm.
        settings: the section `evaluate`.

    Returns:
        For each output the value of each of `DEFAULT_METRICS`; nan where it has none, see `DEFINITIONS`, and for an
        output that the case does not annotate.
    """
    voxel_ml = prod(spacing_mm) / 1000
    results = []
    masks = compared.cut_masks()
    for counts, known in zip(compared.counts.of_each(), compared.annotated, strict=True):
        predicted, true = next(masks)
        if not known:
            results.append(dict.fromkeys(DEFAULT_METRICS, nan))
            continue
        surfaces = SurfaceComparison(predicted, true, spacing_mm)
        values = {
            "dice": counts.dice,
            "iou": counts.iou,
            "sensitivity": counts.sensitivity,
            "precision": counts.precision,
            "hd95_mm": surfaces.hd95_mm,
            "assd_mm": surfaces.assd_mm,
            "nsd": surfaces.nsd(settings.tolerance_mm),
            "volume_ml_error": counts.volume_ml_error(voxel_ml),
            "volume_similarity": counts.volume_similarity,
        }
        results.append({name: values[name] for name in DEFAULT_METRICS})
    return results


def definitions_in_use(settings: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """The definition of each metric of `case_metrics` as plain values, with the settings that it depends on.

    Args:
        settings: the section `evaluate`.
    """
    parameters = {"nsd": {"tolerance_mm": settings.tolerance_mm}}
    return {name: DEFINITIONS[name].to_json(parameters.get(name)) for name in DEFAULT_METRICS}
