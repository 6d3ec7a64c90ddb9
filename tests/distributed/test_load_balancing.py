"""Who validates what, and how many windows that is."""

from __future__ import annotations

import random
from itertools import product

import pytest
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from fusionseg.distributed.load_balancing import deal
from fusionseg.training.sliding_window import count_windows


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_dealt_once_and_no_rank_has_much_more(seed: int) -> None:
    draw = random.Random(seed)
    costs, ranks = [draw.randint(1, 50) for _ in range(draw.randint(1, 7))], draw.randint(1, 3)
    dealt = deal(dict(enumerate(costs)), ranks)
    assert sorted(item for items in dealt for item in items) == list(range(len(costs)))
    assert len(dealt) == ranks and 0 in dealt[0] and all(items == sorted(items) for items in dealt)
    best = min(
        max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks))
        for owners in product(range(ranks), repeat=len(costs))
    )
    assert max(sum(costs[item] for item in items) for items in dealt) <= 4 / 3 * best


def test_large_volumes_are_not_one_ranks_alone() -> None:
    costs = dict(enumerate([9, 1, 9, 1, 9, 1, 9, 1]))
    assert deal(costs, 2) == [[0, 1, 4, 5], [2, 3, 6, 7]]  # every second one would be 36 and 4
    assert deal({}, 2) == [[], []]


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_counted_as_monai_lays_them(seed: int) -> None:
    draw = random.Random(seed)
    patch = [draw.randint(8, 96) for _ in range(3)]
    shape = [max(edge, draw.randint(8, 300)) for edge in patch]
    overlap = draw.choice([0.0, 0.25, 0.5, 0.6, 0.75])
    stride = _get_scan_interval(shape, patch, 3, (overlap,) * 3)
    assert count_windows(shape, patch, overlap) == len(dense_patch_slices(shape, patch, stride))
    smaller = [max(1, edge - draw.randint(0, 5)) for edge in patch]  # is padded to the patch
    assert count_windows(smaller, patch, overlap) == 1
