"""Segment NIfTI images by an exported network, without torch.

Needs numpy, nibabel and onnxruntime. The folder of this file has the networks (`network*.onnx`) and `contract.json`,
which states how images are prepared and what the outputs mean. The masks are those of `fusionseg predict --precision
fp32`, up to the rounding of the network.

    python run.py -i scan.nii.gz -o mask.nii.gz
    python run.py -i t1.nii.gz flair.nii.gz -o mask.nii.gz      # a file for each channel, in the order of the contract
    python run.py -i scans/ -o masks/                           # each file of a folder

The whole volume is kept in memory: 4 bytes for each prepared voxel, output and network, and about twice as much while
windows are added. It is one file, because it is copied.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

CONTRACT = "contract.json"
CHUNK_VALUES = 8_000_000
"""Largest number of probabilities that are computed at once, except that a chunk has at least one row of voxels."""
ALIGNED = 1e-9
"""Two axes are parallel if the other entries of the mapping, in voxels, are not larger than this."""
SAME_VOXELS = 1e-4
"""Distance in voxels that does not count: a position this near to the first voxel outside is that voxel."""
SAME_MM = 1e-3
"""A voxel size that differs by less is kept."""
CLOSE_GRID_VOXELS = 0.1
"""The files of two channels share a grid if no corner is further apart than this."""
SUFFIXES = (".nii.gz", ".nii")
_UNITS = {1: 1e3, 3: 1e-3}  # metre and micron of the NIfTI header, in mm
_GEOMETRY_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)

Array = Any  # numpy.ndarray
Box = tuple[slice, slice, slice]


class RunError(Exception):
    """An image, an option or a model that cannot be used; the message says why, and what to do."""


@dataclass
class Image:
    """An image as its files hold it: float32 (C, X, Y, Z), the 4x4 affine to mm in RAS+, and the header of a file."""

    values: Array
    affine: Array
    header: Any


@dataclass
class Prepared:
    """An image as a network reads it: float32 (C, X, Y, Z), its affine, and the value outside it by channel."""

    values: Array
    affine: Array
    background: list[float]


class Network:
    """The networks of an exported model, one or an ensemble, and the contract about their inputs and outputs."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Open a model.

        Args:
            folder: with `contract.json` and the networks.
            threads: of a network; 0 takes all CPUs.

        Raises:
            RunError: a file is missing or cannot be read.
        """
        try:
            self.contract = json.loads((folder / CONTRACT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / CONTRACT}: cannot be read ({error}); export the run again") from None
        import onnxruntime  # here, because a MONAI bundle uses the functions of this file without it

        if self.contract.get("contract") != 1:
            raise RunError(f"{folder / CONTRACT}: is of another version; use the run.py that was exported with it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.members = self.contract["members"]
        self.sessions = []
        for member in self.members:
            name = str(member["program"])
            if name in ("", "..") or name != Path(name).name:  # the folder may come from somebody else
                raise RunError(f"{folder / CONTRACT}: the network {name!r} is not in this folder; export the run again")
            path = folder / name
            if not path.is_file():
                raise RunError(f"{path}: is missing; export the run again")
            try:
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the kinds of onnxruntime have no common base
                raise RunError(f"{path}: cannot be opened ({error}); export the run again") from None
            self.sessions.append(session)

    def segment(self, image: Image) -> Array:
        """Segment an image.

        Args:
            image: with the channels of the contract.

        Returns:
            The mask (X, Y, Z), with the values of label files.

        Raises:
            RunError: onnxruntime fails, for want of memory, for example.
        """
        prepared: dict[str, Prepared] = {}
        logits, mappings = [], []
        for member, session in zip(self.members, self.sessions, strict=True):
            key = json.dumps(member["input"], sort_keys=True)
            if key not in prepared:
                prepared[key] = prepare(image, member["input"])
            volume = prepared[key]
            found = predict_logits(session, volume, member)
            logits.append(found[member["outputs"]])
            mappings.append(np.linalg.inv(volume.affine) @ image.affine)
        return mask_of(logits, mappings, image.values.shape[1:], self.contract["output"])


def read_image(paths: Sequence[Path], channels: Sequence[str]) -> Image:
    """Read the image of a case.

    Args:
        paths: one file for each channel, or one file that is 3D, or 4D with several channels.
        channels: their names.

    Raises:
        RunError: a file cannot be read, or does not suit the network.
    """
    parts, first, header = [], None, None
    for path in paths:
        values, affine, raw = _read_file(path)
        if first is None:
            first, header = affine, raw
        elif values.shape[1:] != parts[0].shape[1:] or _apart(values.shape[1:], first, affine) > CLOSE_GRID_VOXELS:
            raise RunError(f"{path}: lies on another grid than {paths[0]}; resample it to that grid")
        parts.append(values)
    count = sum(map(len, parts))
    if count != len(channels):
        raise RunError(
            f"{paths[0]}: the case has {count} channels (expected {len(channels)}: {', '.join(channels)}); give one"
            " file for each channel, in this order, or one 4D file"
        )
    return Image(np.concatenate(parts), first, header)


def _read_file(path: Path) -> tuple[Array, Array, Any]:
    """The channels (C, X, Y, Z) of a file, float32, its affine to mm, and its header as it is in the file."""
    if not path.name.lower().endswith(SUFFIXES):
        raise RunError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}; convert it")
    try:
        file = nibabel.load(path)
        with ImageOpener(path) as stream:
            raw = type(file.header).from_fileobj(stream, check=False)  # nibabel.load repairs a header silently
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(file.dataobj)
            shape = values.shape
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            values = values.reshape(shape, order="F").astype(np.float32)
    except Exception as error:  # nibabel and gzip raise many kinds for a damaged file
        raise RunError(f"{path}: cannot be read ({error}); fetch it again") from None
    if values.ndim not in (3, 4):
        raise RunError(f"{path}: is {values.ndim}D; expected a 3D volume, or a 4D one with the channels last")
    values = np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]
    if not np.isfinite(values).all():
        raise RunError(f"{path}: has voxels that are not finite; correct the file")
    pixdim = np.asarray(raw["pixdim"][1:4], np.float64)
    if raw["pixdim"][0] not in (-1, 1):
        raw["pixdim"][0] = 1
    affine = np.asarray(raw.get_best_affine(), np.float64).copy()
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all() and np.isfinite(affine).all()):
        raise RunError(f"{path}: the header has no usable voxel size or affine; correct the header")
    affine[:3] *= _UNITS.get(int(raw["xyzt_units"]) & 7, 1.0)
    if abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.linalg.norm(affine[:3, :3], axis=0).prod():
        raise RunError(f"{path}: the affine has no inverse; correct the header")
    return values, affine, raw


def _apart(shape: Sequence[int], one: Array, other: Array) -> float:
    """Largest distance of a volume's corners under two affines, in voxels of the first."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    return float(np.abs((np.linalg.inv(one) @ (other - one) @ corners.T)[:3]).max())


