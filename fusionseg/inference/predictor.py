"""Prediction on the original grid of an image, in bounded memory, by one network or an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.config import ValidateConfig
from fusionseg.data.formats.case_reader import Image
from fusionseg.data.formats.readers import Readers
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.distributed.launch import Launch
from fusionseg.inference.ensemble import member_orders
from fusionseg.inference.flips import UNFLIPPED, flips_of_members
from fusionseg.inference.loaded_case import LoadedCase, load_case
from fusionseg.inference.streaming.chunks import decisions, decisions_of, sampled_chunks, summed_probabilities
from fusionseg.inference.streaming.grid_map import Sampled
from fusionseg.inference.streaming.logits import StreamSettings
from fusionseg.inference.streaming.member_volume import MemberVolume
from fusionseg.inference.streaming.memory import StreamMemory, batch_of_windows, slabs, stream_memory
from fusionseg.inference.streaming.window_layout import Box, whole_box
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_all_trained
from fusionseg.inference.window_network import WindowNetwork
from fusionseg.utils.machine import available_memory_bytes

log = logging.getLogger("fusionseg")

PRECISIONS = ("fp32", "bf16", "fp16")


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
    """Host memory in GB for the logits of one volume; None means half of the free memory, which the processes of a host
    share."""
    precision: str | None = None
    """Precision of the forward pass, one of `PRECISIONS`; None means that of the training, or another one if the device
    lacks it."""
    skip_air: bool = False
    """Whether windows of nothing but background, such as the air around a patient, are left out. Voxels that lie in no
    other window are background."""

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
        self.processes_on_host = 1 if launch is None else launch.local_world_size
        """Processes that share the memory of this host and predict other cases, this one included."""
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
        self.orders = [member_orders(member, first) for member in self.members]
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
        for chunk, sampled in self._chunks(case):
            place = (..., *chunk)
            if probabilities is None:
                outputs[place] = decisions(sampled, chunk, self.scheme.num_outputs, sigmoid=sigmoid).numpy()
                continue
            total = summed_probabilities(sampled, chunk, self.scheme.num_outputs, sigmoid=sigmoid)
            outputs[place] = decisions_of(total, members, sigmoid=sigmoid).numpy()
            probabilities[place] = (total / members).numpy()
        return outputs

    @property
    def missing_channels(self) -> str:
        """ "zero" if all networks accept cases that lack a channel, as `data.missing_channels` of their runs says."""
        return "zero" if all(m.config.data.missing_channels == "zero" for m in self.members) else "refuse"

    def was_trained_on(self, case: LoadedCase) -> bool:
        """Tell whether a network is known to have been trained on a case, by the content of its image."""
        splits = [member.split for member in self.members if member.split is not None]
        return any(split.was_trained_on(case.digest) for split in splits)

    def _chunks(self, case: LoadedCase) -> Iterator[tuple[Box, list[Sampled | None]]]:
        """For each chunk of a case, the logits of each member. Chunks come twice if a GPU runs out of memory."""
        outputs, budget = self.scheme.num_outputs, self._budget_bytes()
        members = [self._member_volume(index, volume, budget) for index, volume in enumerate(case.volumes)]
        axis = members[0].longest_axis()
        stitch = self._stitch_device(stream_memory(members, axis, outputs))
        if stitch.type != "cpu":
            try:
                yield from self._streamed(members, [whole_box(case.shape)], axis, stitch)
                return
            except torch.OutOfMemoryError:
                log.info("the memory of %s is too small for the open rows and a window: the CPU holds the rows", stitch)
            # The volume begins again after the clause, because the error holds the rows.
        parts = slabs(members, axis, outputs, budget, elsewhere=self.device.type != "cpu")
        yield from self._streamed(members, parts, axis, torch.device("cpu"))

    def _streamed(
        self, members: Sequence[MemberVolume], parts: Sequence[Box], axis: int, stitch: torch.device
    ) -> Iterator[tuple[Box, list[Sampled | None]]]:
        """The result of `_chunks`, slab by slab, with the open rows on a device."""
        for part in parts:
            rows = [
                volume.rows(part if len(parts) > 1 else None, axis, self._stream_settings(member, stitch))
                for member, volume in zip(self.members, members, strict=True)
            ]
            yield from sampled_chunks(rows, part, axis, self.scheme.num_outputs)

    def _budget_bytes(self) -> float:
        if self.options.memory_gb is not None:
            return self.options.memory_gb * 1e9
        return available_memory_bytes() / 2 / self.processes_on_host

    def _stitch_device(self, needed: StreamMemory) -> torch.device:
        """The device of the open rows: a GPU that has the memory for them, otherwise the CPU."""
        if self.device.type != "cuda" or self.options.memory_gb is not None:
            return torch.device("cpu")
        # Memory that torch's allocator holds and does not use is free too.
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + held
        return self.device if needed.total < free / 4 else torch.device("cpu")

    def _stream_settings(self, member: TrainedNetwork, stitch: torch.device) -> StreamSettings:
        return StreamSettings(
            self.settings(member).blend,
            self.device,
            stitch,
            self.scheme.num_outputs,
            self.scheme.sigmoid,
            self.options.skip_air,
        )

    def _member_volume(self, index: int, volume: Volume, budget_bytes: float) -> MemberVolume:
        member = self.members[index]
        settings, patch = self.settings(member), member.config.data.patch
        network = WindowNetwork(member, self.device, self._flips[index], self.orders[index][1])
        batch = settings.window_batch
        if self.device.type == "cpu":  # the host's memory does not limit the windows of a GPU
            batch = batch_of_windows(batch, patch, self.scheme.num_outputs, network.copies, budget_bytes)
        return MemberVolume(volume, network, patch, settings.overlap, batch, network.copies)

    def settings(self, member: TrainedNetwork) -> ValidateConfig:
        """The settings of the sliding window: those of the member's validation, with the overlap of the options.

        Args:
            member: one of `members`.
        """
        settings = member.config.validation
        if self.options.overlap is not None:
            settings = settings.model_copy(update={"overlap": self.options.overlap})
        return settings
