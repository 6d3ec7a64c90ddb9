"""The checks of one case: every file read to its last byte, every problem named.

Runs in the worker processes of `fusionseg.data.check`, one volume in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from fusionseg.data.case import Case
from fusionseg.data.facts import CaseFacts
from fusionseg.data.nifti import (
    FETCH,
    Array,
    RawVolume,
    VolumeError,
    corner_distance_mm,
    is_invertible,
    read_volume,
)

AFFINE_EXACT_MM = 1e-4  # what float32 rounding of a header explains, at the corner of a large volume
AFFINE_CLOSE_MM = 1e-2
QFORM_CLOSE_MM = 0.1  # a quaternion in float32 is coarser than a matrix
SAMPLES_PER_CHANNEL = 2000
CHUNK = 1 << 20
MAX_LABEL_VALUES = 10


def check_case(case: Case, labels: Mapping[int, str], channels: int, patch: Sequence[int] | None = None) -> CaseFacts:
    """Check the images and the label of a case; nothing that is wrong with them raises."""
    facts = CaseFacts(case.name)
    path = case.images[0]
    try:
        first: tuple[Path, tuple[int, ...], Array | None] | None = None
        if len(case.images) > 1 and len(case.images) != channels:
            _report_channels(facts, path, len(case.images), channels)
        for i, path in enumerate(case.images):
            volume = _read(facts, path)
            if volume is None:
                continue
            shape = _check_image(facts, path, volume, channels, None if len(case.images) == 1 else i)
            if shape is None:
                continue
            if first is None:
                first = path, shape, volume.affine
                facts.shape = shape
                _describe_geometry(facts, volume)
                _check_patch(facts, path, shape, patch)
            else:
                _compare(facts, path, shape, volume.affine, first, "channel")
            del volume  # before the next one is read
        if case.label is not None:
            path = case.label
            volume = _read(facts, path)
            if volume is not None:
                _check_label(facts, path, volume, labels)
                if first is not None and volume.values.ndim == 3:
                    _compare(facts, path, volume.values.shape, volume.affine, first, "label")
    except MemoryError:
        facts.add("error", path, "memory", "does not fit into memory", "check its size, or use fewer workers")
    except Exception as error:  # one odd file must not end the report on all others
        facts.add("error", path, "unreadable", f"{type(error).__name__}: {error}", FETCH)
    return facts


def _read(facts: CaseFacts, path: Path) -> RawVolume | None:
    """The volume with its geometry checked, or None when there is nothing further to check in it."""
    try:
        volume = read_volume(path)
    except VolumeError as error:
        facts.add("error", path, error.code, error.message, error.remedy)
        return None
    pixdim = np.asarray(volume.header["pixdim"][1:4], np.float64)
    affine = volume.affine
    if not np.isfinite(pixdim).all() or not pixdim.all():
        volume.affine = None
        facts.add(
            "error",
            path,
            "spacing",
            f"the voxel spacing in the header is {_mm(pixdim)}",
            "set the true spacing in the header (nibabel: header.set_zooms)",
        )
    elif affine is None or not is_invertible(affine):
        volume.affine = None
        facts.add(
            "error",
            path,
            "affine",
            "the affine cannot be inverted or is not a number",
            "write a valid affine (sform or qform), or convert the file from its source again",
        )
    elif volume.header["qform_code"] > 0 and volume.header["sform_code"] > 0:
        try:
            apart = corner_distance_mm(volume.values.shape, affine, volume.header.get_qform())
        except Exception:  # the sform is good, and nibabel refuses an odd qform in several ways
            apart = np.inf
        if apart > QFORM_CLOSE_MM:
            facts.add(
                "warning",
                path,
                "qform-sform",
                f"qform and sform differ by {apart:.3g} mm at a corner; the sform is used",
                "set both alike (nibabel: img.set_qform(img.affine))",
            )
    return volume


def _check_image(
    facts: CaseFacts, path: Path, volume: RawVolume, channels: int, index: int | None
) -> tuple[int, ...] | None:
    """Check an image file; its spatial shape, or None when it is no 3D volume.

    Args:
        index: the file's channel, None where it is the only file and holds all channels.
    """
    values = volume.values
    facts.image_dtypes.append(volume.dtype)
    count = values.shape[3] if values.ndim == 4 else 1
    if values.ndim not in (3, 4) or (count > 1 and index is not None):
        facts.add(
            "error",
            path,
            "dimensions",
            f"is {values.ndim}D ({'x'.join(map(str, values.shape))})",
            "store 3D volumes, or one 4D file with the channels last",
        )
        return None
    if index is None and count != channels:
        _report_channels(facts, path, count, channels)
    constant = False
    for c in range(count):
        flat = (values[..., c] if values.ndim == 4 else values).reshape(-1, order="F")
        which = f"channel {c} " if count > 1 else ""
        if flat.dtype.kind == "f" and not (finite := np.isfinite(flat)).all():
            nans = int(np.count_nonzero(np.isnan(flat)))
            infinite = int(flat.size - np.count_nonzero(finite) - nans)
            facts.add(
                "error",
                path,
                "non-finite",
                f"{which}has {nans} NaN and {infinite} infinite voxels of {flat.size}",
                "replace them (by air or 0), or convert the file from its source again",
            )
            flat = flat[finite]
        if not flat.size:
            continue
        low, high = float(flat.min()), float(flat.max())
        if low == high:
            constant = True
            facts.add(
                "error",
                path,
                "constant",
                f"{which}has the value {low:g} in every voxel",
                "fetch the image again, or take the case out of the data set",
            )
        # An odd step, lest the sample follows one plane of an even-sized volume.
        sample = flat[:: (flat.size // SAMPLES_PER_CHANNEL) | 1].astype(np.float32)
        facts.intensity[c if index is None else index] = low, high, sample
    if not constant:  # all empty images are alike
        facts.digests.append((str(path), f"{values.shape} {volume.dtype} {volume.digest}"))
    return tuple(map(int, values.shape[:3]))


def _check_label(facts: CaseFacts, path: Path, volume: RawVolume, labels: Mapping[int, str]) -> None:
    values = volume.values
    facts.label_dtype = volume.dtype
    if values.ndim != 3:
        facts.add(
            "error",
            path,
            "dimensions",
            f"is {values.ndim}D ({'x'.join(map(str, values.shape))})",
            "store the label as one 3D volume",
        )
    counts: dict[float, int] = {}
    flat = values.reshape(-1, order="F")
    for start in range(0, flat.size, CHUNK):  # np.unique sorts a copy: in pieces, for memory and speed
        for value, n in zip(*np.unique(flat[start : start + CHUNK], return_counts=True), strict=True):
            key = float(value) if np.isfinite(value) else np.nan
            counts[key] = counts.get(key, 0) + int(n)
    # Exact, since a value of 0.99999 becomes 0 where a label is cut to an integer.
    odd = [value for value in counts if not float(value).is_integer()]
    unknown = sorted(value for value in counts if float(value).is_integer() and value not in labels)
    if odd:
        facts.add(
            "error",
            path,
            "label-fraction",
            f"{sum(counts[v] for v in odd)} voxels are no whole numbers ({_values(odd)})",
            "resample labels with nearest neighbour, and store integers",
        )
    elif values.dtype.kind == "f":
        facts.add("warning", path, "label-float", f"whole numbers are stored as {volume.dtype}", "store it as uint8")
    if unknown:
        facts.add(
            "error",
            path,
            "label-value",
            f"{sum(counts[v] for v in unknown)} voxels have values that name no class ({_values(unknown)}; "
            f"the classes are {', '.join(f'{v} {name}' for v, name in labels.items())})",
            "correct the label file, or name the value in dataset.json or data.labels",
        )
    facts.label_voxels = {int(v): n for v, n in counts.items() if v in labels}
    if not any(v for v in counts if not np.isnan(v)) and not odd:
        facts.add(
            "warning",
            path,
            "empty-foreground",
            "has no foreground voxel",
            "annotate the case, or leave it if nothing is to be found in it",
        )


def _compare(
    facts: CaseFacts,
    path: Path,
    shape: tuple[int, ...],
    affine: Array | None,
    first: tuple[Path, tuple[int, ...], Array | None],
    what: Literal["channel", "label"],
) -> None:
    """Compare the geometry of a further file with the case's first image."""
    image, image_shape, image_affine = first
    if shape != image_shape:
        facts.add(
            "error",
            path,
            f"{what}-shape",
            f"is {'x'.join(map(str, shape))}, but {image.name} is {'x'.join(map(str, image_shape))}",
            "resample it to the image's grid, or fetch the matching file",
        )
    elif affine is not None and image_affine is not None:
        apart = corner_distance_mm(shape, affine, image_affine)
        if apart > AFFINE_EXACT_MM:
            far = apart > AFFINE_CLOSE_MM
            facts.add(
                "error" if far else "warning",
                path,
                f"{what}-affine",
                f"lies {apart:.3g} mm away from {image.name} at a corner",
                "resample it to the image's grid; copy the image's affine if only the header is wrong"
                if far
                else "copy the image's affine; the difference is too small to matter",
            )