def prepare(image: Image, settings: dict[str, Any]) -> Prepared:
    """Reorient, resample, crop and normalise an image.

    Args:
        image: the image.
        settings: `input` of a member of the contract.
    """
    values, affine = image.values, image.affine
    if settings["orientation"]:
        change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(settings["orientation"])))
        affine = affine @ inv_ornt_aff(change, values.shape[1:])
        source = np.argsort(change[:, 0])
        steps = tuple(slice(None, None, -1 if change[axis, 1] < 0 else 1) for axis in source)
        values = values.transpose(0, *(axis + 1 for axis in source))[(slice(None), *steps)]
    own = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    if settings["spacing_mm"] and not np.allclose(own, settings["spacing_mm"], rtol=1e-3):
        values, affine = _resample(values, affine, np.array(settings["spacing_mm"], np.float64))
    if settings["crop_foreground"]:
        box = _foreground_box(values, **settings["crop_foreground"])
        values, affine = values[(slice(None), *box)], affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box])
    intensity = settings["intensity"]
    values = np.stack([_normalise(channel, rule) for channel, rule in zip(values, intensity, strict=True)])
    background = [0.0 if rule["nonzero"] else float(part.min()) for part, rule in zip(values, intensity, strict=True)]
    order = settings["channels"]
    return Prepared(values[order], affine, [background[position] for position in order])


