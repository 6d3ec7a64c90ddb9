"""Means of values that are not all known."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan, nan
from statistics import fmean


def nanmean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not nan; nan if there is none.

    Args:
        values: the values.
    """
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else nan
