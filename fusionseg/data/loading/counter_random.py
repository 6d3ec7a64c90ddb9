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
from numpy.typing import NDArray

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
    """A generator whose `random()` gives the numbers of `uniform`; for the arguments see `random_bits`.

    It is valid until the thread draws other numbers of this module: there is one for each thread.
    """
    return _reused.generator_at(seed, step, sample, purpose)


class _ReusedPhilox(threading.local):
    """One generator of each thread, set to a counter: several times faster than a new generator for each sample."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._generator = np.random.Generator(self._philox)
        self._state: Any = self._philox.state  # the buffer is used up, so the next word is the first of the counter

    def at(self, seed: int, step: int, sample: int, purpose: int) -> np.random.Philox:
        """The source of the words of a counter, until the next call."""
        self._state["state"] = {
            "counter": np.array((0, purpose, sample, step), np.uint64),
            "key": np.array((seed, 0), np.uint64),
        }
        self._philox.state = self._state
        return self._philox

    def generator_at(self, seed: int, step: int, sample: int, purpose: int) -> np.random.Generator:
        """A generator of the words of a counter, until the next call."""
        self.at(seed, step, sample, purpose)
        return self._generator


_reused = _ReusedPhilox()


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


def counter_normal(key: int, count: int) -> NDArray[np.float32]:
    """Standard normal numbers as a function of a key alone.

    Two rounds of a 32-bit integer hash (the "lowbias32" constants of C. Wellons' search) over the counter, then
    Box and Muller (1958).

    Args:
        key: of 32 bits.
        count: of the numbers.

    Returns:
        (count,)
    """
    half = (count + 1) // 2
    words = _hash32(_hash32(np.arange(2 * half, dtype=np.uint32) ^ np.uint32(key)) + np.uint32(key)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[:half] + 1) * 2.0**-32))
    angle = words[half:] * (2.0**-31 * math.pi)
    normal: NDArray[np.float32] = np.concatenate([np.cos(angle) * radius, np.sin(angle) * radius]).astype(np.float32)
    return normal[:count]


def _hash32(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Hash 32-bit integers; products wrap around."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return words
