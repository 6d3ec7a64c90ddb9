"""The meaning of the values in the label files of a data set.

A label file holds arbitrary whole values. They become class indices 0, 1, ... once, when the file is read, and file
values again in a mask that is written. Index 0 is the background; `IGNORE` marks voxels without annotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.utils.errors import suggest

IGNORE = 255
"""Class index of voxels that are not annotated: they have no part in losses and metrics."""
MAX_CLASSES = 255
"""Largest number of classes, the background included: an index is one byte, and one index means ignore."""
MAX_VALUE = 65535
"""Highest value in a label file."""
BACKGROUND = "background"


@dataclass(frozen=True)
class LabelClass:
    """A class, and the values that mark it in the label files.

    Args:
        name: of the class.
        values: of the files. More than one if the class merges several; masks are written with the first.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A set of classes that is predicted as one output. Regions may overlap.

    Args:
        name: of the region.
        classes: indices of its classes.
        value: written in masks where the region is the last one that holds, as in nnU-Net's `regions_class_order`.
    """

    name: str
    classes: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class LabelScheme:
    """The classes of a data set, and the outputs of a network that is trained on it.

    Args:
        classes: by their indices; the first is the background.
        ignore: the file value of voxels that are not annotated; None if there is none.
        regions: the outputs, in the order of painting; empty for classes that exclude each other.
        rest_is_background: True if values that no class has are background; otherwise they are an error.
        sigmoid: True if each output is a binary decision of its own: always for regions, and for classes by
            `data.outputs`.
    """

    classes: tuple[LabelClass, ...]
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    rest_is_background: bool = False
    sigmoid: bool = False

    def __post_init__(self) -> None:
        if self.regions and not self.sigmoid:
            object.__setattr__(self, "sigmoid", True)

    @staticmethod
    def of_names(names: Sequence[str]) -> LabelScheme:
        """Make the plain scheme: the file values are the indices.

        Args:
            names: of the values 0, 1, ...
        """
        return LabelScheme(tuple(LabelClass(name, (value,)) for value, name in enumerate(names)))

    @property
    def is_plain(self) -> bool:
        """True if the file values are the class indices, and the classes exclude each other."""
        return self == LabelScheme.of_names(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, the background included."""
        return tuple(label.name for label in self.classes)

    @property
    def labels(self) -> dict[int, str]:
        """Class index -> name, the background included."""
        return dict(enumerate(self.names))

    @property
    def num_classes(self) -> int:
        """Number of classes K, the background included."""
        return len(self.classes)

    @property
    def is_regions(self) -> bool:
        """True if the outputs are regions."""
        return bool(self.regions)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that scores are listed under: the regions, or the foreground classes."""
        return tuple(region.name for region in self.regions) or self.names[1:]

    @property
    def num_outputs(self) -> int:
        """Number of channels of a network: one for each class with softmax, for each of `output_names` with sigmoid."""
        return len(self.output_names) if self.sigmoid else self.num_classes

    @property
    def region_order(self) -> tuple[int, ...]:
        """For each of `output_names`, the file value that is painted where it is the last one that holds."""
        if self.regions:
            return tuple(region.value for region in self.regions)
        return tuple(label.values[0] for label in self.classes[1:])

    @property
    def membership(self) -> NDArray[np.bool_]:
        """(R, K): True where the class belongs to the output, for each of `output_names`."""
        if not self.regions:
            return np.eye(self.num_classes, dtype=bool)[1:]
        table = np.zeros((len(self.regions), self.num_classes), bool)
        for row, region in zip(table, self.regions, strict=True):
            row[list(region.classes)] = True
        return table

    @property
    def membership_of_indices(self) -> NDArray[np.bool_]:
        """(R, 256): `membership` of every index that a label may hold; False for `IGNORE`."""
        table = np.zeros((len(self.output_names), IGNORE + 1), bool)
        table[:, : self.num_classes] = self.membership
        return table

    def annotated_outputs(self, annotated: Sequence[str] | None) -> NDArray[np.bool_]:
        """Tell for each of `output_names` whether a case annotates it, (R,).

        Args:
            annotated: names of the outputs that the case annotates; None for all.
        """
        return np.array([annotated is None or name in annotated for name in self.output_names])

    def valid_classes(self, wrong: str) -> str:
        """Name the valid names of foreground classes, for a message about a name that is none.

        Args:
            wrong: the name. If it is a region, the message lists its classes.
        """
        for region in self.regions:
            if region.name == wrong:
                return f"it is a region; name its classes: {', '.join(self.names[index] for index in region.classes)}"
        return suggest(wrong, self.names[1:])

    @property
    def repainted(self) -> dict[str, str]:
        """Classes whose regions a mask cannot hold: name -> name of the class that the mask has in their place.

        This depends on `region_order`. Values that no class has are not looked at.
        """
        painted = self.paint(self.membership)
        found = {}
        for index, value in enumerate(painted):
            if self.unknown([int(value)]):
                continue
            other = int(self.to_indices(np.array([value]))[0])
            if not np.array_equal(self.membership[:, index], self.membership[:, other]):
                found[self.names[index]] = self.names[other]
        return found

    @property
    def mapping(self) -> dict[str, Any] | None:
        """The map from file values to class indices in JSON's types; None if it changes no value.

        Prepared labels depend on it, and on nothing else of the scheme.
        """
        values = [list(label.values) for label in self.classes]
        mapping: dict[str, Any] = {"values": values}
        if self.ignore is not None:
            mapping["ignore"] = self.ignore
        if self.rest_is_background:
            mapping["rest"] = 0
        return None if mapping == {"values": [[index] for index in range(self.num_classes)]} else mapping

    @property
    def values(self) -> tuple[int, ...]:
        """All values that the files may hold, in ascending order."""
        every = {value for label in self.classes for value in label.values}
        return tuple(sorted(every | ({self.ignore} if self.ignore is not None else set())))

    def unknown(self, values: Sequence[float]) -> list[float]:
        """List the values that a label file of this data set must not hold, in ascending order.

        Args:
            values: whole numbers.
        """
        if self.rest_is_background:
            return sorted(value for value in values if not 0 <= value <= MAX_VALUE)
        return sorted(set(values).difference(self.values))

    def to_indices(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn the values of a label file into class indices.

        Args:
            values: whole numbers of any type, of any shape.

        Returns:
            Indices of the same shape; `IGNORE` for the ignore value.

        Raises:
            ValueError: there are values that the scheme does not know.
        """
        if unknown := self.unknown(_occurring(values)):
            raise ValueError(f"unknown label values {[int(value) for value in unknown]}")
        return self.indices_of_known(values)

    def indices_of_known(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn the values of a label file into class indices, as `to_indices` does, without its check.

        Args:
            values: whole numbers that the scheme knows.
        """
        if self.mapping is None:
            return values.astype(np.uint8)
        kind = values.dtype if values.dtype.kind == "u" else np.dtype(np.int32)
        return self._index_of_value[values.astype(kind, copy=False)]

    def to_values(self, indices: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Turn class indices into the values of label files: of a merged class, its first value.

        Args:
            indices: of any shape; `IGNORE` is allowed if the data set has an ignore value.

        Returns:
            Values of the same shape, uint8 if all values of the scheme fit into it, otherwise uint16.
        """
        table = np.zeros(256, self.value_dtype)
        for index, label in enumerate(self.classes):
            table[index] = label.values[0]
        if self.ignore is not None:
            table[IGNORE] = self.ignore
        return table[indices]

    def paint(self, masks: NDArray[np.bool_]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Turn a mask of each output into the values of a label file: a later output is painted over an earlier one.

        Args:
            masks: (R, ...), one for each of `output_names`.

        Returns:
            Values of the shape of one mask, uint8 if all values of the scheme fit into it, otherwise uint16.
        """
        painted = np.zeros(masks.shape[1:], self.value_dtype)
        for mask, value in zip(masks, self.region_order, strict=True):
            painted[mask] = value
        return painted

    def to_mask(self, outputs: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Turn a prediction into the values of a label file.

        Args:
            outputs: class indices; with sigmoid outputs a mask of each, (R, ...).
        """
        return self.paint(outputs) if self.sigmoid else self.to_values(outputs)

    @property
    def value_names(self) -> dict[int, str]:
        """The values that a written mask may hold -> names of the classes or regions, the background included."""
        return {0: self.names[0], **dict(zip(self.region_order, self.output_names, strict=True))}

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds all values of masks."""
        return np.dtype(np.uint8 if max(*self.values, *self.region_order, 0) < 256 else np.uint16)

    @cached_property
    def _index_of_value(self) -> NDArray[np.uint8]:
        table = np.zeros(MAX_VALUE + 1, np.uint8)
        for index, label in enumerate(self.classes):
            table[list(label.values)] = index
        if self.ignore is not None:
            table[self.ignore] = IGNORE
        return table

    def to_json(self) -> dict[str, Any]:
        """The scheme in JSON's types, without what is not set."""
        content: dict[str, Any] = {"classes": [[label.name, list(label.values)] for label in self.classes]}
        if self.ignore is not None:
            content["ignore"] = self.ignore
        if self.rest_is_background:
            content["rest"] = BACKGROUND
        if self.regions:
            content["regions"] = [[region.name, list(region.classes), region.value] for region in self.regions]
        if self.sigmoid:
            content["outputs"] = "sigmoid"
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> LabelScheme:
        """Make a scheme from the form of `to_json`."""
        return LabelScheme(
            tuple(LabelClass(name, tuple(values)) for name, values in content["classes"]),
            content.get("ignore"),
            tuple(Region(name, tuple(classes), value) for name, classes, value in content.get("regions", [])),
            content.get("rest") == BACKGROUND,
            content.get("outputs") == "sigmoid",
        )


def _occurring(values: NDArray[Any]) -> list[int]:
    """The distinct values of a label, which are few."""
    if values.size and values.dtype.kind in "ui" and values.dtype.itemsize <= 2 and values.min() >= 0:
        return [int(value) for value in np.flatnonzero(np.bincount(values.ravel()))]
    return [int(value) for value in np.unique(values)]


UNLABELLED = LabelScheme.of_names([BACKGROUND])
"""The scheme of images without labels."""


def ranges(values: Sequence[int]) -> str:
    """Values in ascending order for a message: "0 to 4, 7".

    Args:
        values: whole numbers.
    """
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
