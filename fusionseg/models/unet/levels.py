"""Checks of the levels of a U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationInfo

from fusionseg.config.section import Section, is_recorded

AnySection = TypeVar("AnySection", bound=Section)


def at_least_two_levels(channels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the channels of the levels, if there are at least two levels of at least one channel.

    Raises:
        ValueError: there are fewer levels or channels.
    """
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"expected at least two levels of at least one channel, got {list(channels)}")
    return channels


def with_possible_heads(
    section: AnySection,
    info: ValidationInfo,
    *,
    deep_supervision: bool,
    levels: Mapping[str, Sequence[int]],
    fewest: int,
) -> AnySection:
    """Return the section of a network, if its deep supervision has a head at a lower resolution.

    The section of an older run may have none; it is returned without deep supervision, which is the same network.

    Args:
        section: the section.
        info: of the validation.
        deep_supervision: its key of this name.
        levels: the key with one entry for each level, and its value.
        fewest: number of levels from which on a network of the family has such a head.

    Raises:
        ValueError: it has deep supervision and too few levels.
    """
    ((key, entries),) = levels.items()
    if not deep_supervision or len(entries) >= fewest:
        return section
    if is_recorded(info):
        return section.model_copy(update={"deep_supervision": False})
    raise ValueError(
        f"deep_supervision: needs at least {fewest} levels to have a head at a lower resolution, got {key}"
        f" {list(entries)}; set it to false, or add a level"
    )
