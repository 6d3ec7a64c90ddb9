"""Settings with one entry for each level of a network: a number for all three axes, or one number for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fusionseg.config.section import Triple

PerLevel = Annotated[tuple[int | Triple, ...], Field(strict=False)]
"""One entry for each level: a number for all three axes, or one number for each axis."""


def per_axis(levels: tuple[int | Triple, ...]) -> tuple[Triple, ...]:
    """Return the entries with one number for each axis."""
    return tuple((entry, entry, entry) if isinstance(entry, int) else entry for entry in levels)


def levels_problem(
    widths: Sequence[int], kernels: tuple[Triple, ...], strides: tuple[Triple, ...], key: str
) -> str | None:
    """Return the first problem of the levels of a network of at least three; None if there is none.

    Args:
        widths: channels of each level.
        kernels: kernel of each level along each axis.
        strides: down-sampling factor from each level to the next one along each axis.
        key: key of the widths, for the message.
    """
    levels = len(widths)
    if levels < 3 or min(widths) < 1:
        return f"{key}: expected at least three levels of at least one channel, got {list(widths)}"
    return kernels_problem(kernels, levels, key) or strides_problem(strides, levels, key)


def kernels_problem(kernels: tuple[Triple, ...], levels: int, key: str) -> str | None:
    """Return the problem of kernels that are not odd or not one for each level; None if there is none.

    Args:
        kernels: kernel of each level along each axis.
        levels: number of levels.
        key: key that has one entry for each level, for the message.
    """
    if len(kernels) == levels and all(size > 0 and size % 2 for size in sum(kernels, ())):
        return None
    return (
        f"kernels: expected {levels} odd numbers or triples of them, one for each of the {key}, got {listed(kernels)}"
    )


def strides_problem(strides: tuple[Triple, ...], levels: int, key: str) -> str | None:
    """Return the problem of strides other than 1 and 2, or that are not one fewer than levels; None if there is none.

    Args:
        strides: down-sampling factor from each level to the next one along each axis.
        levels: number of levels.
        key: key that has one entry for each level, for the message.
    """
    if len(strides) == levels - 1 and all(step in (1, 2) for step in sum(strides, ())):
        return None
    return (
        f"strides: expected {levels - 1} entries, one fewer than {key}, each 1 or 2 or a triple of them, got"
        f" {listed(strides)}"
    )


def listed(levels: tuple[Triple, ...]) -> list[int | list[int]]:
    """Return the entries as in a configuration: one number where the three axes agree."""
    return [triple[0] if len(set(triple)) == 1 else list(triple) for triple in levels]
