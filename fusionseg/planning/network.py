"""The `model` section for a voxel size and a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusionseg.config.loading import validate_section
from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Triple
from fusionseg.planning.levels import Levels, network_levels
from fusionseg.utils.errors import UserError

_WIDEST = 320
"""nnU-Net's largest number of channels in 3D."""
_UNETS = ("unet", "resunet", "attention_unet", "attention_resunet")
_NNUNETS = ("nnunet_plain", "nnunet_residual")
_RESIDUAL_ENCODERS = ("resenc_unet", "resenc_fusion_2_v2", "resenc_fusion_od")
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class PlannedNetwork:
    """A network and the patch it is trained on.

    Args:
        values: the section `model`.
        patch: X, Y, Z, a size that the network takes.
        units: X, Y, Z, the smallest change of the patch.
        reason: for the depth, or for the multiples.
    """

    values: dict[str, Any]
    patch: Triple
    units: Triple
    reason: str

    @property
    def section(self) -> NetworkSection:
        section: NetworkSection = validate_section(networks.section(self.values["name"]), self.values)
        return section


def network_for(name: str, spacing: Sequence[float], patch: Sequence[int], width: int) -> PlannedNetwork:
    """Fit a network to a voxel size and a patch; the patch is rounded up to a size that the network takes.

    Args:
        name: of a built-in network.
        spacing: voxel size along x, y, z in mm.
        patch: X, Y, Z in voxels.
        width: channels of the first level, for the networks whose levels are chosen here.
    """
    if name not in (*_UNETS, *_NNUNETS, *_RESIDUAL_ENCODERS):
        return _fixed_network(name, patch)
    levels = _deep_enough(name, spacing, patch)
    steps: list[Any] = [_short(step) for step in levels.strides]
    channels = [min(_WIDEST, width * 2**level) for level in range(len(steps) + 1)]
    values: dict[str, Any] = {"name": name, ("filters" if name in _NNUNETS else "channels"): channels, "strides": steps}
    if name not in _UNETS and any(kernel != (3, 3, 3) for kernel in levels.kernels):
        values["kernels"] = [_short(kernel) for kernel in levels.kernels]
    values["deep_supervision"] = len(channels) >= networks.section(name).fewest_levels_with_heads
    reason = (
        f"nnU-Net's rule for the levels: an axis is halved while at least 4 voxels remain, and while its voxels are"
        f" less than twice as large as those of the finest axis. {len(channels)} levels,"
        f" {' x '.join(map(str, _lowest(levels)))} voxels at the lowest."
    )
    return PlannedNetwork(values, levels.patch, levels.divisors, reason)


def _deep_enough(name: str, spacing: Sequence[float], patch: Sequence[int]) -> Levels:
    """The levels, at least three: small volumes keep fewer voxels at the lowest one."""
    for least in (4, 2, 1):
        levels = network_levels(spacing, patch, least)
        if len(levels.strides) >= 2 and max(_lowest(levels)) > 1:  # a normalisation needs more than one voxel
            return levels
    raise UserError(
        f"--network: {name} needs larger volumes, such as 8 voxels along each axis, and these have a median of"
        f" {' x '.join(map(str, patch))}; choose a smaller data.spacing"
    )


def _fixed_network(name: str, patch: Sequence[int]) -> PlannedNetwork:
    """A network with its default settings, and the patch in multiples that it takes."""
    values = {"name": name}
    section: NetworkSection = validate_section(networks.section(name), values)
    unit = next(
        unit
        for unit in _MULTIPLES
        if all(section.patch_problem((unit * k, unit * k, unit * k)) is None for k in (2, 3, 5))
    )
    sizes = [max(1, -(-size // unit)) * unit for size in patch]
    if section.patch_problem((sizes[0], sizes[1], sizes[2])) is not None:  # too few voxels at the lowest level
        sizes[max(range(3), key=lambda axis: patch[axis])] = 2 * unit
    reason = f"Its default settings. It divides each axis by {unit}."
    return PlannedNetwork(values, (sizes[0], sizes[1], sizes[2]), (unit, unit, unit), reason)


def _lowest(levels: Levels) -> list[int]:
    return [size // unit for size, unit in zip(levels.patch, levels.divisors, strict=True)]


def _short(step: Triple) -> int | list[int]:
    """One number where all axes have the same."""
    return step[0] if len(set(step)) == 1 else list(step)
