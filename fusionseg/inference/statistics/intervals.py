"""Confidence intervals of means over cases, seeds or folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.inference.statistics.resampling import bounds, resample_counts

LEVEL = 0.95
"""Confidence of the intervals."""
MIN_BOOTSTRAP = 10
"""Fewest values for the bootstrap. Resamples of fewer values take too few different means."""

BOOTSTRAP_T, PERCENTILE, STUDENT_T, NO_SPREAD, NONE = "bootstrap-t", "percentile", "student-t", "no spread", "none"
METHODS = {
    BOOTSTRAP_T: "bootstrap-t over the values (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 12)",
    PERCENTILE: "percentile bootstrap, as too many resamples have no spread for the bootstrap-t",
    STUDENT_T: f"Student's t, for fewer than {MIN_BOOTSTRAP} values",
    NO_SPREAD: "all values are equal",
    NONE: "one value, or none, has no interval",
}
"""Names of the methods, with their descriptions."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    """nan without a value."""
    low: float
    """nan with fewer than two values."""
    high: float
    """nan with fewer than two values."""
    n: int
    """Number of values that are known."""
    method: str
    """A key of `METHODS`."""

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; nan stays nan."""
        return asdict(self)


def mean_interval(values: Sequence[float] | NDArray[np.floating[Any]], level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of independent values and its confidence interval.

    Ten values or more take the bootstrap-t: the standard error of each resample scales its deviation, so that the
    interval of skewed values, such as Dice near 1, holds the true mean as often as it says. The percentile bootstrap
    does so less often for 30 cases. Fewer values take Student's t. A bootstrap interval never leaves the range of the
    values. No interval can know of rare failures that are not among the values.

    Args:
        values: one value for each case; nan where there is none. Repeated measurements of a case, such as those of
            several seeds, must be averaged first, because they are not independent.
        level: the confidence.
        seed: key of the resamples. The same values and the same seed give the same interval.

    Returns:
        The interval over the known values.
    """
    found = np.asarray(values, np.float64)
    known = found[~np.isnan(found)]
    count = len(known)
    if count == 0:
        return Interval(nan, nan, nan, 0, NONE)
    mean = float(known.mean())
    if count == 1:
        return Interval(mean, nan, nan, 1, NONE)
    if known.min() == known.max():
        value = float(known[0])
        return Interval(value, value, value, count, NO_SPREAD)
    if count < MIN_BOOTSTRAP:
        return _student_interval(known, level)
    low, high, is_studentised = bootstrap_intervals(known[:, None], level, seed)
    return Interval(mean, float(low[0]), float(high[0]), count, BOOTSTRAP_T if is_studentised[0] else PERCENTILE)


def bootstrap_intervals(
    columns: NDArray[np.float64], level: float = LEVEL, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Bootstrap-t intervals of the means of many columns, which share their resamples.

    A resample with equal values has no standard error. If such resamples decide about a bound, the column takes the
    percentile interval instead.

    Args:
        columns: values without nan, (n, k), n >= 2.
        level: the confidence.
        seed: key of the resamples.

    Returns:
        Lower bounds (k,), upper bounds (k,), and whether the bounds are those of the bootstrap-t (k,).
    """
    count = len(columns)
    means = columns.mean(axis=0)
    centred = columns - means  # else the difference of the two moments below would lose digits
    errors = columns.std(axis=0, ddof=1) / sqrt(count)
    # Rounding gives a resample of equal values a variance of this size instead of 0.
    smallest = (1e-7 * errors) ** 2
    deviations, ratios = [], []
    for counts in resample_counts(count, seed):
        first, second = counts @ centred / count, counts @ centred**2 / count
        squared_errors = (second - first**2) / (count - 1)
        usable = squared_errors > smallest
        deviations.append(first)
        ratios.append(
            np.where(usable, first / np.sqrt(np.where(usable, squared_errors, 1)), np.copysign(np.inf, first))
        )
    lower_ratio, upper_ratio = bounds(np.concatenate(ratios), level)
    is_studentised = np.isfinite(lower_ratio) & np.isfinite(upper_ratio)
    lower_mean, upper_mean = bounds(np.concatenate(deviations), level)
    low = means + np.where(is_studentised, -np.where(is_studentised, upper_ratio, 0) * errors, lower_mean)
    high = means + np.where(is_studentised, -np.where(is_studentised, lower_ratio, 0) * errors, upper_mean)
    return np.maximum(low, columns.min(axis=0)), np.minimum(high, columns.max(axis=0)), is_studentised


def _student_interval(known: NDArray[np.float64], level: float) -> Interval:
    from scipy.special import stdtrit  # scipy is slow to import

    mean, error = float(known.mean()), float(known.std(ddof=1)) / sqrt(len(known))
    half_width = float(stdtrit(len(known) - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half_width, mean + half_width, len(known), STUDENT_T)
