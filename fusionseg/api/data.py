"""Opening of data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionseg.data.formats.dataset import Dataset


def open_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    labels: Sequence[str] | Mapping[str, int | Sequence[int]] | None = None,
    classes: Sequence[str] | Mapping[str, int | str | Sequence[int | str]] | None = None,
    regions: Mapping[str, int | str | Sequence[int | str]] | None = None,
    regions_class_order: Sequence[int] | None = None,
    ignore: int | str | None = None,
    reader: str | None = None,
    base_dir: str | Path | None = None,
) -> Dataset:
    """Open a data set: its cases, channels and label names. No voxel is read.

    Args:
        path: a folder in the layout of the Medical Segmentation Decathlon or of nnU-Net's raw data, a folder with a
            folder for each case, or a MONAI datalist JSON.
        layout: "msd", "nnunet", "datalist" or "folders"; "auto" looks at the folder. Or a dotted path of your own.
        labels: names of the values in the label files, for a data set that does not have them: a list for the values
            0, 1, ..., or each name with its value.
        classes: the classes to use, by names or values of the labels: a list selects, a mapping merges too.
        regions: overlapping regions, each with the classes or values that belong to it.
        regions_class_order: the value to paint for each region, if it does not follow from the regions.
        ignore: the value, or the name, of voxels without annotation.
        reader: dotted path of a reader of your own for image files.
        base_dir: the folder at which the relative paths of a datalist start; None is `base_dir` of the list, or else
            its own folder.

    Returns:
        The data set: `training` and `testing` are the cases (`name`, `images`, `label`), `channels` their names,
        `labels` maps the index of a class to its name. `scheme` has the values of the label files.

    Raises:
        UserError: there is no data set, or its JSON or its files are wrong. The message lists all problems.

    Example:
        >>> import fusionseg
        >>> dataset = fusionseg.open_dataset("data")
        >>> len(dataset.training), dataset.channels, dataset.labels
        (3, ('CT',), {0: 'background', 1: 'pulmonary_artery'})
    """
    from fusionseg.config import DataConfig
    from fusionseg.config.data.parts import named_layout, named_reader
    from fusionseg.config.loading import validate_section
    from fusionseg.data.formats.dataset import open_dataset as open_any
    from fusionseg.data.formats.readers import Readers

    readers = Readers(named_reader(reader, "reader"))
    base = None if base_dir is None else str(base_dir)
    keys = {
        "labels": labels,
        "classes": classes,
        "regions": regions,
        "regions_class_order": regions_class_order,
        "ignore": ignore,
    }
    section = validate_section(DataConfig, {key: value for key, value in keys.items() if value is not None})
    chosen = named_layout(layout, "layout") or "auto"
    return open_any(str(path), chosen, section.label_settings, readers=readers, base_dir=base)
