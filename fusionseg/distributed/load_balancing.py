"""Assignment of cases to ranks, balanced by cost."""

from __future__ import annotations

from collections.abc import Mapping


def assign_to_ranks(costs: Mapping[int, float], num_ranks: int) -> list[list[int]]:
    """Assign cases to ranks so that all ranks have about the same total cost.

    Cases are assigned in descending order of cost, each to the rank with the lowest total so far. This is the "longest
    processing time" rule: the largest total is at most 4/3 of the optimum (Graham, SIAM J. Appl. Math. 17(2), 1969,
    doi:10.1137/0117039).

    Args:
        costs: case index -> cost, in any unit.
        num_ranks: number of ranks.

    Returns:
        for each rank its case indices, in the order of `costs`. The first case of `costs` belongs to rank 0.
    """
    owner: dict[int, int] = {}
    load = [0.0] * num_ranks
    for case in sorted(costs, key=costs.__getitem__, reverse=True):
        owner[case] = rank = load.index(min(load))
        load[rank] += costs[case]
    # Exchange rank 0 with the owner of the first case: rank 0 writes the pictures, which show the first case.
    first = owner[next(iter(costs))] if costs else 0
    exchanged = {0: first, first: 0}
    return [[case for case in costs if owner[case] == exchanged.get(rank, rank)] for rank in range(num_ranks)]
