"""Labels that are mirror images of each other: the exchange of classes and outputs by a left-right flip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import yaml

from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.utils.errors import UserError, some_of

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
            [f"{KEY}: there is no class {name!r} in the data set; {scheme.valid_classes(name)}" for name in unknown]
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


def side_hint(pairs: Pairs, scheme: LabelScheme) -> str:
    """A warning about outputs with a side in a training that flips left and right; empty if all of them are exchanged.

    Args:
        pairs: of class names, `augment.mirror_pairs`.
        scheme: of the data set.
    """
    used = {name for pair in pairs for name in pair}
    images, outputs = mirror_images(pairs, scheme), scheme.output_names
    sides = _sides([name for name in outputs if scheme.is_regions or name not in used])
    mixed = [(left, right) for left, right in sides if images[outputs.index(left)] != outputs.index(right)]
    if not mixed:
        return ""
    missing = [list(pair) for pair in _sides([name for name in scheme.names[1:] if name not in used])]
    if missing:
        # As YAML, so that a name with a comma or a colon has its quotes.
        written = yaml.safe_dump(missing, default_flow_style=True, allow_unicode=True, width=float("inf")).strip()
        remedy = f"add {KEY}: {written}" if not pairs else f"add {written[1:-1]} to {KEY}"
    else:
        left, right = mixed[0]
        shown = " and ".join(f"{name} ({', '.join(_classes_of(name, scheme))})" for name in (left, right))
        remedy = f"pair the classes of these regions in {KEY}: {shown}"
    return (
        f"augment.flip: flips left and right, and {some_of([left for left, _ in mixed])} would be learned as the other"
        f" side too; {remedy}, or flip the other axes only: flip: {{axes: [y, z]}}"
    )


def side_pairs(scheme: LabelScheme) -> list[tuple[str, str]]:
    """List the pairs of classes whose names differ in left and right alone: kidney_left and kidney_right.

    Args:
        scheme: of the data set.
    """
    return _sides(scheme.names[1:])


def _sides(names: Sequence[str]) -> list[tuple[str, str]]:
    """List the pairs of names that differ in left and right alone, each name once: kidney_left and kidney_right."""
    found: list[tuple[str, str]] = []
    for name in names:
        for mirror in _right_of(name):
            if mirror in names and not any({name, mirror} & set(pair) for pair in found):
                found.append((name, mirror))
    return found


def _classes_of(output: str, scheme: LabelScheme) -> list[str]:
    row = scheme.membership[scheme.output_names.index(output)]
    return [name for name, belongs in zip(scheme.names, row, strict=True) if belongs]


def _right_of(name: str) -> Iterator[str]:
    """The names in which each word left of a name is right."""
    for found in re.finditer(r"(?<![a-z])(left|lt|lh|l)(?![a-z])", name, re.IGNORECASE):
        word = found[0]
        other = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"}[word.lower()]
        shown = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        yield name[: found.start()] + shown + name[found.end() :]
