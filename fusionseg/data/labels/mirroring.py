"""Labels that are mirror images of each other: the exchange of classes and outputs by a left-right flip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.utils.errors import UserError, some_of, suggest

KEY = "augment.mirror_pairs"
LEFT_RIGHT = 0
"""The left-right axis of prepared volumes: `data.orientation` begins with R or L."""

Pairs = Sequence[Sequence[str]]


def mirrored_classes(pairs: Pairs, scheme: LabelScheme) -> tuple[int, ...]:
    """For each class, the index of its mirror image.

    Args:
        pairs: of class names, `augment.mirror_pairs`.
        scheme: of the data set.

    Raises:
        UserError: there is no class of a name; with all such names.
    """
    names = scheme.names
    unknown = sorted({name for pair in pairs for name in pair if name not in names[1:]})
    if unknown:
        raise UserError(
            [f"{KEY}: there is no class {name!r} in the data set; {suggest(name, names[1:])}" for name in unknown]
        )
    image = list(range(len(names)))
    for first, second in pairs:
        a, b = names.index(first), names.index(second)
        image[a], image[b] = b, a
    return tuple(image)


def mirrored_outputs(pairs: Pairs, scheme: LabelScheme) -> tuple[int, ...] | None:
    """For each output of a network, the output of a mirrored image that means the same.

    Args:
        pairs: of class names, `augment.mirror_pairs`.
        scheme: of the data set that the network was trained on.

    Returns:
        None if a region has no mirror image among the regions: it holds one label of a pair without the other.
    """
    if not scheme.sigmoid:
        return mirrored_classes(pairs, scheme)
    found = mirror_images(pairs, scheme)
    known = tuple(output for output in found if output is not None)
    return known if len(known) == len(found) else None


def mirror_images(pairs: Pairs, scheme: LabelScheme) -> list[int | None]:
    """For each of `scheme.output_names`, the index of the output that is its mirror image; None if none is.

    Args:
        pairs: of class names, `augment.mirror_pairs`.
        scheme: of the data set.
    """
    image = mirrored_classes(pairs, scheme)
    rows = scheme.membership.tolist()
    found = [[row[k] for k in image] for row in rows]
    return [rows.index(row) if row in rows else None for row in found]


def unpaired_sides(names: Sequence[str]) -> list[tuple[str, str]]:
    """List the pairs of names that differ in left and right alone, such as kidney_left and kidney_right.

    Args:
        names: of the classes.
    """
    return [(name, mirror) for name in names for mirror in _right_of(name) if mirror in names]


def side_hint(names: Sequence[str]) -> str:
    """A warning about classes with a side in a training that flips left and right; empty if there are none.

    Args:
        names: of the classes.
    """
    pairs = unpaired_sides(names)
    if not pairs:
        return ""
    written = ", ".join(f"[{left}, {right}]" for left, right in pairs)
    return (
        f"augment.flip: flips left and right, and {some_of([left for left, _ in pairs])} would be learned as the other"
        f" side too; add augment.mirror_pairs: [{written}], or flip the other axes only: flip: {{axes: [y, z]}}"
    )


def _right_of(name: str) -> Iterator[str]:
    """The names in which each word left of a name is right."""
    for found in re.finditer(r"(?<![a-z])(left|lt|lh|l)(?![a-z])", name, re.IGNORECASE):
        word = found[0]
        other = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"}[word.lower()]
        shown = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        yield name[: found.start()] + shown + name[found.end() :]
