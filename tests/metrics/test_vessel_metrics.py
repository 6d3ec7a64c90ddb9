"""clDice against the formula of its publication, and the branches of drawn vessels."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from mask_pairs import SHAPE, Mask, mask_pairs
from skimage.morphology import skeletonize

from fusionseg.metrics.vessels import VesselComparison, share_found

PAIRS = list(mask_pairs())


def published_cl_dice(predicted: Mask, true: Mask) -> float:
    """clDice by the code of Shit et al. (2021), on the whole volume."""

    def share(mask: Mask, line: Mask) -> float:
        with np.errstate(invalid="ignore"):  # of a solid block the thinning leaves nothing: 0 / 0
            return float(np.sum(mask * line) / np.sum(line))

    tprec = share(true, skeletonize(predicted) > 0)
    tsens = share(predicted, skeletonize(true) > 0)
    return 2 * tprec * tsens / (tprec + tsens) if tprec + tsens != 0 else 0.0


@pytest.mark.parametrize(("name", "predicted", "true"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_cl_dice_is_that_of_the_publication(name: str, predicted: Mask, true: Mask) -> None:
    found = VesselComparison(predicted, true, (1, 1, 1)).cl_dice
    if predicted.any() and true.any():
        assert found == pytest.approx(published_cl_dice(predicted, true), abs=1e-6, nan_ok=True)
    elif predicted.any() or true.any():
        assert found == 0
    else:
        assert isnan(found)


def tree() -> tuple[Mask, Mask, Mask]:
    """A thick trunk with a junction at its end, and two thin branches: trunk, first and second branch."""
    grid = np.indices((60, 50, 30))
    trunk = (np.hypot(grid[1] - 25, grid[2] - 15) <= 5) & (grid[0] >= 5) & (grid[0] <= 35)
    first, second = np.zeros(trunk.shape, bool), np.zeros(trunk.shape, bool)
    for step in range(20):
        x, y = 33 + step, 25 + step
        first |= (np.abs(grid[0] - x) <= 1) & (np.abs(grid[1] - y) <= 1) & (np.abs(grid[2] - 15) <= 1)
        second |= (np.abs(grid[0] - x) <= 1) & (np.abs(grid[1] - (50 - y)) <= 1) & (np.abs(grid[2] - 15) <= 1)
    return trunk, first, second


def test_branches_have_the_calibre_of_their_vessels_and_are_found_where_they_are_covered() -> None:
    trunk, first, second = tree()
    true = trunk | first | second
    branches = VesselComparison(true, true, (0.5, 0.5, 0.5)).branches()
    assert all(branch.covered == 1 and branch.is_found for branch in branches)
    long = [branch for branch in branches if branch.voxels >= 8]
    thick = [branch for branch in long if branch.diameter_mm > 4]
    thin = [branch for branch in long if branch.diameter_mm <= 4]
    assert len(thick) == 1 and len(thin) == 2
    assert thick[0].diameter_mm == pytest.approx(2 * np.hypot(5, 1) * 0.5) and thin[0].diameter_mm < 2.5
    missing = VesselComparison(trunk | first, true, (0.5, 0.5, 0.5)).branches()
    lost = [branch for branch in missing if not branch.is_found and branch.voxels >= 8]
    assert len(lost) == 1 and lost[0].diameter_mm < 2.5
    assert share_found(branches) == 1 and share_found(missing) == pytest.approx(1 - 1 / len(branches), abs=0.2)


def test_a_straight_vessel_is_one_branch_in_any_direction() -> None:
    for axis in range(3):
        vessel = np.zeros((20, 20, 20), bool)
        vessel[(slice(8, 11),) * axis + (slice(2, 18),) + (slice(8, 11),) * (2 - axis)] = True
        spacing = tuple(2.0 if number == axis else 1.0 for number in range(3))
        (branch,) = VesselComparison(vessel, vessel, spacing).branches()
        assert branch.covered == 1 and branch.diameter_mm == pytest.approx(4, rel=0.1)


def test_no_vessel_has_no_branch() -> None:
    empty = np.zeros(SHAPE, bool)
    assert VesselComparison(empty, empty, (1, 1, 1)).branches() == [] and isnan(share_found([]))