def _describe_geometry(facts: CaseFacts, volume: RawVolume) -> None:
    if volume.affine is not None:
        facts.spacing_mm = tuple(float(s) for s in np.linalg.norm(volume.affine[:3, :3], axis=0))
        axes = nibabel.orientations.aff2axcodes(volume.affine)
        facts.orientation = "".join(axis or "?" for axis in axes)


def _check_patch(facts: CaseFacts, path: Path, shape: tuple[int, ...], patch: Sequence[int] | None) -> None:
    small = [f"{axis} ({n} < {p})" for axis, n, p in zip("xyz", shape, patch or shape, strict=True) if n < p]
    if small:
        facts.add(
            "warning",
            path,
            "small-volume",
            f"is smaller than the patch along {', '.join(small)}, as stored",
            "choose a smaller data.patch, or leave it: the volume is padded",
        )


def _report_channels(facts: CaseFacts, path: Path, found: int, channels: int) -> None:
    facts.add(
        "error",
        path,
        "channels",
        f"the case has {found} channel{'s' * (found != 1)}, the data set names {channels}",
        "add the missing channels, or correct the channel names in the data set's JSON",
    )


def _mm(spacing: Array) -> str:
    return "x".join(f"{s:g}" for s in spacing) + " mm"


def _values(values: Sequence[float]) -> str:
    more = ", ..." if len(values) > MAX_LABEL_VALUES else ""
    return ", ".join(f"{v:g}" for v in values[:MAX_LABEL_VALUES]) + more
