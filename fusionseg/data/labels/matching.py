"""The classes of another data set in terms of those of a run: by their names, or by the regions that they are in."""

from __future__ import annotations

import numpy as np

from fusionseg.data.formats.channel_names import label_order
from fusionseg.data.labels.scheme import LabelScheme


def match_classes(wanted: LabelScheme, given: LabelScheme) -> tuple[int, ...] | None:
    """Find a class of a run for each class of a data set.

    Classes are matched by name. Where the names differ and the run has sigmoid outputs, a class of the data set is
    matched with one that is in the same outputs, whose names then have to be those of the run: two data sets may have
    other values in a region of the same name.

    Args:
        wanted: of the run.
        given: of the data set.

    Returns:
        Class indices of the run, in the order of those of the data set; None if there is no match.
    """
    order = label_order(wanted.labels, given.labels)
    if order is not None:
        return tuple(np.argsort(order).tolist())
    if not (wanted.is_regions and given.is_regions):
        return None
    names = [name.casefold() for name in given.output_names]
    rows = [names.index(name.casefold()) for name in wanted.output_names if name.casefold() in names]
    if len(rows) < len(wanted.output_names):
        return None
    matches = []
    for inside in given.membership[rows].T:
        same = np.flatnonzero((inside == wanted.membership.T).all(axis=1))
        if not same.size:
            return None
        matches.append(int(same[0]))
    return tuple(matches)
