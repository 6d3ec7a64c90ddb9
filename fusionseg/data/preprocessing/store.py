"""The store: prepared cases on disk, as arrays for memory-mapping and records with the geometry of the files.

<store>/store.json               the settings; name, channels and labels of the data set
<store>/cases/<case>/image.npy       (C, X, Y, Z) float16 or float32
                     label.npy       (X, Y, Z) uint8, where there is a label
                     foreground.npy  int64: flat voxel indices, class after class; then, if voxels are ignored, some of
                                     all annotated voxels
                     case.json       the record, `PreparedCase`
<store>/others/<case>/<key>/     the same, for a case of this name that is made of other files
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.outside_part import OutsidePart
from fusionseg.data.formats.voxel_checks import histogram
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.data.preprocessing.array_file import read_array
from fusionseg.data.preprocessing.case_folders import settle, temporary_folder
from fusionseg.data.preprocessing.record import FILE, PreparedCase, SourceFile, checksum, to_json
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import json_text, sync_all, write_json, writing

__all__ = ["PreparedCase", "SourceFile", "Store", "write_case"]

FORMAT = 2
"""Version of the format. It rises whenever the same settings give other arrays than before."""

FOREGROUND_PER_CLASS = 20_000
"""Voxels that are kept for each class as centres of patches: more than a training draws from one case."""


SMALL_VOXELS = 1 << 20
"""Largest volume whose arrays are read instead of mapped: a map takes twice the time of a read of few pages."""

STORED_ROWS = 1 << 10
"""Rows of a volume that are converted to the stored type at once."""


def settings_of(config: DataConfig) -> dict[str, Any]:
    """The settings that the prepared arrays depend on.

    Args:
        config: the section `data`.
    """
    keys = ("spacing", "orientation", "intensity", "crop_foreground", "dtype")
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key in keys}
    # These keys are added only where they are set. Stores without them keep their settings, and so their folder.
    if config.reader is not None:
        settings["reader"] = _identity(config.reader)
    if config.missing_channels != "refuse":
        settings["missing_channels"] = config.missing_channels
    if config.series is not None:
        settings["series"] = config.series
    if config.transforms:
        settings["transforms"] = [_identity(part) for part in config.transforms]
    return {"format": FORMAT, **settings}


def _identity(part: OutsidePart) -> dict[str, Any]:
    """The name, the arguments and the version of a part as it is now; its folder does not matter."""
    return {"name": part.name, "args": part.model_dump(mode="json")["args"], "version": part.source.version}


def settings_key(config: DataConfig, scheme: LabelScheme | None = None) -> str:
    """A short hash of `settings_of`, and of the map of label values if it changes any.

    Args:
        config: the section `data`.
        scheme: of the data set; None for images alone.
    """
    settings = settings_of(config)
    if scheme is not None and scheme.mapping is not None:
        settings["labels"] = scheme.mapping
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Store:
    """A folder of prepared cases.

    Args:
        root: the folder.
        name: of the data set.
        channels: names of the channels.
        scheme: the classes and outputs of the data set.
        cases: the records of the cases by name.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    cases: dict[str, PreparedCase]

    @property
    def labels(self) -> dict[int, str]:
        """Class index -> name, the background included."""
        return self.scheme.labels

    def image(self, name: str) -> NDArray[np.floating[Any]]:
        """The image of a case, memory-mapped: (C, X, Y, Z)."""
        return self._array(name, "image.npy")

    def label(self, name: str) -> NDArray[np.uint8]:
        """The label of a case, memory-mapped: (X, Y, Z)."""
        return self._array(name, "label.npy")

    def foreground(self, name: str) -> NDArray[np.int64]:
        """Flat voxel indices of a case, memory-mapped: of its foreground, class after class; of annotated voxels."""
        return self._array(name, "foreground.npy")

    def load(self, name: str) -> tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.int64]]:
        """Read image, label and foreground of a case, and verify their checksums. Large arrays are memory-mapped.

        Args:
            name: of the case.

        Raises:
            UserError: the arrays do not belong to the record. Another process may have prepared the case again since
                the record was read, from files that have changed.
        """
        record = self.cases[name]
        mapped = prod(record.shape) * record.channels > SMALL_VOXELS
        image, foreground = self._array(name, "image.npy", mapped), self._array(name, "foreground.npy", mapped)
        label = self._array(name, "label.npy", mapped) if record.labelled else None
        entries = record.class_offsets[-1] + (record.annotated_voxels or 0)
        shapes = [image.shape == (record.channels, *record.shape), foreground.shape == (entries,)]
        shapes.append(label is None or label.shape == record.shape)
        found = (checksum(image), 0 if label is None else checksum(label), checksum(foreground))
        if not all(shapes) or found != record.checksums:
            raise UserError(
                f"{self.root / record.folder}: the prepared arrays do not match their record (they are damaged, or"
                " another process has prepared the case again); start again, and delete the folder if this remains"
            )
        return image, label, foreground

    def _array(self, name: str, file: str, mapped: bool = True) -> NDArray[Any]:
        path = f"{self.root}/{self.cases[name].folder}/{file}"
        try:
            return read_array(path, mapped=mapped)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: the prepared array cannot be read ({error}): delete {Path(path).parent} and prepare again"
            ) from None


