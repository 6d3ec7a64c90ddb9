"""The measurement of one predicted case: a score for each class or region."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.config.parts.metric import MetricConfig
from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.metrics.case_metrics import case_metrics, definitions_in_use
from fusionseg.metrics.class_names import check_class_names
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.definitions import DEFAULT_METRICS, DEFINITIONS, OWN_RULE
from fusionseg.metrics.lesions import Lesion
from fusionseg.metrics.outputs import OutputComparison
from fusionseg.metrics.structures import measure_structures, structure_definitions
from fusionseg.metrics.vessels import Branch
from fusionseg.utils.means import nanmean


@dataclass(frozen=True)
class Score:
    """The score of one class, or region, in one case. Ignored voxels have no part in it."""

    case: str
    label: str
    """Name of the class or region."""
    dice: float
    """nan if the class is neither in the mask nor in the label, or if it is not annotated."""
    hd95_mm: float
    """nan if the class is missing in the mask or in the label, or if it is not annotated."""
    voxels_true: int | None
    """Voxels of the class in the label; None if the case does not annotate it."""
    voxels_predicted: int
    """Voxels of the class in the mask."""
    trained_on: str = "no"
    """Whether a network was trained on the image: yes, no or unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The further metrics by name, those of the configuration last; nan where a class has no value."""
    voxels_ignored: int = 0
    """Voxels of the case that are marked as not annotated."""
    voxels_both: int = 0
    """Voxels of the class in the mask and in the label."""
    lesions: tuple[Lesion, ...] = ()
    """The lesions of a class that `evaluate.lesions` names; those of the label first."""
    branches: tuple[Branch, ...] = ()
    """The branches of the label of a class that `evaluate.vessels` names."""

    @property
    def is_annotated(self) -> bool:
        """False if the case does not annotate the class."""
        return self.voxels_true is not None

    def to_row(self) -> dict[str, Any]:
        """The row of the table of cases: the fields, with each further metric as a field of its own."""
        row = asdict(replace(self, lesions=(), branches=()))  # they have tables of their own
        for name in ("voxels_both", "lesions", "branches"):
            row.pop(name)
        metrics, ignored = row.pop("metrics"), row.pop("voxels_ignored")
        return {**row, **metrics, "annotated": "yes" if self.is_annotated else "no", "voxels_ignored": ignored}


@dataclass(frozen=True)
class PredictedCase:
    """A case with its prediction and its label."""

    name: str
    file: str
    """The label file, for messages."""
    prediction: NDArray[np.uint8] | NDArray[np.bool_]
    """Class indices (X, Y, Z), or with sigmoid outputs a mask of each, (R, X, Y, Z)."""
    label: NDArray[np.uint8]
    """Class indices (X, Y, Z), `IGNORE` without annotation."""
    annotated: NDArray[np.bool_]
    """(R,), the outputs that the case annotates."""
    spacing_mm: tuple[float, ...]


def further_metrics(metrics: Sequence[MetricConfig]) -> list[MetricConfig]:
    """The metrics of a configuration that an evaluation does not compute anyway.

    A metric of the user's that has the name of a default one is shown in its place.

    Args:
        metrics: the section `metrics`.
    """
    return [one for one in metrics if one.name not in DEFAULT_METRICS or one.shown_as != one.name or one.args]


def metric_definitions(settings: EvaluateConfig, metrics: Sequence[MetricConfig]) -> dict[str, dict[str, Any]]:
    """The definition of each metric of an evaluation as plain values, for its summary.

    Args:
        settings: the section `evaluate`.
        metrics: the section `metrics`.
    """
    found = {**definitions_in_use(settings), **structure_definitions(settings)}
    for metric in further_metrics(metrics):
        built_in = DEFINITIONS.get(metric.name)
        found[metric.shown_as] = (
            built_in.to_json(metric.args)
            if built_in is not None
            else {
                "text": f"the metric {metric.name} of the configuration",
                "unit": "",
                "higher_is_better": None,
                "absent": OWN_RULE,
                "source": metric.version or "",
                "parameters": metric.args,
            }
        )
    return found


class CaseMeasurer:
    """Computes the scores of predicted cases: the default metrics, those of lesions and vessels, and those of the
    configuration."""

    def __init__(
        self, scheme: LabelScheme, settings: EvaluateConfig | None = None, metrics: Sequence[MetricConfig] = ()
    ) -> None:
        """Args:
        scheme: the outputs of the network.
        settings: the section `evaluate`; None for its defaults.
        metrics: the section `metrics`, see `further_metrics`.

        Raises:
            UserError: the section `evaluate` names a class that the scheme does not have.
        """
        self.scheme = scheme
        self.settings = settings or EvaluateConfig()
        check_class_names(self.settings, scheme.output_names)
        self._configured = tuple(metrics)
        self._metrics = build_metrics(further_metrics(metrics))

    def __reduce__(self) -> tuple[Any, ...]:  # the built metrics may be anything; a worker builds its own
        return CaseMeasurer, (self.scheme, self.settings, self._configured)

    def __call__(self, case: PredictedCase) -> list[Score]:
        """Score a case: one score for each foreground class, or region.

        Raises:
            CaseError: a metric of the configuration fails on this case.
        """
        prediction, label = torch.from_numpy(case.prediction), torch.from_numpy(case.label)
        compared = OutputComparison(prediction, label, self.scheme, case.annotated)
        structures = measure_structures(compared, case.spacing_mm, self.settings)
        values = case_metrics(compared, case.spacing_mm, self.settings)
        values = [{**of_output, **each.metrics} for of_output, each in zip(values, structures, strict=True)]
        for name in self._metrics:
            measured = self._measure(name, compared, case)
            values = [{**of_output, name: value} for of_output, value in zip(values, measured, strict=True)]
        counts = compared.counts
        return [
            Score(
                case.name,
                name,
                of_output.pop("dice"),
                of_output.pop("hd95_mm"),
                counts.true[k] if case.annotated[k] else None,
                counts.predicted[k],
                metrics=of_output,
                voxels_ignored=compared.ignored,
                voxels_both=counts.both[k],
                lesions=structures[k].lesions,
                branches=structures[k].branches,
            )
            for k, (name, of_output) in enumerate(zip(self.scheme.output_names, values, strict=True))
        ]

    def _measure(self, name: str, compared: OutputComparison, case: PredictedCase) -> list[float]:
        """Apply a metric of the configuration, which may be the user's own.

        Raises:
            CaseError: it raises an exception.
        """
        try:
            return compared.measure(self._metrics[name], case.spacing_mm)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"the metric {name} raised {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            remedy = "let it return nan for such a case, or remove it from `metrics`"
            raise CaseError([Problem("error", case.name, case.file, "metric", text, remedy)]) from error


def ranked_cases(scores: Sequence[Score]) -> list[tuple[str, float]]:
    """Sort the cases by their mean Dice over the labels, the worst first; a case without a Dice is left out."""
    means = {name: nanmean([s.dice for s in scores if s.case == name]) for name in sorted({s.case for s in scores})}
    known = ((name, dice) for name, dice in means.items() if not isnan(dice))
    return sorted(known, key=lambda pair: pair[1])
