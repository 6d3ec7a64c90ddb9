"""Prediction on the original grid of an image, in bounded memory, by one network or an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import ValidateConfig
from fusionseg.data.formats.case_reader import Image
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.distributed.launch import Launch
from fusionseg.inference.flips import UNFLIPPED, Flip, flips_of_members
from fusionseg.inference.loaded_case import LoadedCase, load_case
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
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_all_trained
from fusionseg.training.precision import set_kernels
from fusionseg.training.tasks.sliding_window import predict_logits
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

PRECISIONS = ("fp32", "bf16", "fp16")
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
    """Whether the prediction is averaged over the flips that the training makes (test-time augmentation): with
    `augment.flip: 0.5` of all three axes, which is eight times the work. Refused if the training flips no axis."""
    memory_gb: float | None = None
    """Host memory in GB for the logits of one volume; None means a quarter of the free memory."""
    precision: str | None = None
    """Precision of the forward pass, one of `PRECISIONS`; None means that of the training, or another one if the device
    lacks it."""

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
        if self.precision is not None and self.precision not in PRECISIONS:
            problems.append(f"precision: expected fp32, bf16 or fp16, got {self.precision!r}")
        return problems


class Predictor:
    """Predicts images by one network, or by an ensemble: the mean of the members' probabilities."""

    def __init__(self, runs: Sequence[Path], options: PredictOptions, launch: Launch | None = None) -> None:
        """Load the networks.

        Args:
            runs: run folders, checkpoint files or archives, at least one.
            options: the options of the prediction.
            launch: of this process among others that predict other cases; None for a single process.

        Raises:
            UserError: a network cannot be loaded, the networks differ in their classes, regions or channels, or the
                options ask for flips and no network can be flipped.
        """
        self.options = options
        self.device = inference_device(options.device, launch)
        self.members = [
            member
            for run in runs
            for member in load_all_trained(
                run, self.device, options.checkpoint, masks=True, precision=options.precision
            )
        ]
        first = self.members[0]
        self.scheme = first.scheme
        self.channels = first.channels
        self.readers = Readers.of(first.config.data)
        self.orders = [_member_orders(member, first) for member in self.members]
        """For each member the positions of its channels among those of the first member, and the positions of the first
        member's outputs among those of the member."""
        self._flips = flips_of_members(self.members) if options.flips else [[UNFLIPPED]] * len(self.members)

    @property
    def labels(self) -> dict[int, str]:
        """Names of the classes 0, 1, ..., the background included."""
        return self.scheme.labels

    @property
    def value_names(self) -> dict[int, str]:
        """Names of the values in the masks, see `LabelScheme.value_names`."""
        return self.scheme.value_names

    def __call__(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Predict the mask of a case, in the shape of its file or array and with the values of label files.

        Args:
            images: one file for each channel, or one file; or an image in memory.
            channels: the positions of the network's channels among those of the images; None means the same order.

        Returns:
            (X, Y, Z): the most probable class of each voxel; or its regions, painted over each other in the order of
            the scheme.

        Raises:
            CaseError: the case cannot be read or prepared.
        """
        return self.scheme.to_mask(self.predict_outputs(images, channels))

    def predict_outputs(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Predict a case as `__call__` does, without the values of label files; see `outputs_of`."""
        return self.outputs_of(self.load(images, channels))

    def probabilities(
        self, images: Sequence[Path] | Image, channels: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Predict the probability of each output, (C, X, Y, Z). The arguments are those of `__call__`.

        The outputs are the classes, the background first; with sigmoid outputs they are `scheme.output_names`.
        """
        case = self.load(images, channels)
        probabilities = self.empty_probabilities(case)
        self.outputs_of(case, probabilities)
        return probabilities

    def load(
        self,
        images: Sequence[Path] | Image,
        channels: Sequence[int] | None = None,
        memory: MemoryLimit | None = None,
    ) -> LoadedCase:
        """Read and prepare a case. Another thread may do this while this one predicts.

        Args:
            images, channels: those of `__call__`.
            memory: that the preparation may take; None is the free memory.

        Raises:
            CaseError: the case cannot be read or prepared; `MemoryNeeded` if it is too large.
        """
        return load_case(self.members, [order for order, _ in self.orders], images, channels, memory)

    def empty_probabilities(self, case: LoadedCase) -> NDArray[np.float32]:
        """An array for the probabilities of a case, (C, X, Y, Z), which `outputs_of` fills."""
        return np.zeros((self.scheme.num_outputs, *case.shape), np.float32)

    def outputs_of(
        self, case: LoadedCase, probabilities: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Predict a case that was loaded.

        Args:
            case: the result of `load`.
            probabilities: an array of `empty_probabilities`, which receives the probability of each output; None to
                compute the outputs alone.

        Returns:
            Class indices, uint8 (X, Y, Z); with sigmoid outputs the mask of each, bool (R, X, Y, Z), which is True for
            a probability above 0.5.
        """
        sigmoid, members = self.scheme.sigmoid, len(self.members)
        outputs: NDArray[Any] = (
            np.zeros((self.scheme.num_outputs, *case.shape), np.bool_) if sigmoid else np.zeros(case.shape, np.uint8)
        )
        for chunk, total in self._chunks(case):
            if sigmoid:
                outputs[(slice(None), *chunk)] = (total > 0.5 * members).numpy()
            else:
                outputs[chunk] = total.argmax(dim=0).to(torch.uint8).numpy()
            if probabilities is not None:
                probabilities[(slice(None), *chunk)] = (total / members).numpy()
        return outputs

    @property
    def missing_channels(self) -> str:
        """ "zero" if all networks accept cases that lack a channel, as `data.missing_channels` of their runs says."""
        return "zero" if all(m.config.data.missing_channels == "zero" for m in self.members) else "refuse"

    def was_trained_on(self, case: LoadedCase) -> bool:
        """Tell whether a network is known to have been trained on a case, by the content of its image."""
        splits = [member.split for member in self.members if member.split is not None]
        return any(split.was_trained_on(case.digest) for split in splits)

    def _chunks(self, case: LoadedCase) -> Iterator[tuple[Box, Tensor]]:
        """For each chunk of a case, the sum of the members' probabilities, (C, X, Y, Z)."""
        for slab in slabs(case.shape, self._needed_bytes(case.shape, case.prepared), self._budget_bytes()):
            parts = [
                self._logits(index, volume, None if slab == whole(case.shape) else slab)
                for index, volume in enumerate(case.volumes)
            ]
            yield from summed_probabilities(parts, slab, sigmoid=self.scheme.sigmoid)

    def _budget_bytes(self) -> float:
        return available_memory_bytes() / 4 if self.options.memory_gb is None else self.options.memory_gb * 1e9

    def _needed_bytes(self, shape: Shape, volumes: Sequence[Volume]) -> float:
        """Host memory for a whole volume: the logits and the sum of window weights of each member, and copies."""
        voxels = max(prod(shape), *(prod(volume.image.shape[1:]) for volume in volumes))
        copies = 3 if self.options.flips else 2
        return voxels * _FLOAT_BYTES * copies * (self.scheme.num_outputs + 1) * len(self.members)

    def _logits(self, index: int, volume: Volume, slab: Box | None) -> BoxLogits:
        """Predict the part of a prepared volume that covers a slab of the original grid, by one member.

        Args:
            index: of the member.
            volume: prepared for this member.
            slab: a box of the original grid; None means all of it.

        Returns:
            Logits with the outputs in the order of the first member.
        """
        member, outputs = self.members[index], self.orders[index][1]
        patch, settings = member.config.data.patch, self.settings(member)
        x, y, z = (slice(0, size) for size in volume.image.shape[1:])
        if slab is not None:
            x, y, z = prepared_box(volume, slab, patch, settings.overlap)
        image = torch.from_numpy(np.ascontiguousarray(volume.image[:, x, y, z]))
        offset = np.array([x.start, y.start, z.start])
        mapping = original_to_prepared(volume)
        mapping[:3, 3] -= offset
        logits = self._predict(member, image, volume.background, settings, self._flips[index])
        if list(outputs) != list(range(len(outputs))):
            logits = logits[list(outputs)]
        return BoxLogits(logits, mapping, volume.image.shape[1:], offset)

    def settings(self, member: TrainedNetwork) -> ValidateConfig:
        """The settings of the sliding window: those of the member's validation, with the overlap of the options.

        Args:
            member: one of `members`.
        """
        settings = member.config.validation
        if self.options.overlap is not None:
            settings = settings.model_copy(update={"overlap": self.options.overlap})
        return settings

    def _predict(
        self,
        member: TrainedNetwork,
        image: Tensor,
        background: Sequence[float],
        settings: ValidateConfig,
        flips: Sequence[Flip],
    ) -> Tensor:
        """Logits (C, X, Y, Z) of a prepared image (C, X, Y, Z), averaged over flips."""
        set_kernels(member.config.train, self.device)  # members may differ
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


def _member_orders(member: TrainedNetwork, first: TrainedNetwork) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Match the channels and the outputs of an ensemble member with those of the first member by name.

    Returns:
        The positions of the member's channels among those of the first member, and the positions of the first member's
        outputs among those of the member.

    Raises:
        UserError: the names are not the same.
    """
    channels = channel_order(member.channels, first.channels)
    outputs = _output_order(first.scheme, member.scheme)
    if channels is None or outputs is None:
        raise UserError(
            f"{member.path}: was trained on the channels {list(member.channels)} and {_outputs_text(member.scheme)},"
            f" and {first.path} on {list(first.channels)} and {_outputs_text(first.scheme)}: an ensemble needs the same"
            " channels and labels, in any order, and the same kind of outputs"
        )
    return channels, outputs


def _output_order(wanted: LabelScheme, given: LabelScheme) -> tuple[int, ...] | None:
    """Find the positions of the outputs of one network among those of another; None if the outputs differ.

    Regions are the same if their names and the names of their classes are.
    """
    if wanted.sigmoid != given.sigmoid:
        return None
    if not wanted.sigmoid:
        return label_order(wanted.labels, given.labels)
    own, other = (_contents(scheme) for scheme in (wanted, given))
    return tuple(list(other).index(name) for name in own) if own == other else None


def _contents(scheme: LabelScheme) -> dict[str, set[str]]:
    """The names of the classes in each output, by its name; without upper case."""
    names = [name.casefold() for name in scheme.names]
    return {
        output.casefold(): {name for name, inside in zip(names, row, strict=True) if inside}
        for output, row in zip(scheme.output_names, scheme.membership, strict=True)
    }


def _outputs_text(scheme: LabelScheme) -> str:
    """Name the outputs in a message: "the labels [...]", "the regions [...]"."""
    if not scheme.sigmoid:
        return f"the labels {list(scheme.names)}"
    return f"the {'regions' if scheme.is_regions else 'sigmoid outputs'} {list(scheme.output_names)}"
