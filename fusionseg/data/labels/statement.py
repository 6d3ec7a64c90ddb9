"""The names of label values, as a data set's JSON or the key `data.labels` states them.

Three forms are read: a list of names for the values 0, 1, ...; value -> name, as in the Medical Segmentation Decathlon;
and name -> value, as in nnU-Net. A name with several values is a region of nnU-Net, and the name `ignore` is its ignore
label.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusionseg.data.labels.scheme import BACKGROUND, MAX_VALUE

IGNORED_NAME = "ignore"
"""The name of the ignore label in nnU-Net's dataset.json."""
FORMS = 'write {"background": 0, "tumour": 1}, or {"0": "background", "1": "tumour"}'

Values = tuple[int, ...]


@dataclass
class LabelStatement:
    """The names of the values of a data set.

    Args:
        classes: name -> values; each value belongs to one class. The background is the first.
        regions: name -> values, in the order of the statement; empty without regions.
        ignore: the value of voxels that are not annotated.
    """

    classes: dict[str, Values] = field(default_factory=lambda: {BACKGROUND: (0,)})
    regions: dict[str, Values] = field(default_factory=dict)
    ignore: int | None = None

    @property
    def is_empty(self) -> bool:
        """True if no value but the background has a name."""
        return len(self.classes) < 2 and not self.regions

    @property
    def values_of(self) -> dict[str, Values]:
        """The values of each name, regions included."""
        return {**self.regions, **self.classes}


def read_statement(stated: Any, where: str, problems: list[str]) -> LabelStatement:
    """Read the names of label values.

    Args:
        stated: the entry of the JSON or the key of the configuration; None or empty for none.
        where: the entry or key, for the messages.
        problems: gets the entries that cannot be read.

    Returns:
        The names; those with a problem are left out.
    """
    if not stated:
        return LabelStatement()
    pairs = _pairs(stated)
    if pairs is None:
        problems.append(f"{where} is {stated!r}; {FORMS}")
        return LabelStatement()
    found = len(problems)
    for name, values in pairs:
        _check_entry(name, values, where, problems)
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            problems.append(f"{where}: {name} names several values; give each its own name (data.classes merges them)")
    if len(problems) > found:
        return LabelStatement()
    names = dict(pairs)
    ignored = names.pop(IGNORED_NAME, None)
    if ignored is not None and (len(ignored) > 1 or ignored == (0,)):
        problems.append(f"{where}: {IGNORED_NAME} is {list(ignored)} (expected one value above 0); correct it")
        ignored = None
    background, values = _take_background(names, where, problems)
    statement = LabelStatement({background: values}, ignore=None if ignored is None else ignored[0])
    if any(len(values) > 1 for values in names.values()):
        _add_regions(statement, names, where, problems)
    else:
        _add_classes(statement, names, where, problems)
    return statement


def _pairs(stated: Any) -> list[tuple[str, Values]] | None:
    """The names with their values; None if the entry has another form."""
    if isinstance(stated, list | tuple):
        return [(str(name), (value,)) for value, name in enumerate(stated)]
    if not isinstance(stated, Mapping):
        return None
    if all(_value(value) is not None and isinstance(name, str) for value, name in stated.items()):
        return [(name, _values(value) or ()) for value, name in stated.items()]
    pairs = [(name, _values(values)) for name, values in stated.items()]
    if any(values is None or not isinstance(name, str) for name, values in pairs):
        return None
    return [(name, values or ()) for name, values in pairs]


def _value(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if type(value) is int else None


def _values(given: Any) -> Values | None:
    """One value or a list of them as a tuple without repetitions; None if it is anything else."""
    values = [_value(value) for value in (given if isinstance(given, list | tuple) else [given])]
    if any(value is None for value in values):
        return None
    return tuple(dict.fromkeys(value for value in values if value is not None))


def _check_entry(name: str, values: Values, where: str, problems: list[str]) -> None:
    if not name.strip():
        problems.append(f"{where}: the value {', '.join(map(str, values))} has an empty name; give it a name")
    if not values:
        problems.append(f"{where}: {name} has no value; give it one, or take it out")
    if wrong := [value for value in values if not 0 <= value <= MAX_VALUE]:
        problems.append(f"{where}: {name} has the value {wrong[0]} (expected 0 to {MAX_VALUE}); correct it")


def _take_background(names: dict[str, Values], where: str, problems: list[str]) -> tuple[str, Values]:
    """Take the name of the value 0 out of the names; it may have further values."""
    zeros = [name for name, values in names.items() if 0 in values]
    if len(zeros) > 1:
        problems.append(f"{where}: {' and '.join(zeros)} have the value 0, which is the background; correct one")
    background = zeros[0] if zeros else BACKGROUND
    values = names.get(background, ()) if zeros else ()
    if not zeros and BACKGROUND in names:
        background = "0"
        problems.append(
            f"{where}: {BACKGROUND} is {list(names[BACKGROUND])}, and 0 is the background in every label file; rename"
            " it"
        )
    for name in zeros:
        del names[name]
    return background, (0, *sorted(value for value in values if value))


def _add_classes(statement: LabelStatement, names: dict[str, Values], where: str, problems: list[str]) -> None:
    """Add classes that exclude each other, in the order of their values."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, values in names.items():
        for value in values:
            owners[value].append(name)
    taken = {value: next(iter(statement.classes)) for value in next(iter(statement.classes.values()))}
    if statement.ignore is not None:
        taken[statement.ignore] = IGNORED_NAME
    for value, found in sorted(owners.items()):
        if value in taken:
            found = [taken[value], *found]
        if len(found) > 1:
            problems.append(f"{where}: {' and '.join(found)} have the value {value}; give each value once")
    statement.classes |= dict(sorted(names.items(), key=lambda item: item[1]))


def _add_regions(statement: LabelStatement, names: dict[str, Values], where: str, problems: list[str]) -> None:
    """Add regions, and a class for each value that belongs to one."""
    statement.regions = names
    own = {values[0]: name for name, values in names.items() if len(values) == 1}
    background = next(iter(statement.classes.values()))
    for name, values in names.items():
        if statement.ignore in values:
            problems.append(
                f"{where}: the region {name} has the value {statement.ignore}, which is the ignore label; take it out"
                " of one of the two"
            )
        if merged := sorted(set(values).intersection(background)):
            problems.append(f"{where}: the region {name} has the value {merged[0]} of the background; take it out")
    every = sorted({value for values in names.values() for value in values})
    statement.classes |= {own.get(value, value_name(value)): (value,) for value in every}


def value_name(value: int) -> str:
    """The name of a class that has none: a value that only belongs to regions."""
    return f"value {value}"
