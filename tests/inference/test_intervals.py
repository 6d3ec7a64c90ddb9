"""Intervals of means: coverage on simulated scores, and the cases in which the bootstrap does not apply."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fusionseg.inference.statistics.intervals import (
    BOOTSTRAP_T,
    NO_SPREAD,
    NONE,
    PERCENTILE,
    STUDENT_T,
    bootstrap_intervals,
    mean_interval,
)
from fusionseg.inference.statistics.resampling import RESAMPLES, bounds, resample_counts

TRIALS = 2000
Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


def with_ties(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Scores of few steps, such as the share of ten lesions that were found."""
    return generator.binomial(10, 0.8, shape) / 10


def with_failures(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Dice with a share of 15 % of missed structures, whose Dice is 0."""
    return np.where(generator.random(shape) < 0.15, 0.0, generator.beta(20, 4, shape))


SCORES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda generator, shape: generator.normal(0.8, 0.05, shape), 0.8),
    "Dice near 1": (lambda generator, shape: generator.beta(20, 2, shape), 20 / 22),
    "skewed Dice": (lambda generator, shape: generator.beta(8, 1.5, shape), 8 / 9.5),
    "wide Dice": (lambda generator, shape: generator.beta(2, 1, shape), 2 / 3),
    "ties": (with_ties, 0.8),
    "distances": (lambda generator, shape: generator.lognormal(0, 0.5, shape), float(np.exp(0.125))),
}


@pytest.mark.parametrize("cases", [30, 60, 200])
@pytest.mark.parametrize("name", SCORES)
def test_95_percent_intervals_hold_the_true_mean_in_93_to_97_percent_of_trials(name: str, cases: int) -> None:
    draw, mean = SCORES[name]
    values = draw(np.random.default_rng(7), (cases, TRIALS))
    low, high, _ = bootstrap_intervals(values)
    assert 0.93 <= ((low <= mean) & (mean <= high)).mean() <= 0.97


@pytest.mark.parametrize("cases", [30, 60, 200])
def test_intervals_of_scores_with_failures_are_rather_too_wide_than_too_narrow(cases: int) -> None:
    values = with_failures(np.random.default_rng(7), (cases, TRIALS))
    low, high, _ = bootstrap_intervals(values)
    mean = 0.85 * 20 / 24
    assert 0.94 <= ((low <= mean) & (mean <= high)).mean() <= 0.985


def test_one_interval_is_a_column_of_many() -> None:
    values = np.random.default_rng(0).beta(8, 2, (40, 3))
    low, high, _ = bootstrap_intervals(values)
    for column in range(3):
        found = mean_interval(values[:, column])
        assert (found.low, found.high) == pytest.approx((low[column], high[column]), rel=1e-12)
        assert found.mean == pytest.approx(values[:, column].mean()) and found.method == BOOTSTRAP_T


def test_a_bootstrap_t_interval_by_definition() -> None:
    """Resample by resample, with the same draws."""
    values = np.random.default_rng(3).beta(6, 2, 25)
    counts = np.concatenate(list(resample_counts(25, seed=4)))
    ratios = []
    for line in counts.astype(int):
        drawn = np.repeat(values, line)
        ratios.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / sqrt(25)))
    ratios.sort()
    error = values.std(ddof=1) / sqrt(25)
    found = mean_interval(values, seed=4)
    assert len(ratios) == RESAMPLES
    assert found.low == pytest.approx(values.mean() - ratios[-100] * error)
    assert found.high == pytest.approx(values.mean() - ratios[99] * error)


def test_equal_values_and_seed_give_an_equal_interval() -> None:
    values = list(np.random.default_rng(0).beta(8, 2, 50))
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)
    assert mean_interval(values, level=0.9).low > mean_interval(values).low


def test_few_values_take_students_t() -> None:
    values = [0.71, 0.75, 0.74]
    found = mean_interval(values)
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected) and found.method == STUDENT_T
    assert mean_interval(np.linspace(0, 1, 9)).method == STUDENT_T
    assert mean_interval(np.linspace(0, 1, 10)).method == BOOTSTRAP_T


def test_values_that_are_not_known_do_not_count() -> None:
    values = [*np.random.default_rng(0).beta(8, 2, 30)]
    assert mean_interval([nan, *values, nan]) == mean_interval(values)
    assert mean_interval(values).n == 30
    nothing, one = mean_interval([nan]), mean_interval([0.5])
    assert isnan(nothing.mean) and nothing.n == 0 and nothing.method == NONE
    assert one.mean == 0.5 and isnan(one.low) and isnan(one.high) and one.n == 1


def test_values_without_spread() -> None:
    found = mean_interval([0.3] * 40)
    assert (found.mean, found.low, found.high, found.method) == (0.3, 0.3, 0.3, NO_SPREAD)


def test_one_different_value_takes_the_percentile_interval() -> None:
    """More than a third of the resamples lack the one value, and have no standard error."""
    values = [0.9] * 39 + [0.0]
    found = mean_interval(values)
    assert found.method == PERCENTILE
    means = np.concatenate(list(resample_counts(40))) @ np.array(values) / 40
    assert (found.low, found.high) == pytest.approx(tuple(map(float, bounds(means, 0.95))))
    assert 0.8 < found.low < found.mean < found.high <= 0.9


def test_intervals_stay_within_the_values() -> None:
    values = [1.0] * 12 + [0.99, 0.98, 0.1]
    found = mean_interval(values)
    assert min(values) <= found.low <= found.mean <= found.high <= 1.0


def test_resamples_in_blocks_are_complete() -> None:
    blocks = list(resample_counts(5000, resamples=1000))
    assert len(blocks) == 2 and sum(map(len, blocks)) == 1000
    assert all((block.sum(axis=1) == 5000).all() for block in blocks)
    assert blocks[0].mean() == pytest.approx(1) and blocks[0].var() == pytest.approx(1, rel=0.05)
