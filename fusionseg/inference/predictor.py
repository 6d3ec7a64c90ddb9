"""Prediction on the original grid of an image, in bounded memory, by one network or an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import ValidateConfig
from fusionseg.config.data.spatial import AXES
from fusionseg.data.formats.case_reader import ARRAY, Image
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.mirroring import LEFT_RIGHT, mirrored_outputs
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.store import settings_key
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.inference.original_grid import (
    Box,
    BoxLogits,
    Shape,
    original_to_prepared,
    prepared_box,
    slabs,
    summed_probabilities,
    whole,
)
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_trained
from fusionseg.training.tasks.sliding_window import predict_logits
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PredictOptions:
    """The options of a prediction."""

    device: str = "auto"
    checkpoint: str = "best"
    """The checkpoint of a run folder, "best" or "last"."""
    overlap: float | None = None
    """Overlap of neighbouring windows; None means that of the run's configuration."""
    flips: bool = False
    """Whether the prediction is averaged over flips (test-time augmentation): of all three axes, which is eight times
    the work, or of those that the training flips (`augment.flip.axes`)."""
    memory_gb: float | None = None
    """Host memory in GB for the logits of one volume; None means a quarter of the free memory."""

    def problems(self, *, overlap: str, memory: str) -> list[str]:
        """List the values out of range.

        Args:
            overlap: the name of `overlap` in the message: an option of a command, or an argument.
            memory: the name of `memory_gb` in the message.
        """
        problems = []
        if self.overlap is not None and not 0 <= self.overlap < 1:
            problems.append(f"{overlap}: expected a number from 0 to below 1, such as 0.5, got {self.overlap}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            problems.append(f"{memory}: expected a number of gigabytes above 0, got {self.memory_gb}")
        return problems


class Predictor:
    """Predicts images by one network, or by an ensemble: the mean of the members' class probabilities."""

    def __init__(self, runs: Sequence[Path], options: PredictOptions) -> None:
        """Load the networks.

        Args:
            runs: run folders or checkpoint files, at least one.
            options: the options of the prediction.

        Raises:
            UserError: a network cannot be loaded, or the networks differ in their labels or channels.
        """
        self.options = options
        self.device = inference_device(options.device)
        self.members = [load_trained(run, self.device, options.checkpoint, masks=True) for run in runs]
        first = self.members[0]
        self.labels = first.labels
        self.channels = first.channels
        self.readers = Readers(first.config.data.reader)
        # For each member the two results of `_member_orders`: the order of the channels, and that of the classes.
        self._orders = [_member_orders(member, first) for member in self.members]
        self._last_digest = ""

    def __call__(self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Predict the mask of a case, in the shape of its file or array.

        Args:
            images: one file for each channel, or one file; or an image in memory.
            channels: the positions of the network's channels among those of the images; None means the same order.

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
        """Predict the probability of each class, (K, X, Y, Z). The arguments are those of `__call__`."""
        shape, chunks = self._predict_case(images, channels)
        probabilities = np.zeros((len(self.labels), *shape), np.float32)
        for chunk, total in chunks:
            probabilities[(slice(None), *chunk)] = (total / len(self.members)).numpy()
        return probabilities

    def was_trained_on_last(self) -> bool:
        """Tell whether a network is known to have been trained on the last predicted image, by its content."""
        splits = [member.split for member in self.members if member.split is not None]
        return any(split.was_trained_on(self._last_digest) for split in splits)

    def _predict_case(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None
    ) -> tuple[Shape, Iterator[tuple[Box, Tensor]]]:
        """The shape of a case, and for each chunk of it the sum of the members' probabilities, (K, X, Y, Z)."""
        prepared: dict[str, Volume] = {}
        volumes: list[Volume] = []  # one for each member
        for member, (order, _) in zip(self.members, self._orders, strict=True):
            key = settings_key(member.config.data)
            if key not in prepared:
                prepared[key] = load_volume(images, None, member.config.data, None)
                self._check_channels(images, len(prepared[key].image))
            positions = order if channels is None else [channels[position] for position in order]
            volumes.append(_with_channels(prepared[key], positions))
        shape, self._last_digest = volumes[0].original_shape, volumes[0].digest

        def chunks() -> Iterator[tuple[Box, Tensor]]:
            for slab in slabs(shape, self._needed_bytes(shape, list(prepared.values())), self._budget_bytes()):
                parts = [
                    self._logits(member, volume, None if slab == whole(shape) else slab, classes)
                    for member, volume, (_, classes) in zip(self.members, volumes, self._orders, strict=True)
                ]
                yield from summed_probabilities(parts, slab)

        return shape, chunks()

    def _check_channels(self, images: Sequence[Path] | Image, found: int) -> None:
        """Refuse a case with another number of channels.

        Raises:
            CaseError: the number differs.
        """
        if found == len(self.channels):
            return
        path = ARRAY if isinstance(images, Image) else images[0]
        remedy = "give one file for each channel (NAME_0000, NAME_0001, ...), or one 4D file"
        if isinstance(images, Image):
            remedy = "give (C, X, Y, Z), the channels first"
        expected = f"expected {len(self.channels)}, the network reads {', '.join(self.channels)}"
        message = f"the case has {found} channel{'s' * (found != 1)} ({expected})"
        findings = Findings()
        findings.add("error", path, "channels", message, remedy)
        findings.refuse()

    def _budget_bytes(self) -> float:
        return available_memory_bytes() / 4 if self.options.memory_gb is None else self.options.memory_gb * 1e9

    def _needed_bytes(self, shape: Shape, volumes: Sequence[Volume]) -> float:
        """Host memory for a whole volume: the logits and the sum of window weights of each member, and copies."""
        voxels = max(prod(shape), *(prod(volume.image.shape[1:]) for volume in volumes))
        copies = 3 if self.options.flips else 2
        return voxels * _FLOAT_BYTES * copies * (len(self.labels) + 1) * len(self.members)

    def _logits(self, member: TrainedNetwork, volume: Volume, slab: Box | None, classes: Sequence[int]) -> BoxLogits:
        """Predict the part of a prepared volume that covers a slab of the original grid.

        Args:
            slab: a box of the original grid; None means all of it.
            classes: the positions of the first member's classes among those of this member.
        """
        patch, settings = member.config.data.patch, self._settings(member)
        x, y, z = (slice(0, size) for size in volume.image.shape[1:])
        if slab is not None:
            x, y, z = prepared_box(volume, slab, patch, settings.overlap)
        image = torch.from_numpy(np.ascontiguousarray(volume.image[:, x, y, z]))
        offset = np.array([x.start, y.start, z.start])
        mapping = original_to_prepared(volume)
        mapping[:3, 3] -= offset
        logits = self._predict(member, image, volume.background, settings)
        if list(classes) != list(range(len(classes))):
            logits = logits[list(classes)]
        return BoxLogits(logits, mapping, volume.image.shape[1:], offset)

    def _settings(self, member: TrainedNetwork) -> ValidateConfig:
        """The settings of the sliding window: those of the member's validation, with the overlap of the options."""
        settings = member.config.validation
        if self.options.overlap is not None:
            settings = settings.model_copy(update={"overlap": self.options.overlap})
        return settings

    def _predict(
        self, member: TrainedNetwork, image: Tensor, background: Sequence[float], settings: ValidateConfig
    ) -> Tensor:
        """Logits (K, X, Y, Z) of a prepared image (C, X, Y, Z), averaged over flips if the options ask for it."""
        flips = _test_time_flips(member) if self.options.flips else [Flip((), None)]
        total: Tensor | None = None
        for flip in flips:
            axes = [axis + 1 for axis in flip.axes]
            logits = predict_logits(
                member.model,
                image.flip(axes),
                background,
                member.config.data.patch,
                settings,
                member.precision,
                device=self.device,
                stitch_device=torch.device("cpu"),  # a GPU holds the windows only, however large the volume is
            ).flip(axes)
            if flip.outputs is not None:
                logits = logits[list(flip.outputs)]
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total / len(flips)


@dataclass(frozen=True)
class Flip:
    """A flip of test-time augmentation."""

    axes: tuple[int, ...]
    """The axes of a prepared volume that are flipped."""
    outputs: tuple[int, ...] | None
    """For each output, the output of the flipped image that means the same; None if no output changes."""


def _test_time_flips(member: TrainedNetwork) -> list[Flip]:
    """The flips over which a prediction is averaged.

    They are the flips that the network was trained with: `augment.flip.axes`. Labels of the left and the right side are
    exchanged as `augment.mirror_pairs` says. If an output has no mirror image, left and right are not flipped.
    """
    augment = member.config.augment
    scheme = LabelScheme.of_names([member.labels[index] for index in sorted(member.labels)])
    axes = [axis for axis, name in enumerate(AXES) if name in augment.flips.axes]
    outputs = mirrored_outputs(augment.mirror_pairs, scheme) if augment.mirror_pairs else None
    if augment.mirror_pairs and outputs is None:
        axes.remove(LEFT_RIGHT)
    flips = []
    for chosen in product((False, True), repeat=len(axes)):
        flipped = tuple(axis for axis, used in zip(axes, chosen, strict=True) if used)
        flips.append(Flip(flipped, outputs if LEFT_RIGHT in flipped else None))
    return flips


def _member_orders(member: TrainedNetwork, first: TrainedNetwork) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Match the channels and the classes of an ensemble member with those of the first member by name.

    Returns:
        The positions of the member's channels among those of the first member, and the positions of the first member's
        classes among those of the member.

    Raises:
        UserError: the names are not the same.
    """
    channels = channel_order(member.channels, first.channels)
    classes = label_order(first.labels, member.labels)
    if channels is None or classes is None:
        raise UserError(
            f"{member.path}: was trained on the channels {list(member.channels)} and the labels"
            f" {list(member.labels.values())}, and {first.path} on {list(first.channels)} and"
            f" {list(first.labels.values())}: an ensemble needs the same channels and labels, in any order"
        )
    return channels, classes


def _with_channels(volume: Volume, positions: Sequence[int]) -> Volume:
    """Select channels of a volume, in this order. Channels are normalised one by one, so the values do not change."""
    if list(positions) == list(range(len(volume.image))):
        return volume
    return replace(volume, image=volume.image[list(positions)])
