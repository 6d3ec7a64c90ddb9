"""Opening of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionseg.data.formats.dataset import Dataset


def open_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    labels: Sequence[str] | None = None,
    reader: str | None = None,
    base_dir: str | Path | None = None,
) -> Dataset:
    """Open a data set: its cases, channels and label names. No voxel is read.

    Args:
        path: a folder in the layout of the Medical Segmentation Decathlon or of nnU-Net's raw data, or a MONAI
            datalist JSON.
        layout: "msd", "nnunet" or "datalist"; "auto" looks at the folder.
        labels: names of the label values 0, 1, ..., for a data set that does not have them.
        reader: dotted path of a reader for other image files than NIfTI.
        base_dir: the folder at which the relative paths of a datalist start; None is `base_dir` of the list, or else
            its own folder.

    Returns:
        The data set: `training` and `testing` are the cases (`name`, `images`, `label`), `channels` their names,
        `labels` maps a label value to its name.

    Raises:
        UserError: there is no data set, or its JSON or its files are wrong. The message lists all problems.

    Example:
        >>> import fusionseg
        >>> dataset = fusionseg.open_dataset("data")
        >>> len(dataset.training), dataset.channels, dataset.labels
        (3, ('CT',), {0: 'background', 1: 'pulmonary_artery'})
    """
    from fusionseg.config.data.parts import named_reader
    from fusionseg.data.formats.dataset import open_dataset as open_any
    from fusionseg.data.formats.readers import Readers

    readers = Readers(named_reader(reader, "reader"))
    base = None if base_dir is None else str(base_dir)
    return open_any(str(path), layout, None if labels is None else tuple(labels), readers=readers, base_dir=base)
