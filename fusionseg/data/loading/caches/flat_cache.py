"""The base of the caches that hold volumes in memory."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.data.loading.caches.case_cache import CaseCache

ALIGNMENT = 64
"""The first voxel lies at a multiple of it, for aligned reads."""


class FlatCache(CaseCache):
    """The images of all cases lie in one tensor, and the labels in another.

    One position of both tensors belongs to the same voxel. Position i is the background of case i, so that a patch that
    ends outside of a volume is read like any other.
    """

    image: Tensor
    """(C, positions), in the cache's type."""
    label: Tensor
    """(positions,), uint8."""
    first_voxel: NDArray[np.int64]
    """Position of the first voxel of each case; -1 for one that is not in memory."""

    def first_voxels(self, case_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of the first voxels of cases that are in memory.

        Args:
            case_indices: of the cases.
        """
        first = self.first_voxel[case_indices]
        assert (first >= 0).all(), "a sample of a case that is not in memory"
        return first

    def volume(self, case_index: int) -> tuple[Tensor, Tensor]:
        """A whole case, as views of the cache; see `CaseCache`."""
        shape, first = self.records[case_index].shape, int(self.first_voxel[case_index])
        size = prod(shape)
        image = self.image[:, first : first + size].view(self.channels, *shape)
        return image, self.label[first : first + size].view(shape)


def backgrounds(cases: int) -> int:
    """Number of positions before the first voxel.

    Args:
        cases: their number.
    """
    return -(-cases // ALIGNMENT) * ALIGNMENT
