"""A case in memory, prepared for each member of an ensemble, before the networks predict it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusionseg.data.formats.case_reader import ARRAY, Image
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.problems import Findings
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.data.preprocessing.store import settings_key
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.inference.streaming.window_layout import Shape
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.utils.tables import counted


@dataclass(frozen=True)
class LoadedCase:
    """A case that was read and prepared. Members with the same preparation share its arrays."""

    volumes: tuple[Volume, ...]
    """One for each member, with the channels in its order."""
    prepared: tuple[Volume, ...]
    """The volumes of each preparation, once."""

    @property
    def shape(self) -> Shape:
        """Of the file or array, (X, Y, Z)."""
        return self.volumes[0].original_shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel of the file or array along each axis."""
        return voxel_sizes(self.volumes[0].original_affine)

    @property
    def digest(self) -> str:
        """`image_digest` of the image as it was read."""
        return self.volumes[0].digest


def load_case(
    members: Sequence[TrainedNetwork],
    orders: Sequence[Sequence[int]],
    images: Sequence[Path] | Image,
    channels: Sequence[int] | None = None,
    memory: MemoryLimit | None = None,
) -> LoadedCase:
    """Read a case, and prepare it for each member. No network computes here, and other threads may call it.

    Args:
        members: the networks.
        orders: for each member the positions of its channels among those of the first member.
        images: one file for each channel, or one file; or an image in memory.
        channels: the positions of the first member's channels among those of the images; None means the same order.
        memory: that the preparation may take; None is the free memory.

    Raises:
        CaseError: the case cannot be read or prepared; `MemoryNeeded` if it is too large.
    """
    prepared: dict[tuple[str, tuple[str, ...]], Volume] = {}
    volumes: list[Volume] = []
    for member, order in zip(members, orders, strict=True):
        positions = order if channels is None else [channels[position] for position in order]
        # Names of the channels in the order of the images. The settings of a channel are found by its name.
        names = tuple(member.channels[positions.index(place)] for place in range(len(positions)))
        key = settings_key(member.config.data), names
        if key not in prepared:
            prepared[key] = load_volume(images, None, member.config.data, None, channel_names=names, memory=memory)
            _check_channels(members[0].channels, images, len(prepared[key].image))
        volumes.append(_with_channels(prepared[key], positions))
    return LoadedCase(tuple(volumes), tuple(prepared.values()))


def _check_channels(expected: Sequence[str], images: Sequence[Path] | Image, found: int) -> None:
    """Refuse a case with another number of channels.

    Raises:
        CaseError: the number differs.
    """
    if found == len(expected):
        return
    path = ARRAY if isinstance(images, Image) else images[0]
    remedy = "give one file for each channel (NAME_0000, NAME_0001, ...), or one 4D file"
    if isinstance(images, Image):
        remedy = "give (C, X, Y, Z), the channels first"
    wanted = f"expected {len(expected)}, the network reads {', '.join(expected)}"
    findings = Findings()
    findings.add("error", path, "channels", f"the case has {counted(found, 'channel')} ({wanted})", remedy)
    findings.refuse()


def _with_channels(volume: Volume, positions: Sequence[int]) -> Volume:
    """Select channels of a volume, in this order. Channels are normalised one by one, so the values do not change."""
    if list(positions) == list(range(len(volume.image))):
        return volume
    return replace(
        volume,
        image=volume.image[list(positions)],
        zero_is_outside=tuple(volume.zero_is_outside[position] for position in positions),
        missing=tuple(place for place, position in enumerate(positions) if position in volume.missing),
    )
