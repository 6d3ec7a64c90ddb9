"""The levels of a U-Net from voxel size and patch, by the rule of nnU-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from fusionseg.config.section import Triple


@dataclass(frozen=True)
class Levels:
    """The resolutions of a U-Net.

    Args:
        strides: down-sampling factors between the levels along x, y, z.
        kernels: kernel of each level along x, y, z; one entry more than strides.
        patch: X, Y, Z, rounded up to what the strides divide.
    """

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    patch: Triple

    @property
    def divisors(self) -> Triple:
        """Factor of the lowest resolution along x, y, z."""
        return divisors(self.strides)


def divisors(strides: Sequence[Triple]) -> Triple:
    """Product of the strides along each axis."""
    x, y, z = (prod(step[axis] for step in strides) for axis in range(3))
    return x, y, z


def network_levels(spacing: Sequence[float], patch: Sequence[int], min_edge: int = 4) -> Levels:
    """Choose strides and kernels (Isensee et al., 2021, supplementary note 2).

    An axis is halved as long as at least `min_edge` voxels remain and its voxels are not twice as large as those of
    the finest axis that can still be halved. An axis has kernel 1 as long as its voxels are more than twice as large as
    the smallest ones.

    Args:
        spacing: voxel size along x, y, z in mm.
        patch: X, Y, Z in voxels.
        min_edge: voxels that an axis keeps.
    """
    sizes, lengths = [float(size) for size in spacing], [int(count) for count in patch]
    strides: list[Triple] = []
    kernels: list[Triple] = []
    kernel = [1, 1, 1]
    while True:
        kernel = [3 if old == 3 or size < 2 * min(sizes) else 1 for old, size in zip(kernel, sizes, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        long = [axis for axis in range(3) if lengths[axis] >= 2 * min_edge]
        finest = min((sizes[axis] for axis in long), default=0.0)
        halved = [axis for axis in long if sizes[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and lengths[halved[0]] < 3 * min_edge):
            break
        for axis in halved:
            sizes[axis] *= 2
            lengths[axis] = ceil(lengths[axis] / 2)
        x, y, z = (2 if axis in halved else 1 for axis in range(3))
        strides.append((x, y, z))
    kernels[-1] = (3, 3, 3)
    x, y, z = (ceil(count / unit) * unit for count, unit in zip(patch, divisors(strides), strict=True))
    return Levels(tuple(strides), tuple(kernels), (x, y, z))
