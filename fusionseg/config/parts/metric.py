"""The entries of `metrics`: metrics of a segmentation beside the default ones."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from fusionseg.config.outside_part import name_to_section
from fusionseg.config.parts.named_part import NamedPart
from fusionseg.config.registry import metrics


class MetricConfig(NamedPart):
    """A metric that compares a predicted and a true mask, for each foreground class.

    It is a built-in one, or one from outside by its dotted path, such as monai.metrics:SurfaceDiceMetric.
    """

    registry = metrics
    supplied: ClassVar[tuple[str, ...]] = ("num_classes", "spacing_mm")

    title: str | None = None
    """Name in records and tables; null is the name of the function."""

    def positional_arguments(self) -> int:
        """2 for a function, the prediction and the label; 0 for the constructor of a class."""
        return 0 if inspect.isclass(self.part) else 2

    @property
    def shown_as(self) -> str:
        """The name in records and tables."""
        return self.title or self.name.rpartition(":")[2]


MetricPart = Annotated[MetricConfig, BeforeValidator(name_to_section)]


def title_problems(chosen: Sequence[MetricConfig]) -> list[str]:
    """List the metrics whose name in records and tables is taken."""
    titles = [metric.shown_as for metric in chosen]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    columns = {"case", "label", "dice", "hd95_mm", "voxels_true", "voxels_predicted", "voxels_ignored", "trained_on"}
    columns |= {"annotated", "micro"}  # entries of summary.json, beside the metrics
    taken = [metric.shown_as for metric in chosen if metric.shown_as in columns and metric.name != metric.shown_as]
    return [
        *(f"metrics: several are called {title}; give each a title of its own" for title in twice),
        *(
            f"metrics: {title} is a column or an entry of every evaluation; remove it, or give it another title"
            for title in taken
        ),
    ]
