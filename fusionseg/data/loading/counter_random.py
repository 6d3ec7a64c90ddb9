"""Counter-based random numbers: functions of (seed, step, sample, purpose), without any state.

The generator is Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its counter is
(step, sample, purpose), so nothing has to be saved and resuming is exact. Each purpose has a counter of its own:
switching one augmentation on does not change the numbers of the others.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.data.loading.purposes import Purpose


def random_bits(seed: int, step: int, sample: int, purpose: int, count: int) -> NDArray[np.uint64]:
    """Draw 64-bit words.

    Args:
        seed: of the run.
        step: of the optimizer; the order of the cases has the epoch here.
        sample: index of the sample within the global batch.
        purpose: use of the numbers.
        count: number of words.
    """
    bits: NDArray[np.uint64] = _reused.at(seed, step, sample, purpose).random_raw(count)
    return bits


def uniform(seed: int, step: int, sample: int, purpose: int, count: int) -> NDArray[np.float64]:
    """Draw `count` numbers in [0, 1); for the other arguments see `random_bits`."""
    return (random_bits(seed, step, sample, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, step: int, sample: int, purpose: int) -> np.random.Generator:
    """Make a generator whose `random()` gives the numbers of `uniform`; for the arguments see `random_bits`."""
    return np.random.Generator(_philox(seed, step, sample, purpose))


class _ReusedPhilox(threading.local):
    """One generator of each thread, set to a counter: several times faster than a new generator for each sample."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._state: Any = self._philox.state  # the buffer is used up, so the next word is the first of the counter

    def at(self, seed: int, step: int, sample: int, purpose: int) -> np.random.Philox:
        """The generator as `_philox` makes it, until the next call."""
        self._state["state"] = {
            "counter": np.array((0, purpose, sample, step), np.uint64),
            "key": np.array((seed, 0), np.uint64),
        }
        self._philox.state = self._state
        return self._philox


_reused = _ReusedPhilox()


def _philox(seed: int, step: int, sample: int, purpose: int) -> np.random.Philox:
    return np.random.Philox(key=[seed, 0], counter=[0, purpose, sample, step])


def hidden_blocks(
    seed: int, step: int, sample: int, purpose: Purpose, num_blocks: int, num_hidden: int
) -> NDArray[np.bool_]:
    """Choose the blocks of a sample that are hidden from the network.

    The blocks that a smaller `num_hidden` hides are hidden by a larger one too.

    Args:
        seed: as for `random_bits`, like `step`, `sample` and `purpose`.
        num_blocks: number of blocks of the sample.
        num_hidden: number of blocks to hide.

    Returns:
        (num_blocks,), True for a hidden block.
    """
    order = np.argsort(random_bits(seed, step, sample, purpose, num_blocks), kind="stable")
    hidden = np.zeros(num_blocks, np.bool_)
    hidden[order[:num_hidden]] = True
    return hidden


def counter_normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers as a function of keys alone, the same on every device.

    Two rounds of a 32-bit integer hash (the "lowbias32" constants of C. Wellons' search) over the counter, then
    Box and Muller (1958).

    Args:
        keys: (B,) 32-bit keys in int64.
        count: numbers for each key.

    Returns:
        (B, count) float32.
    """
    device, half = keys.device, (count + 1) // 2
    # On a CPU the numbers are made in pieces whose buffers stay in its cache, which takes a tenth of the time.
    piece = min(half, 1 << 16 if device.type == "cpu" else 1 << 24)
    counter = torch.arange(piece, dtype=torch.int32, device=device)
    integers = torch.empty((2, piece), dtype=torch.int32, device=device)
    radius, angle, part = torch.empty((3, piece), dtype=torch.float64, device=device)
    normal = torch.empty((len(keys), 2 * half), device=device)
    for row, key in zip(normal, keys.to(torch.int32), strict=True):
        for first in range(0, half, piece):
            size = min(piece, half - first)
            r, a, p = radius[:size], angle[:size], part[:size]
            for start, numbers in ((first, r), (half + first, a)):
                torch.add(counter[:size], start, out=integers[0, :size])
                _unsigned_hash(integers[:, :size], key, numbers)
            r.add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
            a.mul_(2.0**-31 * math.pi)
            row[first : first + size] = torch.cos(a, out=p).mul_(r)
            row[half + first : half + first + size] = a.sin_().mul_(r)
    return normal[:, :count]


def _unsigned_hash(integers: Tensor, key: Tensor, out: Tensor) -> None:
    """Write the hashes of a counter, in [0, 2^32), to `out`.

    Args:
        integers: (2, N) int32, the counter and a buffer; both are overwritten.
        key: 0-dimensional, int32.
        out: (N,) float64.
    """
    value, buffer = integers
    value.bitwise_xor_(key)
    _hash32(value, buffer)
    _hash32(value.add_(key), buffer)
    out.copy_(value.bitwise_xor_(-(2**31))).add_(2.0**31)  # torch has no arithmetic on unsigned integers


def _hash32(value: Tensor, buffer: Tensor) -> None:
    """Hash 32-bit integers in place. Products wrap around, and shifts to the right bring in zeros by a mask."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        torch.bitwise_right_shift(value, shift, out=buffer)
        value.bitwise_xor_(buffer.bitwise_and_(2 ** (32 - shift) - 1)).mul_(factor)
