"""Paired comparison of two rows over the cases that both scored: Wilcoxon's test, Holm's correction, effect size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

from fusionseg.inference.statistics.intervals import LEVEL, Interval, mean_interval
from fusionseg.inference.statistics.resampling import bounds, resample_counts

_DIGITS = 12
"""Decimals of a difference. Without rounding, equal differences of decimal numbers would not be ties."""


@dataclass(frozen=True)
class PairedTest:
    """The comparison of a row with a baseline for one metric, over the cases that have a value in both."""

    difference: Interval
    """Mean of the row's value minus the baseline's, with its interval over the cases."""
    median: float
    """Median of the differences; nan without a pair."""
    higher: int
    """Cases in which the row has the higher value."""
    lower: int
    """Cases in which the row has the lower value."""
    p: float
    """Two-sided p-value of the Wilcoxon signed-rank test; nan with fewer than two pairs."""
    effect: float
    """Matched-pairs rank-biserial correlation, -1 to 1; above 0 if the row has the higher values."""
    effect_low: float
    effect_high: float

    @property
    def pairs(self) -> int:
        return self.difference.n


def paired_test(
    row: Mapping[str, float], baseline: Mapping[str, float], level: float = LEVEL, seed: int = 0
) -> PairedTest:
    """Compare two rows case by case.

    Args:
        row: one value for each case; nan where there is none. A case without a value in either row is left out.
        baseline: the values of the baseline.
        level: the confidence of the intervals.
        seed: key of the resamples.

    Source: Wilcoxon, Individual Comparisons by Ranking Methods, 1945; pairs without a difference are left out of the
    ranks. Effect size: Kerby, The Simple Difference Formula, 2014, with the percentile bootstrap over the cases.
    """
    pairs = [(row[case], baseline[case]) for case in row if case in baseline]
    known = np.array([[ours, theirs] for ours, theirs in pairs if not (isnan(ours) or isnan(theirs))]).reshape(-1, 2)
    differences = np.round(known[:, 0] - known[:, 1], _DIGITS)
    effect, low, high = rank_biserial(differences, level, seed)
    return PairedTest(
        difference=mean_interval(differences, level, seed),
        median=float(np.median(differences)) if len(differences) else nan,
        higher=int((differences > 0).sum()),
        lower=int((differences < 0).sum()),
        p=_wilcoxon(differences),
        effect=effect,
        effect_low=low,
        effect_high=high,
    )


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    if len(differences) < 2:
        return nan
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon  # scipy.stats is slow to import

    return float(wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue)


def rank_biserial(differences: NDArray[np.float64], level: float = LEVEL, seed: int = 0) -> tuple[float, float, float]:
    """The matched-pairs rank-biserial correlation with its percentile bootstrap interval.

    It is the sum of the ranks of the positive differences minus that of the negative ones, over the sum of all ranks.

    Args:
        differences: one for each case, without nan.
        level: the confidence of the interval.
        seed: key of the resamples.

    Returns:
        The correlation, and the bounds of the interval; nan without a difference or, for the bounds, with fewer than
        two.
    """
    if len(differences) == 0:
        return nan, nan, nan
    order = np.argsort(np.abs(differences), kind="stable")
    ordered = differences[order]
    signs = np.sign(ordered)
    _, groups = np.unique(np.abs(ordered), return_inverse=True)
    effect = float(_biserial(np.ones((1, len(ordered))), signs, groups)[0])
    if len(differences) < 2:
        return effect, nan, nan
    blocks = [_biserial(counts[:, order], signs, groups) for counts in resample_counts(len(ordered), seed)]
    low, high = bounds(np.concatenate(blocks), level)
    return effect, float(low), float(high)


def _biserial(counts: NDArray[np.float64], signs: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """The correlation of each resample, (B,).

    Args:
        counts: number of times that a resample has each difference, (B, n), sorted by absolute value.
        signs: sign of each difference, (n,).
        groups: index of the group of equal absolute values of each difference, (n,).
    """
    weights = counts * (signs != 0)  # pairs without a difference have no rank
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.add.reduceat(weights, starts, axis=1)
    ranks = (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, groups]  # ties have the mean of their ranks
    total = (weights * ranks).sum(axis=1)
    signed = (weights * ranks * signs).sum(axis=1)
    return np.divide(signed, total, out=np.zeros_like(total), where=total > 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).

    Args:
        p_values: of the tests of one family; nan where a test could not be made, which then does not count.

    Returns:
        The adjusted p-values, in the same order.
    """
    adjusted = [nan] * len(p_values)
    ordered = sorted((p, index) for index, p in enumerate(p_values) if not isnan(p))
    largest = 0.0
    for place, (p, index) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - place)))
        adjusted[index] = largest
    return adjusted