def _resample(values: Array, affine: Array, spacing: Array) -> tuple[Array, Array]:
    """Resample (C, X, Y, Z) linearly to a voxel size in mm; rotations stay, a shear of the axes is removed."""
    own = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    wanted = np.where(np.abs(own - spacing) <= SAME_MM, own, spacing)
    square, target = affine[:3, :3], np.eye(4)
    upper = np.linalg.cholesky(square.T @ square).T
    target[:3, :3] = (square @ np.linalg.inv(upper)) @ np.diag(np.sign(np.diag(upper)) * wanted)
    corners = np.array([(*c, 1.0) for c in itertools.product(*((0.0, size - 1.0) for size in values.shape[1:]))]).T
    in_target = (np.linalg.solve(target, affine) @ corners)[:3]
    shape = tuple(int(size) for size in np.round(np.ptp(in_target, axis=1) + 1.0))
    first = [i for i in range(8) if np.allclose((in_target - in_target[:, i : i + 1]).min(axis=1), 0, rtol=SAME_MM)]
    if first:
        target[:3, 3] = (affine @ corners)[:3, first[0]]
    else:  # no corner is the first one along all axes: the centres of the two volumes coincide
        half, target_half = np.array(values.shape[1:]) / 2.0, np.array(shape) / 2.0
        target[:3, 3] = square @ half + affine[:3, 3] - target[:3, :3] @ target_half
    change = np.linalg.solve(affine, target)
    close = [np.allclose(affine, target, atol=SAME_MM), np.allclose(change, np.eye(4), atol=SAME_MM)]
    if shape == values.shape[1:] and any(close):
        return values, affine
    return np.concatenate([_resampled(part[None], change, shape) for part in values]), affine @ change


def _resampled(volume: Array, change: Array, shape: tuple[int, ...]) -> Array:
    """Interpolate a channel (1, X, Y, Z) at the voxels of another grid.

    The positions are computed in the units of torch's `grid_sample`, as the training does. Whether an interpolated
    value is exactly 0, which `nonzero` asks for, depends on their last bits.

    Args:
        volume: the channel.
        change: 4x4, from a voxel of the other grid to a voxel of the volume.
        shape: of the other grid.
    """
    theta = _product(_product(_to_unit(volume.shape[1:]), change), np.linalg.inv(_to_unit(shape)))
    if np.abs(theta[:3, :3] - np.diag(np.diag(theta)[:3])).max() > ALIGNED:
        x, y, z = (slice(0, size) for size in shape)
        return sample(volume, change, (x, y, z), np.float64)[0]
    for axis, (size, target) in enumerate(zip(volume.shape[1:], shape, strict=True)):
        points = ((_centres(target) * theta[axis, axis] + theta[axis, 3] + 1) * size - 1) / 2
        volume = _interpolate_axis(volume, axis, np.clip(points, 0, size - 1))
    return volume.astype(np.float32)


def _to_unit(shape: Sequence[int]) -> Array:
    """From voxel index to the units of `grid_sample`: -1 and 1 are the outer faces of the volume."""
    sizes = np.array(shape, np.float64)
    matrix = np.diag([*(2.0 / sizes), 1.0])
    matrix[:3, 3] = 1.0 / sizes - 1.0
    return matrix


def _product(one: Array, other: Array) -> Array:
    """The product of two matrices, each term rounded by itself."""
    return sum((one[:, k, None] * other[k] for k in range(4)), np.zeros((4, 4)))


