"""The voxels of DICOM slices: decoding by pydicom and its decoders, and the rescaling of each slice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dicom.headers import Slice, read_dataset
from fusionseg.data.formats.image_file import FETCH, VolumeError
from fusionseg.data.formats.readers.packages import INSTALL, optional_package

Array = NDArray[Any]

PLUGINS = ("pylibjpeg", "pyjpegls", "gdcm", "pydicom", "pillow")
"""Decoders in the order of their choice. A fixed order gives the same voxels of lossy streams on all machines."""


def read_voxels(slices: Sequence[Slice], *, has_table: bool = False) -> Array:
    """Decode slices, and turn the stored numbers into values with the slope and the intercept of each slice.

    Args:
        slices: in the order of the volume.
        has_table: True if a table of the file takes the place of slope and intercept.

    Returns:
        (X, Y, Z): columns, rows, slices. Integers (int32) if all values are integers, otherwise float32.

    Raises:
        VolumeError: the pixels are missing, damaged, or compressed by a method without a decoder.
    """
    whole = all(float(one.slope).is_integer() and float(one.intercept).is_integer() for one in slices)
    rows, columns = slices[0].shape
    volume = np.empty((columns, rows, len(slices)), np.int32 if whole and not has_table else np.float32, order="F")
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, one in enumerate(slices):
        by_file[one.path].append(index)
    for path, indices in by_file.items():
        dataset = read_dataset(path, voxels=True)
        for index in indices:
            one = slices[index]
            stored = _decode(dataset, one)
            if has_table:
                stored = optional_package("pydicom.pixels").apply_modality_lut(stored, dataset)
            elif volume.dtype == np.int32 and stored.dtype.kind in "iu":
                stored = stored.astype(np.int64) * int(one.slope) + int(one.intercept)
                if max(abs(int(stored.min())), abs(int(stored.max()))) > np.iinfo(np.int32).max:
                    volume = volume.astype(np.float32, order="F")
            else:  # also pixels that are stored as fractions, as in parametric maps
                stored = stored * np.float64(one.slope) + one.intercept
                volume = volume.astype(np.float32, order="F", copy=False)
            volume[:, :, index] = stored.T
    return volume


def _decode(dataset: Any, one: Slice) -> Array:
    pixels = optional_package("pydicom.pixels")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise VolumeError("no-pixels", f"{one.name} holds no pixel data, or is cut off before its end", FETCH)
    plugin = _plugin(syntax) if syntax is not None and syntax.is_compressed else ""
    try:
        array = pixels.pixel_array(dataset, index=one.frame or 0, decoding_plugin=plugin)
    except Exception as error:  # each decoder raises kinds of its own for a damaged stream
        text = str(error)
        code = "truncated" if "less than expected" in text else "corrupt"
        raise VolumeError(code, f"the pixels of {one.name} cannot be decoded ({text.strip()})", FETCH) from error
    if array.shape != one.shape:
        raise VolumeError("corrupt", f"{one.name} has {array.shape} pixels (expected {one.shape})", FETCH)
    return np.asarray(array)


def _plugin(syntax: Any) -> str:
    """The decoder for a transfer syntax.

    Raises:
        VolumeError: there is none, or it is not installed.
    """
    try:
        decoder = optional_package("pydicom.pixels").get_decoder(syntax)
    except NotImplementedError:
        raise VolumeError(
            "compression",
            f"the pixels are compressed as {syntax.name} ({syntax}), which pydicom cannot decode",
            "convert the files to an uncompressed transfer syntax (dcmdjpeg, gdcmconv --raw), or convert with dcm2niix",
        ) from None
    available = decoder.available_plugins
    chosen = next((name for name in PLUGINS if name in available), next(iter(available), None))
    if chosen is None:
        raise VolumeError(
            "compression",
            f"the pixels are compressed as {syntax.name} ({syntax}), and no decoder for it is installed"
            f" ({'; '.join(decoder.missing_dependencies)})",
            INSTALL,
        )
    return str(chosen)
