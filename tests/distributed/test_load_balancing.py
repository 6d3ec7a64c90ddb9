"""Assignment of cases to ranks by the number of their windows."""

from __future__ import annotations

import random
from itertools import product

import pytest
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.training.tasks.sliding_window import count_windows


@pytest.mark.parametrize("seed", range(20))
def test_every_case_has_one_rank_and_the_largest_total_is_bounded(seed: int) -> None:
    draw = random.Random(seed)
    costs, ranks = [draw.randint(1, 50) for _ in range(draw.randint(1, 7))], draw.randint(1, 3)
    assigned = assign_to_ranks(dict(enumerate(costs)), ranks)
    assert sorted(item for items in assigned for item in items) == list(range(len(costs)))
    assert len(assigned) == ranks and 0 in assigned[0] and all(items == sorted(items) for items in assigned)
    best = min(
        max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks))
        for owners in product(range(ranks), repeat=len(costs))
    )
    assert max(sum(costs[item] for item in items) for items in assigned) <= 4 / 3 * best


def test_large_volumes_are_spread_over_the_ranks() -> None:
    costs = dict(enumerate([9, 1, 9, 1, 9, 1, 9, 1]))
    assert assign_to_ranks(costs, 2) == [[0, 1, 4, 5], [2, 3, 6, 7]]  # every second case would give totals of 36 and 4
    assert assign_to_ranks({}, 2) == [[], []]


@pytest.mark.parametrize("seed", range(20))
def test_number_of_windows_is_that_of_monai(seed: int) -> None:
    draw = random.Random(seed)
    patch = [draw.randint(8, 96) for _ in range(3)]
    shape = [max(edge, draw.randint(8, 300)) for edge in patch]
    overlap = draw.choice([0.0, 0.25, 0.5, 0.6, 0.75])
    stride = _get_scan_interval(shape, patch, 3, (overlap,) * 3)
    assert count_windows(shape, patch, overlap) == len(dense_patch_slices(shape, patch, stride))
    smaller = [max(1, edge - draw.randint(0, 5)) for edge in patch]  # padded to the patch
    assert count_windows(smaller, patch, overlap) == 1
