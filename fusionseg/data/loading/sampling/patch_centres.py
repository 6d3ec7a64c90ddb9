"""The positions of patches: at a voxel of a class, or anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.counter_random import uniform
from fusionseg.data.loading.purposes import Purpose
from fusionseg.data.loading.sampling.weights import SamplingWeights
from fusionseg.utils.errors import some_of

ANYWHERE = 0
"""In place of a class index: the patch is not centred on a voxel of a class."""


class Positions(Protocol):
    """Flat voxel indices: an array, or entries of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.int64: ...


@dataclass(frozen=True)
class PlanCase:
    """A case as the sampling plan sees it: its size and the positions of its foreground.

    Args:
        name: of the case.
        shape: (X, Y, Z).
        foreground: flat voxel indices, class after class.
        class_offsets: index in `foreground` of the first voxel of each class that occurs, then the number of voxels.
        classes: indices of the classes that occur; None for 1, 2, ...
        annotated: flat indices of annotated voxels, the background's among them, for a case with ignored voxels; None
            for a case that is annotated everywhere.
    """

    name: str
    shape: tuple[int, int, int]
    foreground: Positions
    class_offsets: tuple[int, ...]
    classes: tuple[int, ...] | None = None
    annotated: Positions | None = None

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The indices of the classes that occur."""
        return tuple(range(1, len(self.class_offsets))) if self.classes is None else self.classes


def unannotated_warning(cases: Sequence[PlanCase]) -> str:
    """A warning about training cases in which every voxel is ignored; empty if there are none.

    Args:
        cases: the training cases.
    """
    names = [case.name for case in cases if case.annotated is not None and len(case.annotated) == 0]
    if not names:
        return ""
    return (
        f"{len(names)} training case{'s have' if len(names) > 1 else ' has'} the ignore value in every voxel"
        f" ({some_of(names)}): nothing is learned from their patches; annotate a part of them, or take them out"
    )


class PatchCentres:
    """Draws the positions of patches.

    Args:
        cases: the training cases.
        patch: size in voxels.
        foreground: chance that a patch is centred on a foreground voxel.
        weights: of the classes.
        seed: of the run.
    """

    def __init__(
        self,
        cases: Sequence[PlanCase],
        patch: tuple[int, int, int],
        foreground: float,
        weights: SamplingWeights,
        seed: int,
    ) -> None:
        self.cases = cases
        self.patch = patch
        self.foreground = foreground
        self.seed = seed
        self._shares: list[NDArray[np.float64] | None] | None = None
        if weights.classes is not None:
            shares = [weights.class_shares(case.class_indices) for case in cases]
            self._shares = [None if one is None else np.cumsum(one) for one in shares]

    def class_of(self, step: int, k: int, case_index: int) -> int:
        """The index of the class that a patch is centred on, or `ANYWHERE`.

        Args:
            step: of the optimizer.
            k: index of the sample within the global batch.
            case_index: of its case.
        """
        chosen = self._chosen(uniform(self.seed, step, k, Purpose.CENTRE, 2), case_index)
        return ANYWHERE if chosen is None else self.cases[case_index].class_indices[chosen]

    def origin(self, step: int, k: int, case_index: int) -> NDArray[np.int64]:
        """The first voxel (3,) of a patch in the volume; for the arguments see `class_of`."""
        draw, case = uniform(self.seed, step, k, Purpose.CENTRE, 6), self.cases[case_index]
        shape, patch = np.array(case.shape), np.array(self.patch)
        lowest, highest = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
        # Along an axis where the patch is larger than the volume, the volume lies anywhere inside the patch.
        anywhere = lowest + (draw[3:] * (highest - lowest + 1)).astype(np.int64)
        chosen = self._chosen(draw, case_index)
        if chosen is not None:
            first, last = case.class_offsets[chosen], case.class_offsets[chosen + 1]
            flat = case.foreground[first + int(draw[2] * (last - first))]
        elif case.annotated is not None and len(case.annotated):
            flat = case.annotated[int(draw[2] * len(case.annotated))]  # elsewhere the patch may have nothing to learn
        else:
            return anywhere
        voxel = np.array(np.unravel_index(flat, case.shape))
        origin: NDArray[np.int64] = np.where(
            shape < patch, anywhere, np.clip(voxel - patch // 2, lowest, highest)
        ).astype(np.int64)
        return origin

    def _chosen(self, draw: NDArray[np.float64], case_index: int) -> int | None:
        """The position of the class among those of the case; None for a patch at any position."""
        num_classes = len(self.cases[case_index].class_offsets) - 1
        if draw[0] >= self.foreground or num_classes == 0:
            return None
        if self._shares is None:
            return int(draw[1] * num_classes)
        shares = self._shares[case_index]
        # The last share is 1 but for rounding. The smallest index with this sum has a weight above 0.
        return None if shares is None else int(np.searchsorted(shares, draw[1] * shares[-1], side="right"))
