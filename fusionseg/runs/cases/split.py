"""The recorded split of a run: in split.json of its folder, and in each of its checkpoints.

A name does not identify an image, and a data set may change. Therefore each case is recorded with the digest of its
voxels (`fusionseg.data.formats.image_digest`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fusionseg.config.data.splits import ALL
from fusionseg.data.formats.image_digest import DIGEST_PATTERN, ImageSet
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.splits.method import SplitMethod
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import RunPaths, checkpoints_of
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]


@dataclass(frozen=True)
class SplitCase:
    """A case that a run trains or validates on."""

    name: str
    dataset: str
    """One of `Split.datasets`."""
    image: Digest
    """Digest of the image's voxels."""
    label: Digest | None
    """Digest of the label's voxels, as class indices; None without a label."""
    group: str | None = None
    """Its group, where `data.group` is set."""
    weight: float | None = None
    """Its weight in the sampling, where `data.weight` is set."""
    annotated: tuple[str, ...] | None = None
    """Names of the outputs that it annotates; None for all."""
    target: str | None = None
    """The value that the task learns, where `data.target` is set."""


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint whose weights a run started from (`init_from`), directly or through another run."""

    path: str
    images: tuple[Digest, ...] | None
    """Digests of the images that it was trained on; None if the file does not record them."""


@dataclass(frozen=True)
class Split:
    """The cases that a run trains and validates on, and the images that its first weights were trained on."""

    fold: int | str
    """The number of a fold, "all", or the group that validates."""
    folds: int
    fold_seed: int
    stated: bool
    """Whether the data set states the folds. `folds` and `fold_seed` are not used then."""
    datasets: tuple[str, ...]
    """Names of the data sets: that of `data`, then those of `data.also`. No two are the same."""
    channels: tuple[str, ...]
    labels: dict[int, str]
    training: tuple[SplitCase, ...]
    validation: tuple[SplitCase, ...]
    seen: tuple[Ancestor, ...] = ()
    methods: tuple[SplitMethod, ...] = ()
    """The way in which each of `datasets` was split; empty if all of them are plain."""
    label_scheme: dict[str, Any] | None = None
    """`LabelScheme.to_json`; None where the values of the label files are the class indices of `labels`."""

    @property
    def method_of_each(self) -> tuple[SplitMethod, ...]:
        """The way in which each of `datasets` was split."""
        return self.methods or (SplitMethod("stated" if self.stated else "drawn"),) * len(self.datasets)

    @property
    def validates_none(self) -> bool:
        """True if the run trains on all cases and validates none (`data.fold: all`)."""
        return self.fold == ALL

    @cached_property
    def scheme(self) -> LabelScheme:
        """The meaning of the values in the label files, and the outputs of the network."""
        if self.label_scheme is not None:
            return LabelScheme.from_json(self.label_scheme)
        return LabelScheme.of_names([self.labels[index] for index in sorted(self.labels)])

    @cached_property
    def own_images(self) -> ImageSet:
        """The images that this run trains on."""
        return ImageSet.of(case.image for case in self.training)

    @cached_property
    def inherited_images(self) -> ImageSet:
        """The images that the first weights are known to have been trained on."""
        return ImageSet.of(image for ancestor in self.seen for image in ancestor.images or ())

    def was_trained_on(self, image: str) -> bool:
        """Tell whether the weights were trained on an image.

        Args:
            image: digest of the image.
        """
        return image in self.own_images or image in self.inherited_images

    @property
    def fitted(self) -> bool:
        """True if the run validates on cases that it trains on itself (`data.folds: 1`)."""
        return any(case.image in self.own_images for case in self.validation)

    @property
    def trained_on(self) -> list[str]:
        """Names of the validation cases that were trained on, with `data.folds: 1` or `init_from_seen: mark`."""
        return [case.name for case in self.validation if self.was_trained_on(case.image)]

    @property
    def marks(self) -> dict[str, int]:
        """Fields for the val records of the run: `trained_on`, if validation cases were trained on."""
        return {"trained_on": len(self.trained_on)} if self.trained_on else {}

    @property
    def unknown(self) -> list[str]:
        """Paths of the ancestors that do not record what they were trained on."""
        return [ancestor.path for ancestor in self.seen if ancestor.images is None]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON and for a checkpoint. Fields that are newer are left out where they are not used."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for entry in (*plain["training"], *plain["validation"]):
            _leave_out(entry, "group", "weight", "annotated", "target")
        for entry in plain["methods"]:
            _leave_out(entry, "group", "stratify", "splits", "table")
        _leave_out(plain, "label_scheme")
        if not self.methods:
            del plain["methods"]
        return {"format": 1, "trained_on": self.trained_on, **plain}

    @staticmethod
    def from_json(raw: Any, where: str) -> Split:
        """Make a split from plain values, and check it.

        Args:
            raw: the plain values.
            where: the file, for the message.

        Raises:
            UserError: the values are not those of a split.
        """
        try:
            split = _ADAPTER.validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or "the whole"
            raise UserError(f"{where}: damaged record of the run's split ({at}: {first['msg']})") from None
        if problem := _problem(split):
            raise UserError(f"{where}: damaged record of the run's split ({problem})")
        return split


def _problem(split: Split) -> str:
    """The problem of a record that no single field has; empty for a sound one."""
    named = {case.dataset for case in (*split.training, *split.validation)}
    has_validation = bool(split.validation) or split.validates_none
    if not split.training or not has_validation or not named <= set(split.datasets):
        return "cases or data sets are missing"
    if split.methods and len(split.methods) != len(split.datasets):
        return "methods: one for each data set is expected"
    try:
        names = split.scheme.names
        split.scheme.membership  # noqa: B018 - raises for regions of classes that do not exist
    except (KeyError, TypeError, ValueError, IndexError):
        return "label_scheme: expected classes with their values, and regions of them"
    if names != tuple(split.labels[index] for index in sorted(split.labels)):
        return "label_scheme: its classes are not those of labels"
    if isinstance(split.fold, str) and not {method.name for method in split.methods} & {"all", "held_out"}:
        return f"fold: expected a number, got {split.fold!r}"
    return ""


def _leave_out(plain: JsonObject, *keys: str) -> None:
    """Remove keys that have no value."""
    for key in keys:
        if plain[key] is None:
            del plain[key]


_ADAPTER = TypeAdapter(Split)


def write_split(run: Path, split: Split) -> None:
    """Write split.json into a run folder. A run that is resumed keeps the file that it has.

    Args:
        run: the run folder.
        split: the cases that the run trains and validates on.
    """
    path = RunPaths(run).split
    if not (path.is_file() and checkpoints_of(run)):
        write_json(path, split.to_json())


def read_split(run: Path) -> Split:
    """Read split.json of a run folder.

    Raises:
        UserError: the file cannot be read or is damaged.
    """
    path = RunPaths(run).split
    advice = "delete it: the run's checkpoints hold the same"
    try:
        return Split.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice}") from None
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None


def dataset_names(names: Iterable[str]) -> tuple[str, ...]:
    """Make the names of data sets unique by a number behind repeated ones: CT, MR, CT-2."""
    chosen: list[str] = []
    for name in names:
        count, unique = 1, name
        while unique in chosen:
            count += 1
            unique = f"{name}-{count}"
        chosen.append(unique)
    return tuple(chosen)
