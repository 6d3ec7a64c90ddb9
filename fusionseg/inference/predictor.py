"""Masks in each input's own geometry, in bounded memory, from one network or an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import ValidateConfig
from fusionseg.data.formats.case_reader import ARRAY, Image
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.preprocessing.store import settings_key
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_trained
from fusionseg.training.tasks.sliding_window import predict_logits
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction."""

    device: str = "auto"
    checkpoint: str = "best"
    overlap: float | None = None
    """Overlap of neighbouring windows; None is the run's own."""
    flips: bool = False
    """Average over the eight flips (test-time augmentation): eight times the work."""
    memory_gb: float | None = None
    """Host memory for the logits of one volume; None is a quarter of what is free."""


class Predictor:
    """One run, or several as an ensemble: the mean of their class probabilities in the input's geometry."""

    def __init__(self, runs: Sequence[Path], options: PredictOptions) -> None:
        self.options = options
        self.device = inference_device(options.device)
        self.members = [load_trained(run, self.device, options.checkpoint, masks=True) for run in runs]
        first = self.members[0]
        self.labels = first.labels
        self.channels = first.channels
        self.readers = Readers(first.config.data.reader)
        # Of each member: the channels as it reads them, and its classes in the first member's order.
        self._orders = [_member_orders(member, first) for member in self.members]
        self._digest = ""  # of the image that was predicted last

    def __call__(self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Predict the mask of a case, in the shape of its file or array.

        Args:
            images: one file per channel, or one file; or an image that is in memory.
            channels: the places of the first network's channels among those of the images; None is their own order.

        Returns:
            (X, Y, Z), the most probable class of each voxel.

        Raises:
            CaseError: the case cannot be read or prepared.
        """
        shape, chunks = self._predict_case(images, channels)
        mask = np.zeros(shape, np.uint8)
        for chunk, total in chunks:
            mask[chunk] = total.argmax(dim=0).to(torch.uint8).numpy()
        return mask

    def probabilities(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Predict the probability of each class, (K, X, Y, Z); the arguments are those of a call."""
        shape, chunks = self._predict_case(images, channels)
        probabilities = np.zeros((len(self.labels), *shape), np.float32)
        for chunk, total in chunks:
            probabilities[(slice(None), *chunk)] = (total / len(self.members)).numpy()
        return probabilities

    def _predict_case(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None
    ) -> tuple[tuple[int, int, int], Iterator[tuple[Box, Tensor]]]:
        """The shape of a case, and for each chunk of it the sum of the members' probabilities, (K, chunk)."""
        prepared: dict[str, Volume] = {}
        volumes: list[Volume] = []  # of each member
        for member, (order, _) in zip(self.members, self._orders, strict=True):
            key = settings_key(member.config.data)
            if key not in prepared:
                prepared[key] = load_volume(images, None, member.config.data, None)
                self._check_channels(images, len(prepared[key].image))
            places = order if channels is None else [channels[place] for place in order]
            volumes.append(_with_channels(prepared[key], places))
        shape, self._digest = volumes[0].original_shape, volumes[0].digest

        def chunks() -> Iterator[tuple[Box, Tensor]]:
            for slab in self._slabs(shape, list(prepared.values())):
                part = None if slab == _whole(shape) else slab
                parts = [
                    self._logits(member, volume, part, classes)
                    for member, volume, (_, classes) in zip(self.members, volumes, self._orders, strict=True)
                ]
                yield from _fuse(parts, slab)

        return shape, chunks()

    def was_trained_on_last(self) -> bool:
        """Whether the image that was predicted last is known to have been trained on, by content."""
        return any(member.split is not None and member.split.was_trained_on(self._digest) for member in self.members)

    def _check_channels(self, images: Sequence[Path] | Image, found: int) -> None:
        if found != len(self.channels):
            findings = Findings()
            path = ARRAY if isinstance(images, Image) else images[0]
            remedy = "give one file for each channel (NAME_0000, NAME_0001, ...), or one 4D file"
            if isinstance(images, Image):
                remedy = "give (C, X, Y, Z), the channels first"
            message = f"the case has {found} channel{'s' * (found != 1)}, and the network reads {list(self.channels)}"
            findings.add("error", path, "channels", message, remedy)
            findings.refuse()

    def _slabs(self, shape: tuple[int, int, int], volumes: Sequence[Volume]) -> Iterator[Box]:
        """The volume in as few slabs along its longest axis as the memory allows."""
        budget = available_memory_bytes() / 4 if self.options.memory_gb is None else self.options.memory_gb * 1e9
        voxels = max(prod(shape), *(prod(volume.image.shape[1:]) for volume in volumes))
        # logits, the sum of window weights, and one copy of each while they are divided, per ensemble member
        copies = 3 if self.options.flips else 2
        needed = voxels * 4 * copies * (len(self.labels) + 1) * len(self.members)
        axis = int(np.argmax(shape))
        count = min(shape[axis], max(1, ceil(needed / budget)))
        edges = [round(shape[axis] * n / count) for n in range(count + 1)]
        for start, stop in pairwise(edges):
            box = list(_whole(shape))
            box[axis] = slice(start, stop)
            yield box[0], box[1], box[2]

    def _logits(self, member: TrainedNetwork, volume: Volume, slab: Box | None, classes: Sequence[int]) -> _Part:
        """Logits over the part of the prepared volume that `slab` of the original lies in; None is all of it.

        Args:
            classes: the member's classes in the order in which they are wanted.
        """
        to_prepared = np.linalg.inv(volume.affine) @ volume.original_affine
        shape = np.array(volume.image.shape[1:])
        low, high = np.zeros(3, int), shape
        if slab is not None:
            corners = np.array(list(product(*((side.start, side.stop - 1) for side in slab))))
            points = corners @ to_prepared[:3, :3].T + to_prepared[:3, 3]
            first = np.clip(np.floor(points.min(axis=0)).astype(int), 0, shape - 1)
            last = np.clip(np.ceil(points.max(axis=0)).astype(int), first, shape - 1)
            patch, overlap = member.config.data.patch, self._settings(member).overlap
            spans = [
                span_of_windows(int(n), p, overlap, int(a), int(b))
                for n, p, a, b in zip(shape, patch, first, last, strict=True)
            ]
            low, high = np.array(spans).T
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        image = torch.from_numpy(np.ascontiguousarray(volume.image[:, x, y, z]))
        mapping = to_prepared.copy()
        mapping[:3, 3] -= low
        logits = self._predict(member, image, volume.background)
        if list(classes) != list(range(len(classes))):
            logits = logits[list(classes)]
        return _Part(logits, mapping, volume.image.shape[1:], low)

    def _settings(self, member: TrainedNetwork) -> ValidateConfig:
        settings = member.config.validation
        if self.options.overlap is not None:
            settings = settings.model_copy(update={"overlap": self.options.overlap})
        return settings

    def _predict(self, member: TrainedNetwork, image: Tensor, background: Sequence[float]) -> Tensor:
        settings = self._settings(member)
        flips = list(product((False, True), repeat=3)) if self.options.flips else [(False, False, False)]
        total: Tensor | None = None
        for flip in flips:
            axes = [axis + 1 for axis in range(3) if flip[axis]]
            logits = predict_logits(
                member.model,
                image.flip(axes),
                background,
                member.config.data.patch,
                settings,
                member.precision,
                device=self.device,
                stitch_device=torch.device("cpu"),  # a GPU holds the windows only, however large the volume
            ).flip(axes)
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total / len(flips)


def _member_orders(member: TrainedNetwork, first: TrainedNetwork) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The places among the first member's channels of a member's channels; its classes in the first member's order."""
    channels = channel_order(member.channels, first.channels)
    classes = label_order(first.labels, member.labels)
    if channels is None or classes is None:
        raise UserError(
            f"{member.path}: was trained on the channels {list(member.channels)} and the labels"
            f" {list(member.labels.values())}, and {first.path} on {list(first.channels)} and"
            f" {list(first.labels.values())}: an ensemble needs the same channels and labels, in whatever order"
        )
    return channels, classes


def _with_channels(volume: Volume, places: Sequence[int]) -> Volume:
    """The volume with these of its channels; each was normalised for itself, so this is exact."""
    if list(places) == list(range(len(volume.image))):
        return volume
    return replace(volume, image=volume.image[list(places)])


@dataclass(frozen=True)
class _Part:
    """Logits over a box of a prepared volume."""

    logits: Tensor
    """(K, X, Y, Z)"""
    mapping: NDArray[np.float64]
    """4x4, original voxel -> voxel of `logits`."""
    prepared_shape: tuple[int, ...]
    offset: NDArray[np.int64]
    """Voxel of the prepared volume at which `logits` begin."""


def span_of_windows(size: int, patch: int, overlap: float, first: int, last: int) -> tuple[int, int]:
    """Begin and end, along an axis of `size` voxels, of the sliding windows that cover the voxels `first` to `last`.

    Windows laid over this span alone are the windows of the whole axis: what a slab predicts is then what the whole
    volume does. (Of a flipped volume they begin at the other end: with test-time flips they are near, not the same.)
    """
    if size <= patch:
        return 0, size
    interval = max(1, int(patch * (1 - overlap)))  # as MONAI lays them; the last one ends with the axis
    starts = [min(start, size - patch) for start in range(0, size - patch + interval, interval)]
    covering = [start for start in starts if start <= last and start + patch > first]
    return covering[0], covering[-1] + patch


def _whole(shape: tuple[int, int, int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _fuse(parts: Sequence[_Part], slab: Box, chunk_numbers: int = 8_000_000) -> Iterator[tuple[Box, Tensor]]:
    """Class probabilities in a slab, chunk by chunk: logits are interpolated, softmax is applied, the parts are added.

    Yields:
        A box of the volume, and (K, X, Y, Z) of it: the sum over the parts.
    """
    x, y, z = slab
    classes = len(parts[0].logits)
    rows = max(1, chunk_numbers // (classes * (y.stop - y.start) * (z.stop - z.start)))
    for start in range(x.start, x.stop, rows):
        chunk = slice(start, min(start + rows, x.stop)), y, z
        total: Tensor | None = None
        for part in parts:
            probability = _resample(part, chunk)
            total = probability if total is None else total.add_(probability)
        assert total is not None
        yield chunk, total


def _resample(part: _Part, chunk: Box) -> Tensor:
    """(K, X, Y, Z) class probabilities at the original voxels of `chunk`; outside what was prepared, background."""
    axes = [torch.arange(side.start, side.stop, dtype=torch.float64) for side in chunk]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    mapping = torch.from_numpy(part.mapping)
    points = points @ mapping[:3, :3].T + mapping[:3, 3]
    size = torch.tensor(part.logits.shape[1:], dtype=torch.float64)
    grid = ((2 * points + 1) / size - 1).flip(-1).float()
    logits = F.grid_sample(
        part.logits[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    probability = logits.softmax(dim=0)
    # A voxel of the original just beyond the prepared grid (rounding of the resampling) takes its neighbour's class;
    # further out lies what the foreground crop cut away.
    place = points + torch.from_numpy(part.offset.astype(np.float64))
    limit = torch.tensor(part.prepared_shape, dtype=torch.float64)
    outside = ((place < -1) | (place > limit)).any(dim=-1)
    probability[:, outside] = 0
    probability[0, outside] = 1
    return probability
