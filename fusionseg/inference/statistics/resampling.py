"""Bootstrap resamples of cases, as the number of times that each resample has each case."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 3999
"""Number of resamples. With 3999, the bounds of a 95 % interval are the 100th value from each end (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 2.4)."""
_BLOCK = 1 << 22
"""Largest number of counts that exist at a time: 32 MiB."""


def resample_counts(cases: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[NDArray[np.float64]]:
    """Draw cases with replacement, and yield the counts of the resamples in blocks.

    Counts make a statistic of all resamples one matrix product. The same number of cases and the same seed give the
    same resamples on every machine, so that several columns of values are resampled together.

    Args:
        cases: number of cases n.
        seed: key of the generator (Philox).
        resamples: number of resamples.

    Yields:
        Counts, (block, n); each row sums to n.
    """
    if resamples * cases <= _BLOCK:
        yield _kept_counts(cases, seed, resamples)
    else:
        yield from _drawn_counts(cases, seed, resamples)


@lru_cache(maxsize=2)
def _kept_counts(cases: int, seed: int, resamples: int) -> NDArray[np.float64]:
    """The counts of all resamples, (resamples, n): every class, metric and row over these cases needs them again."""
    (counts,) = _drawn_counts(cases, seed, resamples)
    counts.flags.writeable = False
    return counts


def _drawn_counts(cases: int, seed: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    rows = max(1, _BLOCK // max(1, cases))
    for start in range(0, resamples, rows):
        number = min(rows, resamples - start)
        drawn = generator.integers(0, cases, (number, cases))
        drawn += np.arange(number)[:, None] * cases
        counts = np.bincount(drawn.ravel(), minlength=number * cases)
        yield counts.reshape(number, cases).astype(np.float64)


def bounds(statistics: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and the upper bound of the middle part of a statistic's values over the resamples.

    Args:
        statistics: one value for each resample, (B, ...).
        level: size of the middle part, such as 0.95.

    Returns:
        The two order statistics, (...) each.
    """
    ordered = np.sort(statistics, axis=0)
    beyond = max(1, round((len(ordered) + 1) * (1 - level) / 2))
    return ordered[beyond - 1], ordered[len(ordered) - beyond]
