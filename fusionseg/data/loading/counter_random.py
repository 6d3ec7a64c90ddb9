"""Counter-based random numbers: functions of (seed, step, sample, purpose), without any state.

The generator is Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its counter is
(step, sample, purpose), so nothing has to be saved and resuming is exact. Each purpose has a counter of its own:
switching one augmentation on does not change the numbers of the others.
"""

from __future__ import annotations

import math

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
    bits: NDArray[np.uint64] = _philox(seed, step, sample, purpose).random_raw(count)
    return bits


def uniform(seed: int, step: int, sample: int, purpose: int, count: int) -> NDArray[np.float64]:
    """Draw `count` numbers in [0, 1); for the other arguments see `random_bits`."""
    return (random_bits(seed, step, sample, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, step: int, sample: int, purpose: int) -> np.random.Generator:
    """Make a generator whose `random()` gives the numbers of `uniform`; for the arguments see `random_bits`."""
    return np.random.Generator(_philox(seed, step, sample, purpose))


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
    counter = torch.arange(2 * ((count + 1) // 2), device=keys.device)
    bits = _hash32(_hash32(counter ^ keys[:, None]) + keys[:, None])
    first, second = bits.chunk(2, dim=1)
    radius = (-2 * ((first.double() + 1) * 2.0**-32).log()).sqrt()
    angle = second.double() * (2.0**-31 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].float()


def _hash32(value: Tensor) -> Tensor:
    mask = 0xFFFFFFFF
    value = value & mask
    value = (value ^ (value >> 16)) * 0x7FEB352D & mask  # int64 wraps around: the low 32 bits stay right
    value = (value ^ (value >> 15)) * 0x846CA68B & mask
    return value ^ (value >> 16)
