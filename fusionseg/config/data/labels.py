"""Keys of the section `data` about the label files: the meaning of their values, classes, regions, annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

Outputs = Literal["auto", "softmax", "sigmoid"]
Members = tuple[int | str, ...]
"""Classes, each by its name or by a file value."""
LABEL_KEYS = ("classes", "regions", "regions_class_order", "ignore", "annotated", "outputs")
"""The keys about labels that a dump leaves out while they have their default."""


@dataclass(frozen=True)
class LabelSettings:
    """The keys of a configuration about the labels of a data set; for the fields see `DataConfig`."""

    labels: tuple[str, ...] | Mapping[str, tuple[int, ...]] | None = None
    classes: Mapping[str, Members] | None = None
    regions: Mapping[str, Members] | None = None
    regions_class_order: tuple[int, ...] | None = None
    ignore: int | str | None = None
    annotated: Mapping[str, tuple[str, ...]] | None = None
    outputs: Outputs = "auto"

    @property
    def has_values(self) -> bool:
        """True if the settings name values of files, which mean something else in another data set."""
        members = [*(self.classes or {}).values(), *(self.regions or {}).values(), (self.ignore,)]
        return any(isinstance(member, int) for group in members for member in group)


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_labels(raw: Any) -> Any:
    """The key `labels`: a list of names, or name -> value or list of values, or value -> name."""
    if raw is None:
        return None
    if isinstance(raw, list | tuple):
        if wrong := [(index, name) for index, name in enumerate(raw) if not isinstance(name, str)]:
            raise ValueError(
                "\n".join(f"{index}: expected a string, got {name!r}; put it in quotes" for index, name in wrong)
            )
        return tuple(raw)
    if isinstance(raw, Mapping) and raw and all(isinstance(name, str) for name in raw.values()):
        raw = _turned(raw)
    if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
        raise ValueError(
            "expected a list such as [background, tumour], or names with their values such as"
            f" {{background: 0, tumour: 4}}, got {raw!r}"
        )
    return {
        name: _members(name, values, (int,), "a value of the label files, or a list") for name, values in raw.items()
    }


def _turned(raw: Mapping[Any, str]) -> dict[str, Any]:
    """Value -> name as name -> value."""
    turned: dict[str, Any] = {}
    for value, name in raw.items():
        if name in turned:
            raise ValueError(f"{name} names several values; merge them by data.classes")
        turned[name] = int(value) if isinstance(value, str) and value.isdecimal() else value
    return turned


def _read_ignore(raw: Any) -> Any:
    """The key `ignore`: a value or a name."""
    if raw is None or _is_value(raw) or isinstance(raw, str):
        return raw
    raise ValueError(f"expected a value of the label files or a name, got {raw!r}")


def _read_groups(raw: Any) -> Any:
    """The keys `classes` and `regions`: name -> members; or a list of names, each of which is its own member."""
    if isinstance(raw, list | tuple) and all(isinstance(name, str) for name in raw):
        if len(set(raw)) < len(raw):
            raise ValueError(f"expected each name once, got {list(raw)}")
        raw = {name: name for name in raw}
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
        raise ValueError(f"expected names with their labels such as {{lungs: [10, 11], liver: liver}}, got {raw!r}")
    return {name: _members(name, group, (int, str), "names or values of labels") for name, group in raw.items()}


def _read_annotated(raw: Any) -> Any:
    """The key `annotated`: pattern of case names -> names of classes."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
        raise ValueError(f"expected names of cases with their classes such as {{'liver_*': [liver]}}, got {raw!r}")
    return {name: _members(name, group, (str,), "names of classes") for name, group in raw.items()}


def _members(name: str, group: Any, kinds: tuple[type, ...], wanted: str) -> tuple[Any, ...]:
    members = tuple(group) if isinstance(group, list | tuple) else (group,)
    if wrong := [member for member in members if not isinstance(member, kinds) or isinstance(member, bool)]:
        raise ValueError(f"{name}: expected {wanted}, got {wrong[0]!r}")
    return members


LabelNames = Annotated[
    Annotated[tuple[str, ...], Field(strict=False)] | dict[str, Annotated[tuple[int, ...], Field(strict=False)]],
    BeforeValidator(_read_labels),
]
IgnoredLabel = Annotated[int | str, BeforeValidator(_read_ignore)]
Groups = Annotated[dict[str, Annotated[Members, Field(strict=False)]], BeforeValidator(_read_groups)]
AnnotatedCases = Annotated[dict[str, Annotated[tuple[str, ...], Field(strict=False)]], BeforeValidator(_read_annotated)]
