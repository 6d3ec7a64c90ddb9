"""Prepared cases on disk: memory-mappable arrays with the geometry that leads back to the files.

<store>/store.json               the settings and what the data set says of itself
<store>/cases/<case>/image.npy       (C, X, Y, Z) float16 or float32
                     label.npy       (X, Y, Z) uint8, where there is a label
                     foreground.npy  int64: flat voxel indices, class after class
                     case.json       PreparedCase
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data_sections import DataConfig
from fusionseg.data.volume import Volume
from fusionseg.errors import UserError
from fusionseg.files import partial_path, sync, write_json

FORMAT = 2
"""Raised whenever the same settings would give other arrays than before."""

FOREGROUND_PER_CLASS = 20_000
"""Voxels kept per class to centre patches on: far more than a training draws from one case, and bounded."""

TRIES = 10
"""To put a case in the place of an outdated one, while other processes do the same."""


@dataclass(frozen=True)
class SourceFile:
    """A file that a prepared case was made of, to notice when it changes."""

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @staticmethod
    def read(path: Path) -> SourceFile:
        status = path.stat()
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return SourceFile(str(path), status.st_size, status.st_mtime_ns, digest)

    def unchanged(self, path: Path) -> bool:
        """Whether `path` still has this content; its time stamp spares reading it again."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.mtime_ns or SourceFile.read(path).sha256 == self.sha256


@dataclass(frozen=True)
class PreparedCase:
    """What is known of a prepared case without opening its arrays."""

    name: str
    sources: tuple[SourceFile, ...]
    shape: tuple[int, int, int]
    channels: int
    affine: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float, float]
    original_shape: tuple[int, int, int]
    original_affine: tuple[tuple[float, ...], ...]
    background: tuple[float, ...]
    """Per channel, the value that stands for "outside the volume": the lowest in it."""
    classes: tuple[int, ...]
    """Foreground classes that occur, ascending."""
    class_offsets: tuple[int, ...]
    """Where each of `classes` begins in foreground.npy, and the end."""
    labelled: bool
    digest: str
    """Of the image's voxels, see `image_digest`."""
    label_digest: str
    """Of the label's voxels; empty without a label."""

    @property
    def content(self) -> str:
        """A hash of the files' content."""
        return hashlib.sha256("".join(source.sha256 for source in self.sources).encode()).hexdigest()[:16]

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> PreparedCase:
        values = {key: _tuples(value) for key, value in raw.items()}
        values["sources"] = tuple(SourceFile(**source) for source in raw["sources"])
        return PreparedCase(**{field.name: values[field.name] for field in fields(PreparedCase)})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def settings_of(config: DataConfig) -> dict[str, Any]:
    """The settings that the prepared arrays depend on."""
    keys = ("spacing", "orientation", "intensity", "crop_foreground", "dtype")
    return {
        "format": FORMAT,
        **{key: value for key, value in config.model_dump(mode="json").items() if key in keys},
    }


def settings_key(config: DataConfig) -> str:
    """A short hash of `settings_of`."""
    return hashlib.sha256(json.dumps(settings_of(config), sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Store:
    """A folder of prepared cases."""

    root: Path
    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    cases: dict[str, PreparedCase]

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes 1, 2, ..."""
        return tuple(self.labels[value] for value in sorted(self.labels) if value != 0)

    def image(self, name: str) -> NDArray[np.floating[Any]]:
        """Memory-mapped (C, X, Y, Z)."""
        return self._array(name, "image.npy")

    def label(self, name: str) -> NDArray[np.uint8]:
        """Memory-mapped (X, Y, Z)."""
        return self._array(name, "label.npy")

    def foreground(self, name: str) -> NDArray[np.int64]:
        """Flat voxel indices of the foreground, class after class."""
        return self._array(name, "foreground.npy")

    def _array(self, name: str, file: str) -> NDArray[Any]:
        path = case_folder(self.root, name) / file
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: the prepared array cannot be read ({error}): delete {path.parent} and prepare again"
            ) from None
        return array


def case_folder(root: Path, name: str) -> Path:
    return root / "cases" / name


def read_case(root: Path, name: str) -> PreparedCase | None:
    """The record of a prepared case; None where it is missing or not of this format."""
    path = case_folder(root, name) / "case.json"
    try:
        return PreparedCase.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(root: Path, record: PreparedCase) -> None:
    """Write case.json anew."""
    write_json(case_folder(root, record.name) / "case.json", asdict(record))


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
    """store.json, or None where there is none."""
    try:
        header: dict[str, Any] = json.loads((root / "store.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{root / 'store.json'}: not valid JSON ({error}): delete {root} and prepare again") from None
    return header


def write_case(root: Path, name: str, volume: Volume, sources: Sequence[SourceFile], dtype: str) -> PreparedCase:
    """Store one case: the folder takes its name when all of it is on disk."""
    target = case_folder(root, name)
    temporary = partial_path(target)
    temporary.mkdir(parents=True)
    try:
        limit = float(np.finfo(dtype).max)
        image = np.clip(volume.image, -limit, limit).astype(dtype)
        indices, classes, offsets = _foreground(volume.label, name)
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
            background=tuple(float(value) for value in image.reshape(len(image), -1).min(axis=1)),
            classes=classes,
            class_offsets=offsets,
            labelled=volume.label is not None,
            digest=volume.digest,
            label_digest=volume.label_digest,
        )
        np.save(temporary / "image.npy", image)
        np.save(temporary / "foreground.npy", indices)
        if volume.label is not None:
            np.save(temporary / "label.npy", volume.label)
        write_json(temporary / "case.json", asdict(record))
        for file in temporary.iterdir():
            sync(file)
        _take_name(temporary, root, record)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)
    return record


def _take_name(temporary: Path, root: Path, record: PreparedCase) -> None:
    """Rename `temporary` to the case's folder, where another process may do the same at this moment.

    A whole case of the same files is never taken away, not for an instant: somebody may have found it already.
    """
    target = case_folder(root, record.name)
    for _ in range(TRIES):
        try:
            temporary.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        there = read_case(root, record.name)
        if there is not None and there.content == record.content:
            shutil.rmtree(temporary)
            return
        old = partial_path(target)
        with suppress(FileNotFoundError):  # somebody else moved it
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(errno.EBUSY, "other processes prepare this case again and again, of other files", str(target))


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)


def _foreground(
    label: NDArray[np.uint8] | None, name: str
) -> tuple[NDArray[np.int64], tuple[int, ...], tuple[int, ...]]:
    """Flat indices by class, at most FOREGROUND_PER_CLASS of each, drawn by the case's name."""
    if label is None:
        return np.zeros(0, np.int64), (), (0,)
    flat = label.ravel()
    classes = [int(value) for value in np.unique(flat) if value]
    parts = []
    for value in classes:
        hits = np.flatnonzero(flat == value)
        if len(hits) > FOREGROUND_PER_CLASS:
            seed = int.from_bytes(hashlib.sha256(f"{name}:{value}".encode()).digest()[:8], "little")
            hits = np.sort(np.random.default_rng(seed).choice(hits, FOREGROUND_PER_CLASS, replace=False))
        parts.append(hits.astype(np.int64))
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return (
        np.concatenate([np.zeros(0, np.int64), *parts]),
        tuple(classes),
        tuple(int(value) for value in offsets),
    )