def _centres(size: int) -> Array:
    """Centres of the voxels along an axis in the units of `grid_sample`, by the formula of `torch.linspace`."""
    if size == 1:
        return np.zeros(1)
    index, step = np.arange(size), 2.0 / (size - 1)
    return np.where(index < size // 2, -1 + step * index, 1 - step * (size - 1 - index)) * (size - 1) / size


def _foreground_box(values: Array, threshold: float, margin: int, channels: Sequence[int]) -> Box:
    """The box of the voxels above a threshold in any of the channels, extended by a margin."""
    above = (values[channels] > threshold).any(axis=0)
    box = []
    for axis, size in enumerate(above.shape):
        hits = np.flatnonzero(above.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, size)
        box.append(slice(max(0, low - margin), min(size, high + margin)))
    return box[0], box[1], box[2]


def _normalise(raw: Array, rule: dict[str, Any]) -> Array:
    """Normalise the raw intensities (X, Y, Z) of a channel; see `data.intensity` of fusionseg."""
    values, mode, clip = raw.astype(np.float64), rule["mode"], rule["clip"]
    if mode == "none":
        return raw
    if mode == "window":
        return ((np.clip(values, *clip) - clip[0]) / (clip[1] - clip[0])).astype(np.float32)
    if mode == "rescale":
        percentiles = rule["percentiles"]
        low, high = (raw.min(), raw.max()) if percentiles is None else np.percentile(raw, percentiles)
        return ((np.clip(values, low, high) - low) / max(float(high) - float(low), 1e-8)).astype(np.float32)
    if clip is not None:
        np.clip(values, *clip, out=values)
    inside = raw != 0
    measured = values[inside] if rule["nonzero"] and inside.any() else values
    if rule["percentiles"] is not None:
        low, high = np.percentile(measured, rule["percentiles"])
        values, measured = np.clip(values, low, high), np.clip(measured, low, high)
    mean, deviation = rule["mean"], rule["deviation"]
    if mean is None:
        mean, deviation = measured.mean(), max(float(measured.std()), 1e-8)
    result = (values - mean) / deviation
    return (np.where(inside, result, 0) if rule["nonzero"] else result).astype(np.float32)


def predict_logits(session: Any, volume: Prepared, member: dict[str, Any]) -> Array:
    """Logits (K, X, Y, Z) of a prepared image by sliding windows, as MONAI's `sliding_window_inference` blends them."""
    window = member["window"]
    patch = window["patch"]
    image, inner = padded(volume, patch)
    weights = window_weights(patch, window["blend"])
    corners = list(itertools.product(*map(window_starts, image.shape[1:], patch, [window["overlap"]] * 3)))
    boxes = [tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True)) for corner in corners]
    total: Array = None
    count = np.zeros(image.shape[1:], np.float32)
    for first in range(0, len(boxes), window["batch"]):
        some = boxes[first : first + window["batch"]]
        batch = np.stack([image[(slice(None), *box)] for box in some])
        try:
            (logits,) = session.run(None, {session.get_inputs()[0].name: batch})
        except Exception as error:  # the kinds of onnxruntime have no common base
            raise RunError(f"{member['program']}: onnxruntime fails ({error}); free memory, or update it") from None
        if total is None:
            total = np.zeros((logits.shape[1], *image.shape[1:]), np.float32)
        for box, part in zip(some, logits, strict=True):
            total[(slice(None), *box)] += part * weights
            count[box] += weights
    total /= count
    return total[(slice(None), *inner)]


