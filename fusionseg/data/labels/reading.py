"""The label scheme of a data set, from its JSON and the keys of a configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusionseg.config.data.labels import LabelSettings, Members
from fusionseg.data.labels.scheme import MAX_CLASSES, MAX_VALUE, LabelClass, LabelScheme, Region, ranges
from fusionseg.data.labels.statement import IGNORED_NAME, LabelStatement, Values, read_statement, value_name
from fusionseg.utils.errors import suggest


@dataclass(frozen=True)
class ReadLabels:
    """The labels of a data set.

    Args:
        scheme: with softmax outputs if nothing asks for others.
        values_of: the file values of each name that the data set or the configuration states.
    """

    scheme: LabelScheme
    values_of: Mapping[str, Values]


def read_labels(
    content: Mapping[str, Any],
    settings: LabelSettings,
    source: Path,
    problems: list[str],
    *,
    labelled: bool,
    found_values: Callable[[], str] = str,
) -> ReadLabels:
    """Read the label scheme of a data set.

    Args:
        content: of the JSON file.
        settings: the keys of the configuration, which take precedence.
        source: the JSON file.
        problems: gets everything that cannot be used.
        labelled: whether the data set has label files.
        found_values: describes the values that the label files hold, for the message about missing names; empty if they
            cannot be read.
    """
    where = f"{source}: labels" if settings.labels is None else "data.labels"
    stated = content.get("labels") if settings.labels is None else settings.labels
    before = len(problems)
    statement = read_statement(stated, where, problems)
    nothing_stated = statement.is_empty
    if nothing_stated and (len(problems) > before or (settings.classes is None and settings.regions is None)):
        if labelled and len(problems) == before:
            lacking = f"{where}: there is no class except the background" if stated else f"{source}: names no labels"
            problems.append(_no_names(lacking, found_values()))
        return ReadLabels(_scheme(statement.classes, statement.ignore), statement.values_of)
    reader = _SettingsReader(statement, settings, problems, values_are_free=nothing_stated)
    ignore = reader.ignore()
    if ignore is None:
        ignore = statement.ignore
    classes = reader.classes()
    if len(classes) < 2 and labelled and len(problems) == before:
        problems.append(f"data.ignore: {ignore} is the only class; choose the value of voxels without annotation")
    regions = reader.regions(classes)
    order_key = f"{source}: regions_class_order"
    order: Any = content.get("regions_class_order") if settings.labels is None else None
    if settings.regions is not None or settings.regions_class_order is not None:
        order_key, order = "data.regions_class_order", settings.regions_class_order
    scheme = _scheme(classes, ignore, rest_is_background=nothing_stated and settings.classes is not None)
    values_of = {**statement.values_of, **regions, **classes}
    if regions:
        made = _regions(scheme, regions, problems)
        if len(problems) == before:
            scheme = _with_order(scheme, made, order, order_key, problems)
    elif settings.regions_class_order is not None:
        problems.append("data.regions_class_order: there are no regions; state data.regions, or remove it")
    problems += _same_names(where if settings.classes is None else "data.classes", list(classes))
    problems += _same_names("data.regions", [next(iter(classes)), *regions])
    if len(classes) > MAX_CLASSES:
        problems.append(
            f"{where}: there are {len(classes)} classes (expected {MAX_CLASSES} at most, one byte a voxel); choose or"
            " merge some by data.classes"
        )
    return ReadLabels(scheme, values_of)


def _same_names(where: str, names: Sequence[str]) -> list[str]:
    """A message for names that differ in upper and lower case or in spaces only: data sets are matched without them."""
    found: dict[str, str] = {}
    return [
        f"{where}: {name!r} and {same!r} are one name in another spelling; rename one of them"
        for name in names
        if (same := found.setdefault(" ".join(name.split()).casefold(), name)) != name
    ]


def _no_names(lacking: str, values: str) -> str:
    found = f" ({values})" if values else ""
    return (
        f"{lacking}{found}; name the values 0, 1, ... with data.labels=[background,tumour], any values with"
        " data.labels={background: 0, tumour: 4}, or choose some with data.classes={tumour: 4}"
    )


class _SettingsReader:
    """Reads the keys of the configuration that choose, merge and ignore labels.

    Args:
        statement: the names of the values; the reader changes it.
        settings: the keys.
        problems: gets everything that cannot be used.
        values_are_free: no names are stated, so that any value may be used.
    """

    def __init__(
        self, statement: LabelStatement, settings: LabelSettings, problems: list[str], *, values_are_free: bool
    ) -> None:
        self.statement, self.settings, self.problems = statement, settings, problems
        self.values_are_free = values_are_free
        self.values_of = statement.values_of

    def ignore(self) -> int | None:
        """The value of `data.ignore`; a class that has this value alone is no class any more."""
        given = self.settings.ignore
        if given is None:
            return None
        values = (given,) if isinstance(given, int) else self._values("data.ignore", given)
        if len(values) != 1 or not 0 < values[0] <= MAX_VALUE:
            if values:
                self.problems.append(
                    f"data.ignore: expected one value from 1 to {MAX_VALUE} (0 is the background), got {given!r};"
                    " choose the value of voxels without annotation"
                )
            return None
        value = values[0]
        for name, of_class in list(self.statement.classes.items()):
            if value in of_class and of_class[0] != 0:
                del self.statement.classes[name]
        for name, of_region in self.statement.regions.items():
            if value in of_region and self.settings.regions is None and self.settings.classes is None:
                self.problems.append(
                    f"data.ignore: the region {name} has the value {value}; take it out of one of the two"
                )
        self.statement.ignore = value
        return value

    def classes(self) -> dict[str, Values]:
        """The classes of `data.classes`, or those of the data set; the background is the first."""
        background = next(iter(self.statement.classes))
        if self.settings.classes is None:
            if self.values_are_free and self.settings.regions is not None:
                return self._classes_of_regions(background)
            return dict(self.statement.classes)
        chosen = self._groups("data.classes", self.settings.classes, background)
        chosen.pop(background, None)
        taken = {value for values in chosen.values() for value in values}
        every = {value for values in self.statement.classes.values() for value in values} | {
            value for values in self.statement.regions.values() for value in values
        }
        rest = sorted(every - taken - {0, self.statement.ignore})
        if not self.settings.classes:
            self.problems.append("data.classes: is empty; name at least one class")
        return {background: (0, *rest), **chosen}

    def regions(self, classes: Mapping[str, Values]) -> dict[str, Values]:
        """The values of each region of `data.regions`, or of the data set's regions if no classes are chosen."""
        if self.settings.regions is None:
            return {} if self.settings.classes is not None else dict(self.statement.regions)
        self.values_of = {**self.values_of, **classes}
        regions = self._groups("data.regions", self.settings.regions, next(iter(classes)), overlap=True)
        if not self.settings.regions:
            self.problems.append("data.regions: is empty; name at least one region, or remove it")
        return regions

    def _classes_of_regions(self, background: str) -> dict[str, Values]:
        """A class for each value of `data.regions`, where no values have names."""
        groups = (self.settings.regions or {}).values()
        members = {member for group in groups for member in group if isinstance(member, int)}
        members -= {0, self.statement.ignore if self.statement.ignore is not None else 0}
        return {background: (0,), **{value_name(value): (value,) for value in sorted(members)}}

    def _groups(
        self, key: str, groups: Mapping[str, Members], background: str, *, overlap: bool = False
    ) -> dict[str, Values]:
        """The values of each group of labels, checked; groups with a problem are left out."""
        found: dict[str, Values] = {}
        owners: dict[int, list[str]] = defaultdict(list)
        for name, members in groups.items():
            before = len(self.problems)
            values = tuple(
                dict.fromkeys(
                    value
                    for member in members
                    for value in ((member,) if isinstance(member, int) else self._values(f"{key}.{name}", member))
                )
            )
            self._check_group(f"{key}.{name}", name, values, members, background)
            if len(self.problems) == before:
                found[name] = values
            for value in values:
                owners[value].append(name)
        for value, names in sorted(owners.items()):
            if len(names) > 1 and not overlap:
                self.problems.append(
                    f"{key}: {' and '.join(names)} have the label {self._name_of(value)}; give each label to one class"
                    " (data.regions may overlap)"
                )
        return found

    def _check_group(self, where: str, name: str, values: Values, members: Members, background: str) -> None:
        stated = self.statement
        if not name.strip():
            self.problems.append(f"{where}: the name is empty; give it a name")
        if name == IGNORED_NAME:
            self.problems.append(f"{where}: is no class; set data.ignore to the value of voxels without annotation")
            return
        if not members:
            self.problems.append(f"{where}: has no label; name the labels that belong to it, or remove it")
        if 0 in values and name != background:
            self.problems.append(f"{where}: has the value 0, which is the background; take it out")
        if stated.ignore is not None and stated.ignore in values:
            self.problems.append(
                f"{where}: has the value {stated.ignore}, which is the ignore label; take it out of one of the two"
            )
        known = {value for of_name in self.values_of.values() for value in of_name} | {stated.ignore}
        unknown = [value for value in values if not 0 <= value <= MAX_VALUE]
        if not self.values_are_free:
            unknown = [value for value in values if value not in known]
        if unknown:
            allowed = sorted(value for value in known if value is not None)
            expected = f"0 to {MAX_VALUE}" if self.values_are_free else ranges(allowed)
            self.problems.append(
                f"{where}: no label has the value {', '.join(map(str, unknown))} (expected {expected}); correct it"
            )

    def _values(self, where: str, name: str) -> Values:
        """The values of a name; a problem if there is no such name."""
        if name in self.values_of:
            return self.values_of[name]
        names = [known for known in self.values_of if 0 not in self.values_of[known]]
        hint = suggest(name, names) if names else "the data set names no labels, give values of the label files"
        self.problems.append(f"{where}: no label is named {name!r}; {hint}")
        return ()

    def _name_of(self, value: int) -> str:
        return next((f"{name} ({value})" for name, of in self.statement.classes.items() if value in of), str(value))


