"""The identity of an image: a digest of its voxels, the same whatever its file is called and however it is stored."""

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

    Another file name, compression, data type or voxel order (an axis that is flipped or exchanged, with the affine
    following) keeps the digest. The position in space and the voxel sizes do not count: the same scan with a corrected
    header is the same scan.

    Args:
        image: (C, X, Y, Z), the values as they are read.
        affine: 4x4, invertible, voxel -> mm in RAS.
    """
    turn = io_orientation(affine)
    return "-".join(_channel_digest(channel, turn) for channel in image)


@dataclass(frozen=True)
class ImageSet:
    """Images, known again by any of their channels: in another order of the channels, or one of them alone.

    A channel whose voxels are all alike (a sequence that was not taken, filled with zeros) tells no images apart and
    does not count, unless an image has no other.
    """

    channels: frozenset[str] = frozenset()

    @staticmethod
    def of(digests: Iterable[str]) -> ImageSet:
        return ImageSet(frozenset(channel for digest in digests for channel in _telling(digest)))

    def __contains__(self, digest: str) -> bool:
        return not self.channels.isdisjoint(_telling(digest))

    def __or__(self, other: ImageSet) -> ImageSet:
        return ImageSet(self.channels | other.channels)


def _telling(digest: str) -> list[str]:
    channels = digest.split("-")
    return [channel for channel in channels if not channel.startswith(_CONSTANT)] or channels


def _channel_digest(channel: NDArray[Any], turn: NDArray[np.float64]) -> str:
    turned = apply_orientation(np.asarray(channel, np.float32), turn)
    digest = hashlib.blake2b(str(turned.shape).encode(), digest_size=16)
    # + 0.0 turns the negative zero, which equals 0, into it; a copy in C order comes with it.
    digest.update(np.add(turned, np.float32(0), order="C"))
    constant = turned.size > 0 and bool((turned == turned.flat[0]).all())
    return (_CONSTANT if constant else "") + digest.hexdigest()
