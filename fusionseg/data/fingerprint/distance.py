"""Values of cases that are far from those of the other cases, and large groups of cases with like values.

A value is an outlier if it is further from the median of the data set than 3.5 robust standard deviations (1.4826 times
the median absolute deviation: Iglewicz and Hoaglin, "How to detect and handle outliers", 1993) and by more than a
factor that depends on the kind of the value. The factor keeps small differences out where all other cases are equal.
Values are compared on a logarithmic scale, because volumes and intensities vary by factors. If the cases fall into two
halves, such as the scans of two sites, the deviation is as large as the distance of the halves and nothing is an
outlier: such groups are looked for between values with a gap of the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["spacing", "shape", "intensity", "volume", "components", "annotation"]

DEVIATIONS = 3.5
"""Least distance from the median, in robust standard deviations."""
FACTORS = {"spacing": 1.5, "shape": 2.0, "intensity": 2.0, "volume": 3.0, "components": 1.5}
"""Least factor between the value of a case and the median, by kind."""
FEWEST_CASES = 5
"""With fewer values nothing is an outlier."""
RARE = 0.1
"""Cases are outliers if they are at most this share of all; a larger group is a property of the data set."""
FEW = 2
"""So many cases are always named one by one."""
MOST_GROUPS = 4
"""With more groups the values are scattered."""
_MAD_TO_DEVIATION = 1.4826
_TOLERANCE = 1 + 1e-9
"""Keeps a value out that differs by exactly the factor."""


def far_values(values: Sequence[float], kind: Kind, spread: float = 0.0) -> tuple[list[int], float]:
    """Find the values that are far from the median of all.

    Args:
        values: one for each case. They are compared by their logarithms if all are positive.
        kind: with a factor in `FACTORS`.
        spread: the unit of the factor for values that are not all positive.

    Returns:
        Indices of the values, and the median.
    """
    if not values:
        return [], 0.0
    typical = float(np.median(values))
    if len(values) < FEWEST_CASES:
        return [], typical
    scale, least = _scaled(values, kind, spread)
    distance = np.abs(scale - np.median(scale))
    limit = max(DEVIATIONS * _MAD_TO_DEVIATION * float(np.median(distance)), least) * _TOLERANCE
    return [int(index) for index in np.flatnonzero(distance > limit)], typical


def _scaled(values: Sequence[float], kind: Kind, spread: float) -> tuple[NDArray[np.float64], float]:
    """The values on the scale of their comparison, and the least difference on it; the arguments are those of
    `far_values`."""
    table = np.asarray(values, np.float64)
    positive = bool((table > 0).all())
    least = float(np.log(FACTORS[kind])) if positive else FACTORS[kind] * spread
    return (np.log(table) if positive else table), least


def large_groups(values: Sequence[float], kind: Kind, spread: float = 0.0) -> list[list[int]]:
    """Divide the cases where there is a gap of the least factor between their values.

    Args:
        values: one for each case.
        kind: as for `far_values`.
        spread: as for `far_values`.

    Returns:
        The indices of each group, by rising values; nothing unless two groups are too large for outliers.
    """
    if len(values) < FEWEST_CASES:
        return []
    scale, least = _scaled(values, kind, spread)
    order = np.argsort(scale, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(scale[order]) > least * _TOLERANCE) + 1)
    large = [group for group in groups if len(group) > max(FEW, RARE * len(values))]
    return [sorted(map(int, group)) for group in groups] if len(large) > 1 and len(groups) <= MOST_GROUPS else []