def padded(volume: Prepared, patch: Sequence[int]) -> tuple[Array, Box]:
    """Pad a prepared image to at least the size of a window; return it, and the box of the image in it."""
    image, shape = volume.values, volume.values.shape[1:]
    missing = [max(0, size - have) for size, have in zip(patch, shape, strict=True)]
    pads = [(gap // 2, gap - gap // 2) for gap in missing]
    image = np.stack(
        [np.pad(part, pads, constant_values=level) for part, level in zip(image, volume.background, strict=True)]
    )
    x, y, z = (slice(front, front + size) for (front, _), size in zip(pads, shape, strict=True))
    return image, (x, y, z)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis; the last window ends with the axis."""
    if size <= patch:
        return [0]
    interval = max(1, int(patch * (1 - overlap)))
    return [min(start, size - patch) for start in range(0, size - patch + interval, interval)]


def window_weights(patch: Sequence[int], blend: str) -> Array:
    """Weights (X, Y, Z) of a window: 1, or a Gaussian with a deviation of an eighth of the window."""
    weights = np.ones(tuple(patch), np.float32)
    if blend == "gaussian":
        for axis, size in enumerate(patch):
            x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
            line = np.exp(x**2 / np.float32(-2 * (0.125 * size) ** 2))
            weights = weights * line.reshape([-1 if other == axis else 1 for other in range(3)])
    return np.maximum(weights, max(float(weights.min()), 1e-3)).astype(np.float32)


def mask_of(
    logits: Sequence[Array], mappings: Sequence[Array], shape: tuple[int, ...], output: dict[str, Any]
) -> Array:
    """The mask (X, Y, Z) of an image, with the values of label files.

    Args:
        logits: of each network, (K, X, Y, Z), in the order of the outputs of the contract.
        mappings: for each network 4x4, from a voxel of the image to a voxel of the logits.
        shape: of the image.
        output: of the contract.
    """
    sigmoid = output["activation"] == "sigmoid"
    mask = np.zeros(shape, output["dtype"])
    values = np.array(output["values"], output["dtype"])
    for box in chunks(shape, len(values)):
        total: Array = 0
        for volume, mapping in zip(logits, mappings, strict=True):
            total = total + probabilities(volume, mapping, box, sigmoid)
        if sigmoid:
            painted = mask[box]
            for inside, value in zip(total > 0.5 * len(logits), values, strict=True):
                painted[inside] = value
        else:
            mask[box] = values[total.argmax(axis=0)]
    return mask


def chunks(shape: Sequence[int], outputs: int) -> Iterator[Box]:
    """Divide a volume along its first axis."""
    rows = max(1, CHUNK_VALUES // (outputs * shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0])), slice(0, shape[1]), slice(0, shape[2])


def probabilities(logits: Array, mapping: Array, box: Box, sigmoid: bool) -> Array:
    """Probabilities (K, X, Y, Z) at the voxels of a box of the image; background outside the prepared volume."""
    values, outside = sample(logits, mapping, box, np.float32)
    if sigmoid:
        with np.errstate(over="ignore"):  # exp(100) is infinite in float32, and the probability 0
            result = 1 / (1 + np.exp(-values))
    else:
        result = np.exp(values - values.max(axis=0))
        result /= result.sum(axis=0)
    result[:, outside] = 0
    if not sigmoid:
        result[0, outside] = 1
    return result


def sample(volume: Array, mapping: Array, box: Box, dtype: Any) -> tuple[Array, Array]:
    """Interpolate a volume linearly at the voxels of another grid, with the values of the border outside.

    Args:
        volume: (C, X, Y, Z).
        mapping: 4x4, from a voxel of the other grid to a voxel of the volume.
        box: the voxels of the other grid.
        dtype: of the computation. With float32, positions are rounded as torch's `grid_sample` rounds them.

    Returns:
        float32 (C, ...) of the shape of the box, and True where a voxel is a voxel or more outside the volume.
    """
    sides = [np.arange(side.start, side.stop, dtype=np.float64) for side in box]
    near = np.abs(mapping[:3, :3]) > ALIGNED
    if near.sum(axis=1).max() > 1 or near.sum(axis=0).max() > 1:
        return _sample_oblique(volume, mapping, sides, dtype)
    targets = [int(np.abs(row).argmax()) for row in mapping[:3, :3]]  # of each axis of the volume, that of the box
    if sorted(targets) != [0, 1, 2]:
        return _sample_oblique(volume, mapping, sides, dtype)
    outside = np.zeros([1, 1, 1], bool)
    for axis, target in enumerate(targets):
        points = sides[target] * mapping[axis, target] + mapping[axis, 3]
        size = volume.shape[axis + 1]
        beyond = ((points <= -1 + SAME_VOXELS) | (points >= size - SAME_VOXELS)).reshape(
            [-1 if other == target else 1 for other in range(3)]
        )
        outside = outside | beyond
        volume = _interpolate_axis(volume, axis, _positions(points, size, dtype))
    return volume.transpose(0, *(1 + targets.index(axis) for axis in range(3))).astype(np.float32), outside


def _sample_oblique(volume: Array, mapping: Array, sides: Sequence[Array], dtype: Any) -> tuple[Array, Array]:
    """`sample` for grids whose axes are not parallel: each voxel has a position of its own."""
    sizes, shape = volume.shape[1:], tuple(map(len, sides))
    values, outside = np.empty((len(volume), *shape), np.float32), np.empty(shape, bool)
    for rows, _, _ in chunks(shape, len(volume) + 8):
        grid = np.stack(np.meshgrid(sides[0][rows], *sides[1:], indexing="ij"))
        points = np.tensordot(mapping[:3, :3], grid, 1) + mapping[:3, 3].reshape(3, 1, 1, 1)
        outside[rows] = np.any(
            [(at <= -1 + SAME_VOXELS) | (at >= size - SAME_VOXELS) for at, size in zip(points, sizes, strict=True)],
            axis=0,
        )
        axes = [_neighbours(_positions(at, size, dtype), size) for at, size in zip(points, sizes, strict=True)]
        total = np.zeros((len(volume), *grid.shape[1:]), dtype)
        for corner in itertools.product((0, 1), repeat=3):
            shares = [axis[2] if far else 1 - axis[2] for far, axis in zip(corner, axes, strict=True)]
            x, y, z = (axis[far] for far, axis in zip(corner, axes, strict=True))
            total += volume[:, x, y, z] * (shares[0] * shares[1] * shares[2])
        values[:, rows] = total
    return values, outside


def _positions(points: Array, size: int, dtype: Any) -> Array:
    """Positions along an axis, within the volume."""
    if dtype == np.float32:
        unit = ((2 * points + 1) / size - 1).astype(np.float32)
        points = ((unit + np.float32(1)) * np.float32(size) - np.float32(1)) / np.float32(2)
    return np.clip(points, 0, size - 1).astype(dtype)


def _neighbours(positions: Array, size: int) -> tuple[Array, Array, Array]:
    """The voxels below and above each position along an axis, and the share of the one above."""
    low = np.floor(positions).astype(np.intp)
    return low, np.minimum(low + 1, size - 1), positions - low.astype(positions.dtype)


def _interpolate_axis(volume: Array, axis: int, positions: Array) -> Array:
    """Interpolate (C, X, Y, Z) at positions along one axis (0 to 2), within the volume."""
    low, high, share = _neighbours(positions, volume.shape[axis + 1])
    share = share.reshape([-1 if other == axis + 1 else 1 for other in range(4)])
    return volume.take(low, axis + 1) * (1 - share) + volume.take(high, axis + 1) * share


def write_mask(mask: Array, image: Image, path: Path) -> None:
    """Write a mask in the geometry of its image.

    Args:
        mask: (X, Y, Z).
        image: the image.
        path: of the mask, .nii.gz or .nii.

    Raises:
        OSError: the file cannot be written. Nothing of it stays behind.
    """
    header = type(image.header)()
    header.set_data_dtype(mask.dtype)
    for name in _GEOMETRY_FIELDS:
        header[name] = image.header[name]
    header["pixdim"][:4] = image.header["pixdim"][:4]
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{path.name}")
    try:
        nibabel.save(kind(mask, header.get_best_affine(), header), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cases_of(inputs: Sequence[Path], output: Path) -> list[tuple[list[Path], Path]]:
    """The files of each case, and the file of its mask. Hidden files are no cases: macOS adds `._scan.nii.gz`."""
    if len(inputs) == 1 and inputs[0].is_dir():
        names = sorted(path.name for path in inputs[0].iterdir() if path.name.lower().endswith(SUFFIXES))
        files = [inputs[0] / name for name in names if not name.startswith(".")]
        if not files:
            raise RunError(f"{inputs[0]}: has no file that ends in {' or '.join(SUFFIXES)}")
        if output.exists() and not output.is_dir():
            raise RunError(f"{output}: is a file; name a folder for the masks")
        if output.resolve() == inputs[0].resolve():
            raise RunError(f"{output}: is the folder of the images; choose another one for the masks")
        return [([file], output / file.name) for file in files]
    if not output.name.lower().endswith(SUFFIXES):
        raise RunError(f"{output}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if any(path.resolve() == output.resolve() for path in inputs):
        raise RunError(f"{output}: is the image; choose another file for the mask")
    return [(list(inputs), output)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the words after its name.

    Returns:
        The exit status: 0, 2 for a wrong request, or 1 if a case of a folder failed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-i", "--input", nargs="+", required=True, type=Path, help="image, channels, or a folder")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the mask, or a folder for the masks")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="folder of the model (default: here)")
    parser.add_argument("--threads", type=int, default=0, help="of the network (default: all CPUs)")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that are there")
    arguments = parser.parse_args(argv)
    try:
        cases = cases_of(arguments.input, arguments.output)
        if there := [str(mask) for _, mask in cases if mask.exists() and not arguments.overwrite]:
            raise RunError(f"{', '.join(there[:5])}: is there already; add --overwrite, or choose another output")
        network = Network(arguments.model, arguments.threads)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    for files, path in cases:
        try:
            image = read_image(files, network.contract["channels"])
            mask = network.segment(image)
            write_mask(mask, image, path)
        except (RunError, OSError, MemoryError) as error:
            print(f"error: {_problem(error, files[0], path)}", file=sys.stderr)
            failed += 1
            continue
        names = network.contract["output"]["value_names"]
        counts = [f"{name} {int((mask == int(value)).sum())}" for value, name in names.items() if value != "0"]
        print(f"{path}: voxels: {', '.join(counts)}")
    return 2 if failed == len(cases) else 1 if failed else 0


def _problem(error: Exception, image: Path, mask: Path) -> str:
    """The message for a case that failed."""
    if isinstance(error, MemoryError):
        return f"{image}: needs more memory than there is ({error}); use a machine with more"
    if isinstance(error, OSError):
        return f"{mask}: cannot be written ({error.strerror or error}); choose another output"
    return f"{image}: {error}" if str(image) not in str(error) else str(error)


if __name__ == "__main__":
    sys.exit(main())
