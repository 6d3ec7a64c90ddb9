"""The largest patch and micro-batch within limits of memory and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from fusionseg.config.section import Triple
from fusionseg.planning.network import PlannedNetwork
from fusionseg.utils.errors import UserError

LARGEST_PATCH = 256**3
"""Voxels of the patch from which nnU-Net's search starts."""
_NEAR = 1.15
"""A patch is measured if the extrapolation says that it needs less than this share of the limit."""

Fit = Callable[[Triple], PlannedNetwork]
Load = Callable[[PlannedNetwork, int], float]
"""(network with its patch, micro-batch) -> share of the limit that it needs; above 1 it does not fit."""


@dataclass(frozen=True)
class Fitted:
    """A network that fits the limits.

    Args:
        network: with its patch.
        load: share of the limit that it needs; above 1 if not even the smallest patch fits.
        micro_batch: samples of a forward pass.
        is_largest: True if no limit made the patch smaller.
    """

    network: PlannedNetwork
    load: float
    micro_batch: int
    is_largest: bool


class PatchSearch:
    """nnU-Net's search of the largest patch (Isensee et al., 2021, supplementary note 2).

    It starts from a cube in mm of 256^3 voxels, at most the median shape. The axis that is largest relative to the
    median shape is made smaller until the limit holds. A load is measured only where it may be within the limit,
    because the memory of a large network takes seconds to count.

    Args:
        shape: median shape of the volumes.
        spacing: their voxel size in mm.
        fit: gives the network for a patch.
        load: the share of the limit that a network needs.
    """

    def __init__(self, shape: Triple, spacing: Sequence[float], fit: Fit, load: Load) -> None:
        self._candidates = list(_candidates(shape, spacing, fit))
        self._load = load
        self._per_voxel = 0.0
        """Load of a voxel of a sample at the last measurement. The load is nearly proportional to the voxels of all
        samples; the weights make it larger than that in smaller patches."""

    @property
    def first(self) -> PlannedNetwork:
        """The network with the patch from which the search starts."""
        return self._candidates[0]

    def largest(self, micro_batch: int, fewest_voxels: float = 0) -> Fitted | None:
        """Find the largest patch within the limit.

        Args:
            micro_batch: samples of a forward pass.
            fewest_voxels: smaller patches are not tried.

        Returns:
            None if no patch fits.
        """
        for network in self._candidates:
            voxels = micro_batch * prod(network.patch)
            if voxels < micro_batch * fewest_voxels:
                return None
            if self._per_voxel * voxels < _NEAR:
                share = self._load(network, micro_batch)
                if share <= 1:
                    return Fitted(network, share, micro_batch, network is self.first)
                self._per_voxel = share / voxels
        return None

    def smallest(self, micro_batch: int) -> Fitted:
        """The smallest patch, also where it does not fit.

        Args:
            micro_batch: samples of a forward pass.
        """
        network = self._candidates[-1]
        return Fitted(network, self._load(network, micro_batch), micro_batch, False)


def largest_micro_batch(fitted: Fitted, most: int, load: Load) -> Fitted:
    """Raise the micro-batch as far as the limit allows.

    Args:
        fitted: a network that fits.
        most: upper limit.
        load: as for `PatchSearch`.
    """
    best = fitted
    while best.micro_batch < most:
        spare = best.micro_batch / max(best.load, 1e-9)
        size = min(most, max(best.micro_batch + 1, int(spare)))
        share = load(best.network, size)
        if share > 1:
            if size == best.micro_batch + 1:
                break
            most = size - 1
            continue
        best = Fitted(best.network, share, size, best.is_largest)
    return best


def _candidates(shape: Triple, spacing: Sequence[float], fit: Fit) -> Iterator[PlannedNetwork]:
    """Yield networks with ever smaller patches."""
    edge_mm = (LARGEST_PATCH * prod(spacing)) ** (1 / 3)
    network = fit(
        _triple([max(1, min(count, round(edge_mm / size))) for count, size in zip(shape, spacing, strict=True)])
    )
    while True:
        yield network
        patch, units = network.patch, network.units
        reducible = [axis for axis in range(3) if patch[axis] > units[axis]]
        for axis in sorted(reducible, key=lambda axis: patch[axis] / shape[axis], reverse=True):
            # A smaller patch may have fewer levels, and so a smaller unit: nnU-Net subtracts that one.
            try:
                coarse = fit(_less(patch, axis, units[axis]))
                fine = fit(_less(patch, axis, coarse.units[axis]))
            except UserError:  # the network takes no smaller patch
                continue
            after = fine if prod(fine.patch) < prod(patch) else coarse
            if prod(after.patch) < prod(patch):
                network = after
                break
        else:
            return


def _less(patch: Triple, axis: int, voxels: int) -> Triple:
    """The patch with fewer voxels along one axis."""
    return _triple([size - voxels * (index == axis) for index, size in enumerate(patch)])


def _triple(values: Sequence[int]) -> Triple:
    return values[0], values[1], values[2]