def _scheme(classes: Mapping[str, Values], ignore: int | None, *, rest_is_background: bool = False) -> LabelScheme:
    return LabelScheme(
        tuple(LabelClass(name, values) for name, values in classes.items()),
        ignore,
        rest_is_background=rest_is_background,
    )


def _regions(scheme: LabelScheme, regions: Mapping[str, Values], problems: list[str]) -> tuple[Region, ...]:
    """The regions by the indices of their classes, without the order of painting."""
    made: dict[tuple[int, ...], Region] = {}
    for name, values in regions.items():
        classes = []
        if outside := sorted(set(values).intersection(scheme.classes[0].values)):
            problems.append(
                f"data.regions.{name}: has {ranges(outside)}, which is no class by data.classes; add a class with it,"
                " or take it out"
            )
        for index, label in enumerate(scheme.classes[1:], 1):
            inside = set(values).intersection(label.values)
            if not inside:
                continue
            classes.append(index)
            if missing := sorted(set(label.values) - inside):
                problems.append(
                    f"data.regions.{name}: has {ranges(sorted(inside))} of the class {label.name} and not"
                    f" {ranges(missing)}; give a region all values of a class, or do not merge them in data.classes"
                )
        region = Region(name, tuple(classes), 0)
        same = made.setdefault(region.classes, region)
        if same is not region:
            problems.append(f"{name} and {same.name} are the same region ({ranges(values)}); remove one of them")
    return tuple(made.values())


