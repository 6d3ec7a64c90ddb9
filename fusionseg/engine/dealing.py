"""Which rank validates which cases."""

from __future__ import annotations

from collections.abc import Sequence


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """For each rank the numbers of its items, ascending, so that all ranks have about equally much to do.

    The dearest items are dealt first, each to the rank that has least so far ("longest processing time": at most a
    third above the best possible; Graham, SIAM J. Appl. Math. 17(2), 1969). Item 0 is rank 0's.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        rank = min(range(ranks), key=lambda rank: (load[rank], rank))
        dealt[rank].append(item)
        load[rank] += costs[item]
    first = next((rank for rank, items in enumerate(dealt) if 0 in items), 0)
    dealt[0], dealt[first] = dealt[first], dealt[0]
    return [sorted(items) for items in dealt]
