"""Keys of the section `data` about the split and the columns: types of their values, and impossible combinations."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

ALL: Literal["all"] = "all"
"""The value of `data.fold` that trains on every case and validates none."""
SPLIT_KEYS = ("splits", "table", "group", "stratify", "weight", "target")
"""Keys of the section that its dump leaves out where they have their defaults."""
AUTO, NONE = "auto", "none"
"""Values of `data.splits` that name no file."""
HELD_OUT = "held_out"
"""The value that stands for the name of a group in files that are published."""
CLASSES = "classes"
"""The value of `data.stratify` that balances the classes of the labels."""


def is_pattern(group: str) -> bool:
    """Tell whether `data.group` is a regular expression on the names of the cases. Otherwise it is a column."""
    return "(" in group


def anonymous_fold(fold: int | str) -> int | str:
    """The value of `data.fold` with "held_out" in place of the name of a group, which may be that of a patient.

    Args:
        fold: a number, "all", or the name of a group.
    """
    return HELD_OUT if isinstance(fold, str) and fold != ALL else fold


def _known_fold(value: Any) -> Any:
    is_index = isinstance(value, int) and not isinstance(value, bool)
    if not is_index and not (isinstance(value, str) and value.strip()):
        quotes = "; put a name in quotes" if isinstance(value, bool | float) else ""  # NO is a country, and false
        raise ValueError(
            f"expected the number of a fold, all, or the name of a group (data.group), got {value!r}{quotes}"
        )
    if is_index and value < 0:
        raise ValueError(f"expected a value of at least 0, got {value}")
    return value


def _group_pattern(value: str | None) -> str | None:
    if value is None or not is_pattern(value):
        return value
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression ({error}); correct it") from None
    if groups != 1:
        raise ValueError(
            f"expected a regular expression with one group in parentheses, such as ^(patient\\d+)_, got {value!r} with"
            f" {groups}; write (?:...) around parts that are not the name of the group"
        )
    return value


def _some_text(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError("is empty; remove the key")
    return value


Fold = Annotated[Annotated[int, Field(ge=0)] | str, BeforeValidator(_known_fold)]
Text = Annotated[str, AfterValidator(_some_text)]
Group = Annotated[Text, AfterValidator(_group_pattern)]


def split_problems(
    *,
    fold: int | str,
    folds: int,
    splits: str,
    table: str | None,
    group: str | None,
    stratify: str | None,
    weight: str | None,
    target: str | None,
) -> list[str]:
    """List the combinations of keys of the section that ask for two splits at once, with the fixes."""
    problems = []
    held_out = isinstance(fold, str) and fold != ALL
    from_file = splits not in (AUTO, NONE)
    if held_out and group is None:
        problems.append(
            f"fold: {fold!r} is the name of a group, and there are no groups (expected the number of a fold, or"
            " all); set data.group to the column that has the groups, or correct data.fold"
        )
    if isinstance(fold, str) and folds == 1:
        problems.append(f"folds: 1 trains and validates on the same cases, and data.fold is {fold}; remove one of them")
    if from_file and held_out:
        problems.append(
            f"splits: the folds of a file have numbers, and data.fold is {fold!r}; remove data.splits, or set"
            " data.fold to a number"
        )
    if from_file and folds == 1:
        problems.append("splits: data.folds=1 trains and validates on the same cases; remove one of them")
    if stratify is not None:
        other = {"data.splits states the folds": from_file, "data.fold names a group": held_out}
        other["data.folds=1 draws no folds"] = folds == 1
        problems += [f"stratify: has no effect, because {why}; remove it" for why, applies in other.items() if applies]
    columns = [key for key in (stratify, weight, target) if key not in (None, CLASSES)]
    if table is not None and not columns and (group is None or is_pattern(group)):
        problems.append("table: no key names a column of it; set group, stratify, weight or target, or remove it")
    return problems