def _with_order(
    scheme: LabelScheme, regions: tuple[Region, ...], order: Any, key: str, problems: list[str]
) -> LabelScheme:
    """The scheme with its regions, and the value that is painted for each of them."""
    values = _painted_values(scheme, regions) if order is None else order
    if values is None:
        problems.append(
            f"{key}: is missing, and follows from the regions only if they lie in each other, the largest first; state"
            f" the value to paint for each of {', '.join(region.name for region in regions)}"
        )
        return scheme
    known = {value for label in scheme.classes for value in label.values}
    taken = {0, scheme.ignore}
    if not isinstance(values, list | tuple) or not all(
        type(value) is int and 0 < value <= MAX_VALUE and value not in taken for value in values
    ):
        problems.append(
            f"{key} is {values!r}; give values from 1 to {MAX_VALUE} that are not the ignore label, one for each region"
        )
        return scheme
    if len(values) != len(regions):
        problems.append(
            f"{key}: expected {len(regions)} values, one for each of {', '.join(region.name for region in regions)},"
            f" got {list(values)}"
        )
        return scheme
    if new := sorted(value for value in set(values) - known if list(values).count(value) > 1):
        problems.append(
            f"{key} is {list(values)}; {new[0]} is no label, and several regions would be painted with it: give each of"
            " them a value of its own"
        )
        return scheme
    painted = tuple(Region(region.name, region.classes, value) for region, value in zip(regions, values, strict=True))
    return LabelScheme(scheme.classes, scheme.ignore, painted, scheme.rest_is_background)


def _painted_values(scheme: LabelScheme, regions: tuple[Region, ...]) -> list[int] | None:
    """For each region, the value of its first class that no later region has; None if that loses information.

    Painting has to give back a value with the same regions for every class.
    """
    values: list[int] = []
    for position, region in enumerate(regions):
        later = {index for other in regions[position + 1 :] for index in other.classes}
        own = [index for index in region.classes if index not in later]
        if not own:
            return None
        values.append(scheme.classes[own[0]].values[0])
    painted = LabelScheme(
        scheme.classes,
        regions=tuple(
            Region(region.name, region.classes, value) for region, value in zip(regions, values, strict=True)
        ),
    )
    membership = painted.membership
    indices = painted.to_indices(painted.paint(membership))
    return values if np.array_equal(membership[:, indices], membership) else None
