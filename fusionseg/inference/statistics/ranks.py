"""Stability of the ranking of rows: the ranks that the rows have if the cases are drawn again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionseg.inference.statistics.intervals import LEVEL
from fusionseg.inference.statistics.resampling import bounds, resample_counts


@dataclass(frozen=True)
class RankStability:
    """The ranks of k rows over the resamples of the cases. Equal means share their ranks."""

    ranks: list[float]
    """Ranks by the means over all cases; 1 is the best."""
    low: list[float]
    high: list[float]
    """Interval of each rank."""
    first: list[float]
    """Share of the resamples in which a row is the best; rows with equal means share it."""
    tau: float
    """Mean of Kendall's tau-b between the ranking of a resample and that of all cases; nan for one row."""
    tau_low: float
    """Lower bound of tau over the resamples."""
    cases: int
    """Number of cases, which all rows have."""


def rank_stability(
    values: NDArray[np.float64], *, higher_is_better: bool, level: float = LEVEL, seed: int = 0
) -> RankStability:
    """Resample the cases, and rank the rows by their means each time.

    Args:
        values: one value for each case and row, without nan, (n, k).
        higher_is_better: direction of the metric.
        level: the confidence of the intervals.
        seed: key of the resamples.

    Source: Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing challenge results, 2021.
    """
    count, rows = values.shape
    merits = values if higher_is_better else -values
    exact = _ranks(merits.mean(axis=0, keepdims=True))
    ranks = np.concatenate([_ranks(counts @ merits / count) for counts in resample_counts(count, seed)])
    low, high = bounds(ranks, level)
    is_first = ranks == ranks.min(axis=1, keepdims=True)
    first = (is_first / is_first.sum(axis=1, keepdims=True)).mean(axis=0)
    tau = _tau(ranks, exact) if rows > 1 else np.full(len(ranks), np.nan)
    return RankStability(
        ranks=exact[0].tolist(),
        low=low.tolist(),
        high=high.tolist(),
        first=first.tolist(),
        tau=float(tau.mean()),
        tau_low=float(bounds(tau, level)[0]),
        cases=count,
    )


def _ranks(merits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks within each line of merits, (B, k): 1 for the highest; equal merits have the mean of their ranks."""
    rounded = np.round(merits, 12)  # equal means differ by rounding
    above = (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)
    equal = (rounded[:, None, :] == rounded[:, :, None]).sum(axis=2)
    return above + (equal + 1) / 2


def _tau(ranks: NDArray[np.float64], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-b between each line of ranks, (B, k), and one ranking, (1, k); 0 where all ranks are equal."""
    rows = ranks.shape[1]
    first, second = np.triu_indices(rows, 1)
    signs, reference = np.sign(ranks[:, first] - ranks[:, second]), np.sign(exact[:, first] - exact[:, second])
    scale = np.sqrt((signs != 0).sum(axis=1) * (reference != 0).sum(axis=1))
    return np.divide((signs * reference).sum(axis=1), scale, out=np.zeros(len(ranks)), where=scale > 0)
