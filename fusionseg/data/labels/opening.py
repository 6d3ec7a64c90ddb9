"""The labels of a data set that is opened: its scheme, and the classes that its cases annotate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.mask_folder import MaskFolder
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.voxel_checks import count_values
from fusionseg.data.labels.annotation import by_pattern, outputs_of_cases, with_outputs
from fusionseg.data.labels.reading import read_labels
from fusionseg.data.labels.scheme import BACKGROUND, LabelScheme, ranges


def open_labels(
    content: Mapping[str, Any],
    settings: LabelSettings,
    source: Path,
    training: Sequence[Case],
    testing: Sequence[Case],
    problems: list[str],
    readers: Readers,
    *,
    read_all: bool,
) -> tuple[LabelScheme, list[Case], list[Case]]:
    """Read the label scheme of a data set, and set the annotated outputs of its cases.

    Args:
        content: of the JSON file.
        settings: the keys of the configuration, which take precedence.
        source: the JSON file.
        training: the training cases, with annotated classes as the list states them.
        testing: the test cases.
        problems: gets everything that cannot be used.
        readers: of the data set.
        read_all: a message about missing names lists the values of all label files, not of the first one only.
    """
    files = [case.label for case in (*training, *testing) if case.label is not None]
    found_values = partial(_values_of, files if read_all else files[:1], readers)
    before = len(problems)
    labelled = any(case.label is not None for case in training)
    labels = read_labels(content, settings, source, problems, labelled=labelled, found_values=found_values)
    listed = [*training, *testing]
    cases = listed if settings.annotated is None else by_pattern(listed, settings.annotated, problems)
    keyed = {case.name for case, stated in zip(cases, listed, strict=True) if case is not stated}
    if len(problems) == before:  # the names of classes are known
        cases = outputs_of_cases(cases, labels, source, keyed, problems)
    training, testing = cases[: len(training)], cases[len(training) :]
    return with_outputs(labels.scheme, training, settings.outputs, problems), training, testing


def named_by_masks(
    content: dict[str, Any], settings: LabelSettings | None, source: Path, cases: Sequence[Case], problems: list[str]
) -> dict[str, Any]:
    """The content of the JSON file with the names of the masks as its labels, where the labels are folders of masks.

    Args:
        content: of the JSON file.
        settings: the keys of the configuration; None if there are none.
        source: the JSON file.
        cases: of the data set.
        problems: gets names of labels that are stated beside those of the masks.
    """
    masks = next((case.label for case in cases if isinstance(case.label, MaskFolder)), None)
    if masks is None:
        return content
    stated = "data.labels" if settings is not None and settings.labels is not None else ""
    stated = stated or (f"{source}: labels" if content.get("labels") else "")
    if stated:
        problems.append(
            f"{stated}: the masks in {masks} name the classes by their files; remove it, and choose or merge classes by"
            " data.classes"
        )
    return {**content, "labels": {BACKGROUND: 0, **masks.values}}


def fitting_settings(content: Mapping[str, Any], settings: LabelSettings, source: Path) -> LabelSettings:
    """The settings of a run, as far as they fit another data set.

    They name the labels of a data set that has no names. If it has names, the classes and regions of the run are made
    of these, where all of them are there. Values of files are not carried over: they mean something else there.

    Args:
        content: of the JSON file of the other data set.
        settings: of the run.
        source: the JSON file.
    """
    settings = replace(settings, annotated=None, outputs="auto")
    if not content.get("labels"):
        return settings
    named = replace(settings, labels=None)
    problems: list[str] = []
    if not named.has_values:
        read_labels(content, named, source, problems, labelled=True)
    return LabelSettings() if named.has_values or problems else named


def _values_of(files: Sequence[Path], readers: Readers) -> str:
    """The values that label files hold, in words; empty if none can be read."""
    values: set[int] = set()
    for path in files:
        try:
            counts = count_values(readers.read(path).voxels)
        except (VolumeError, MemoryError):  # `check` reports it for each case
            continue
        values |= {int(value) for value in counts if float(value).is_integer()}
    if not values:
        return ""
    which = f"{files[0].name} holds" if len(files) == 1 else f"the {len(files)} label files hold"
    return f"{which} {ranges(sorted(values))}"
