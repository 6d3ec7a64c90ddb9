"""Messages about patch sizes that a network cannot use, with the nearest possible patch."""

from __future__ import annotations

from math import prod

from fusionseg.config.section import Triple


def multiple_problem(name: str, patch: Triple, multiple: int) -> str | None:
    """Return the problem of a patch for a network whose lowest level has 1 / `multiple` of the resolution.

    Args:
        name: name of the network.
        patch: X, Y, Z in voxels.
        multiple: the patch must be a multiple of it, and at least twice as large along one axis.
    """
    too_small = max(patch) < 2 * multiple  # a norm over a single voxel is not possible
    if not any(size % multiple for size in patch) and not too_small:
        return None
    fixed = [max(multiple, round(size / multiple) * multiple) for size in patch]
    if max(fixed) < 2 * multiple:
        fixed[patch.index(max(patch))] = 2 * multiple
    return (
        f"data.patch: {name} with these levels needs multiples of {multiple}, at least {2 * multiple} in one"
        f" axis, not {list(patch)}: try {fixed}"
    )


def axes_problem(name: str, patch: Triple, multiples: Triple, *, least: int = 1) -> str | None:
    """Return the problem of a patch for a network whose lowest level has 1 / `multiples` of the resolution.

    Args:
        name: name of the network.
        patch: X, Y, Z in voxels.
        multiples: factor along each axis.
        least: voxels that the lowest level must have.
    """
    at_bottom = [max(1, round(size / unit)) for size, unit in zip(patch, multiples, strict=True)]
    too_small = prod(at_bottom) < least
    if too_small:
        at_bottom[patch.index(max(patch))] = least
    fixed = [count * unit for count, unit in zip(at_bottom, multiples, strict=True)]
    if fixed == list(patch):
        return None
    shown = str(multiples[0]) if len(set(multiples)) == 1 else f"{list(multiples)}"
    more = ", at least twice that in one axis" if least > 1 else ""
    return f"data.patch: {name} needs multiples of {shown}{more}, not {list(patch)}: try {fixed}"
