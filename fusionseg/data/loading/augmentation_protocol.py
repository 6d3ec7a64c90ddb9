"""The protocol of an augmentation, and the random numbers that it draws on the host and uses on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Augmentation(Protocol):
    """A random change of training samples, built in or a user's own. It keeps no state between samples."""

    def draw(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Draw the random numbers of one sample.

        Args:
            rng: a generator that belongs to this sample and this augmentation. Resuming is exact only if no other
                random numbers are used.

        Returns:
            Numbers, or arrays of the same shape for every sample, by name.
        """

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Change a batch; each sample by its own numbers alone.

        Args:
            image: (B, C, X, Y, Z) float32, on the training device; may be changed in place.
            label: (B, 1, X, Y, Z) int64, on the same device; may be changed in place.
            drawn: the numbers that were drawn for these samples.

        Returns:
            Image and label in the same shapes.
        """


class Drawn(Mapping[str, Tensor]):
    """The numbers that were drawn for the samples of a batch: tensors (B, ...) on the device of the batch.

    Args:
        host: the same numbers in host memory, (B, ...). Reading them does not wait for the device.
        send: copies an array to the device.
    """

    def __init__(self, host: Mapping[str, NDArray[Any]], send: Callable[[NDArray[Any]], Tensor]) -> None:
        self.host = host
        self.send = send
        """Copies an array to the device of the batch, without waiting for it."""

    def __getitem__(self, name: str) -> Tensor:
        values = self.host[name]
        return self.send(values.astype(np.float32) if values.dtype == np.float64 else values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.host)

    def __len__(self) -> int:
        return len(self.host)


@dataclass(frozen=True)
class Draws:
    """The plan of one augmentation for the B samples of a micro-batch.

    Args:
        hit: (B,), True for a sample that is changed.
        values: by name, (number of changed samples, ...).
    """

    hit: NDArray[np.bool_]
    values: dict[str, NDArray[Any]]

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Yield each group of neighbouring changed samples: its slice of the batch, and its slice of `values`."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.hit, [False]]).astype(np.int8)))
        first = 0
        for start, stop in edges.reshape(-1, 2).tolist():
            yield slice(start, stop), slice(first, first + stop - start)
            first += stop - start
