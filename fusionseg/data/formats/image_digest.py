"""The identity of an image: a digest of its voxels, independent of the name and the storage of its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

DIGEST_PATTERN = "^(constant)?[0-9a-f]{32}(-(constant)?[0-9a-f]{32})*$"
_CONSTANT = "constant"


def image_digest(image: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """Hash the voxels of an image, or of a label: a digest for each channel, joined by `-`.

    The digest does not depend on file name, compression, data type or voxel order (axes that are flipped or exchanged
    together with the affine). It does not depend on position and voxel sizes: a scan with a corrected header is the
    same scan.

    Args:
        image: (C, X, Y, Z), the values as they are read.
        affine: 4x4, invertible, from voxel index to mm in RAS+.
    """
    turn = io_orientation(affine)
    return "-".join(_channel_digest(channel, turn) for channel in image)


@dataclass(frozen=True)
class ImageSet:
    """A set of images that are recognised by any of their channels, in any order of the channels.

    A constant channel (a missing sequence that was filled with zeros) identifies no image and does not count, unless an
    image has no other channel.
    """

    channels: frozenset[str] = frozenset()

    @staticmethod
    def of(digests: Iterable[str]) -> ImageSet:
        """Make the set of images with these digests."""
        return ImageSet(frozenset(channel for digest in digests for channel in _identifying_channels(digest)))

    def __contains__(self, digest: str) -> bool:
        return not self.channels.isdisjoint(_identifying_channels(digest))

    def __or__(self, other: ImageSet) -> ImageSet:
        return ImageSet(self.channels | other.channels)


def _identifying_channels(digest: str) -> list[str]:
    channels = digest.split("-")
    return [channel for channel in channels if not channel.startswith(_CONSTANT)] or channels


def _channel_digest(channel: NDArray[Any], turn: NDArray[np.float64]) -> str:
    turned = apply_orientation(np.asarray(channel, np.float32), turn)
    digest = hashlib.blake2b(str(turned.shape).encode(), digest_size=16)
    # + 0.0 turns a negative zero into the equal positive zero, and makes a copy in C order.
    digest.update(np.add(turned, np.float32(0), order="C"))
    constant = turned.size > 0 and bool((turned == turned.flat[0]).all())
    return (_CONSTANT if constant else "") + digest.hexdigest()