def write_header(root: Path, config: DataConfig, name: str, channels: Sequence[str], labels: Mapping[int, str]) -> None:
    """Write store.json."""
    header = {
        "settings": settings_of(config),
        "name": name,
        "channels": list(channels),
        "labels": {str(value): label for value, label in labels.items()},
    }
    write_json(root / "store.json", header)


def read_header(root: Path) -> dict[str, Any] | None:
    """Read store.json.

    Args:
        root: the folder of the store.

    Returns:
        None if there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        header: dict[str, Any] = json.loads((root / "store.json").read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None  # the preparation reports a folder that cannot be written
        raise UserError(f"{root / 'store.json'}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{root / 'store.json'}: not valid JSON ({error}): delete {root} and prepare again") from None
    return header


def write_case(
    root: Path,
    name: str,
    volume: Volume,
    sources: Sequence[SourceFile],
    dtype: str,
    scheme: LabelScheme | None = None,
    channel_names: tuple[str, ...] | None = None,
) -> PreparedCase:
    """Store one case. Its folder gets its final name when all files are on disk.

    Args:
        root: the folder of the store.
        name: of the case.
        volume: the prepared case.
        sources: its files.
        dtype: of the stored image, float16 or float32.
        scheme: that the label was read with; None for one that changes no value.
        channel_names: names of the channels; None if no setting names a channel.

    Raises:
        WriteError: the disk is full, or cannot be written.
    """
    temporary = temporary_folder(root, name)
    image = np.ascontiguousarray(_stored(volume.image, dtype))
    label = None if volume.label is None else np.ascontiguousarray(volume.label)
    indices, classes, offsets = _foreground(label, name)
    annotated = _annotated(label, name)
    if annotated is not None:
        indices = np.concatenate([indices, annotated])
    x, y, z = image.shape[1:]
    record = PreparedCase(
        name=name,
        sources=tuple(sources),
        shape=(x, y, z),
        channels=image.shape[0],
        affine=_rows(volume.affine),
        spacing=volume.spacing,
        original_shape=volume.original_shape,
        original_affine=_rows(volume.original_affine),
        background=tuple(float(value) for value in _stored(np.array(volume.background), dtype)),
        classes=classes,
        class_offsets=offsets,
        labelled=label is not None,
        class_voxels=volume.class_voxels,
        digest=volume.digest,
        label_digest=volume.label_digest,
        missing_channels=volume.missing or None,
        channel_names=channel_names,
        checksums=(checksum(image), 0 if label is None else checksum(label), checksum(indices)),
        folder=str(temporary.relative_to(root)),
        mapping=None if scheme is None else scheme.mapping,
        annotated_voxels=None if annotated is None else len(annotated),
    )
    try:
        with writing(temporary):
            temporary.mkdir(parents=True)
            np.save(temporary / "image.npy", image)
            np.save(temporary / "foreground.npy", indices)
            if label is not None:
                np.save(temporary / "label.npy", label)
            (temporary / FILE).write_text(json_text(to_json(record)), encoding="utf-8")
            sync_all([*temporary.iterdir(), temporary])
            return settle(root, record)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _stored(values: NDArray[Any], dtype: str) -> NDArray[np.floating[Any]]:
    limit = float(np.finfo(dtype).max)
    stored: NDArray[np.floating[Any]] = np.empty(values.shape, dtype)
    rows, out = (array.reshape(-1, array.shape[-1]) for array in (values, stored))
    for first in range(0, len(rows), STORED_ROWS):  # piece by piece, without a copy of the volume
        part = slice(first, first + STORED_ROWS)
        out[part] = np.clip(rows[part], -limit, limit)
    return stored


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)


def _foreground(
    label: NDArray[np.uint8] | None, name: str
) -> tuple[NDArray[np.int64], tuple[int, ...], tuple[int, ...]]:
    """Flat voxel indices of each class, at most FOREGROUND_PER_CLASS, drawn with a seed from the name of the case."""
    if label is None:
        return np.zeros(0, np.int64), (), (0,)
    flat = label.ravel()
    classes = [int(value) for value in np.flatnonzero(histogram(flat)) if value not in (0, IGNORE)]
    parts = [_some_of(np.flatnonzero(flat == value), f"{name}:{value}") for value in classes]
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return (
        np.concatenate([np.zeros(0, np.int64), *parts]),
        tuple(classes),
        tuple(int(value) for value in offsets),
    )


def _annotated(label: NDArray[np.uint8] | None, name: str) -> NDArray[np.int64] | None:
    """Flat voxel indices of annotated voxels, the background included; None if no voxel is ignored."""
    if label is None or not (label == IGNORE).any():
        return None
    return _some_of(np.flatnonzero(label.ravel() != IGNORE), f"{name}:annotated")


def _some_of(hits: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """At most FOREGROUND_PER_CLASS of the voxels, drawn with a seed from the key."""
    if len(hits) > FOREGROUND_PER_CLASS:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        hits = np.sort(np.random.default_rng(seed).choice(hits, FOREGROUND_PER_CLASS, replace=False))
    return hits.astype(np.int64)
