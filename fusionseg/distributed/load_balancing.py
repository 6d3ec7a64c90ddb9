"""Which rank validates which cases."""

from __future__ import annotations

from collections.abc import Mapping


def deal(costs: Mapping[int, float], ranks: int) -> list[list[int]]:
    """For each rank the numbers of its cases, in the order of `costs`, so that all have about equally much to do.

    The dearest cases are dealt first, each to the rank that has least so far ("longest processing time": at most a
    third above the best possible; Graham, SIAM J. Appl. Math. 17(2), 1969). The first case is rank 0's.

    Args:
        costs: by case.
    """
    owner: dict[int, int] = {}
    load = [0.0] * ranks
    for case in sorted(costs, key=costs.__getitem__, reverse=True):
        owner[case] = rank = load.index(min(load))
        load[rank] += costs[case]
    first = owner[next(iter(costs))] if costs else 0
    names = {0: first, first: 0}
    return [[case for case in costs if owner[case] == names.get(rank, rank)] for rank in range(ranks)]
