"""Metrics of a configuration, built-in ones and those from outside, with one signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionseg.config.outside_part import takes
from fusionseg.config.parts.metric import MetricConfig

Metric = Callable[[Tensor, Tensor, int, Sequence[float]], list[float]]
"""(prediction (X, Y, Z), label (X, Y, Z), number of classes, voxel sizes in mm) -> a value per foreground class."""


class MetricError(ValueError):
    """The result of a metric is not one number for each foreground class."""


def build_metrics(chosen: Sequence[MetricConfig]) -> Mapping[str, Metric]:
    """Build the metrics of the `metrics` section; the keys are their names in records and tables."""
    return {config.shown_as: build_metric(config) for config in chosen}


def build_metric(config: MetricConfig) -> Metric:
    """Build a metric.

    A function is called with prediction and label, and with the keywords `num_classes` and `spacing_mm` if it has them.
    A class is created with `args`, and its object is called in the same way. An object of a MONAI metric class is
    called with one-hot masks (1, K, X, Y, Z), and with the keyword `spacing` if it accepts keywords.
    """
    part = config.part
    function: Any = part(**config.args) if inspect.isclass(part) else partial(part, **config.args)
    call = _call_monai if hasattr(function, "_compute_tensor") else _call_plain

    def metric(prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> list[float]:
        values = call(function, prediction, label, num_classes, spacing_mm)
        return _per_class(config.name, values, num_classes)

    return metric


def _call_plain(
    function: Callable[..., Any], prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]
) -> Any:
    known = {"num_classes": num_classes, "spacing_mm": tuple(spacing_mm)}
    return function(prediction, label, **{key: value for key, value in known.items() if takes(function, key)})


def _call_monai(metric: Any, prediction: Tensor, label: Tensor, num_classes: int, spacing_mm: Sequence[float]) -> Any:
    masks = [F.one_hot(mask.long(), num_classes).movedim(-1, 0)[None].float() for mask in (prediction, label)]
    parameters = inspect.signature(metric._compute_tensor).parameters.values()
    keywords = {"spacing": [float(size) for size in spacing_mm]}
    takes_keywords = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    values = metric(*masks, **(keywords if takes_keywords else {}))
    metric.reset()  # MONAI collects the values of all cases for a mean, which is not used here
    values = torch.as_tensor(values).flatten()
    return values[1:] if len(values) == num_classes else values  # without the background


def _per_class(name: str, values: Any, num_classes: int) -> list[float]:
    """Check the result of a metric and convert it to a list.

    Raises:
        MetricError: the result is not one number for each foreground class.
    """
    listed = values.tolist() if isinstance(values, Tensor) else values
    numbers = list(listed) if isinstance(listed, list | tuple) else [listed]
    if len(numbers) != num_classes - 1 or not all(isinstance(value, int | float) for value in numbers):
        raise MetricError(
            f"{name} gives {values!r} (expected {num_classes - 1} numbers, one for each foreground class)"
        )
    return [float(value) if isfinite(value) else nan for value in numbers]
