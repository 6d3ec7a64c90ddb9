"""The flips of test-time augmentation: those that a network was trained with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from fusionseg.config.data.spatial import AXES
from fusionseg.data.labels.mirroring import LEFT_RIGHT, mirrored_outputs
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Flip:
    """A flip of test-time augmentation."""

    axes: tuple[int, ...]
    """The axes of a prepared volume that are flipped."""
    outputs: tuple[int, ...] | None
    """For each output, the output of the flipped image that means the same; None if no output changes."""


UNFLIPPED = Flip((), None)


def flips_of_members(members: Sequence[TrainedNetwork]) -> list[list[Flip]]:
    """List for each network the flips over which its prediction is averaged; the first one changes nothing.

    They are the flips of the axes that its training flips. If an output has no mirror image, left and right are not
    flipped. Labels of the left and the right side are exchanged as `augment.mirror_pairs` says. The axes that are not
    flipped are logged.

    Args:
        members: the networks of an ensemble, or one.

    Raises:
        UserError: no axis is flipped for any member.
    """
    found = [_flipped_axes(member) for member in members]
    reasons = {str(member.path): reason for member, (_, reason) in zip(members, found, strict=True) if reason}
    if not any(axes for axes, _ in found):
        shown = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        raise UserError(f"--tta (flips=True): there is no flip to average over ({shown}); predict without it")
    for path, reason in reasons.items():
        log.info("%s: %s", path, reason)
    return [flips_of(member) for member in members]


def flips_of(member: TrainedNetwork) -> list[Flip]:
    """List the flips of one network; see `flips_of_members`."""
    axes, _ = _flipped_axes(member)
    pairs = member.config.augment.mirror_pairs
    outputs = mirrored_outputs(pairs, member.scheme) if pairs else None
    flips = []
    for chosen in product((False, True), repeat=len(axes)):
        flipped = tuple(axis for axis, used in zip(axes, chosen, strict=True) if used)
        flips.append(Flip(flipped, outputs if LEFT_RIGHT in flipped else None))
    return flips


def _flipped_axes(member: TrainedNetwork) -> tuple[list[int], str]:
    """The axes that are flipped for a network, and the reason why others are not; empty if none."""
    augment = member.config.augment
    if augment.flips.prob == 0:
        return [], "augment.flip is 0 in its training, so the network has not seen flipped images"
    axes = [axis for axis, name in enumerate(AXES) if name in augment.flips.axes]
    if LEFT_RIGHT not in axes:
        return axes, "left and right are not flipped: augment.flip.axes of its training has no x"
    if augment.mirror_pairs and mirrored_outputs(augment.mirror_pairs, member.scheme) is None:
        axes.remove(LEFT_RIGHT)
        return axes, (
            "left and right are not flipped: a region holds one label of a pair of augment.mirror_pairs, and no region"
            " is its mirror image"
        )
    return axes, ""
