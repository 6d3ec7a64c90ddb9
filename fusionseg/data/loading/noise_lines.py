"""Gaussian noise of whole patches as short lines of a fixed table: one operator, and the same bits on every device.

The table has 2^20 standard normal numbers. The noise of a sample is a sequence of lines of 64 neighbouring numbers, and
each line begins at a random place of the table. The places follow from the key of the sample alone. So neighbours,
lines and samples are independent, but for lines that overlap by chance: two given lines do so with a probability of
1.2e-4, mostly by a part and not at the same place of the line.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.data.loading.counter_random import random_bits, uniform
from fusionseg.data.loading.purposes import Purpose

VERSION = 2
"""Of the numbers that a key gives; a checkpoint records it. The first version hashed each voxel."""
LINE = 64
"""Length of a line, in voxels of the flattened patch."""
_PLACES = 1 << 20
"""Number of places where a line can begin."""


@lru_cache(maxsize=1)
def normal_table() -> NDArray[np.float32]:
    """The table (2^20 + 63,): quantiles of the normal distribution at random shares, with mean 0 and deviation 1."""
    from scipy.special import ndtri  # importing it takes 0.2 s, the table 0.02 s; few commands need them

    shares = uniform(0, 0, 0, Purpose.NOISE, _PLACES + LINE - 1) + 2.0**-54  # never 0
    normal = ndtri(shares)
    table: NDArray[np.float32] = ((normal - normal.mean()) / normal.std()).astype(np.float32)
    return table


def line_places(key: int, count: int) -> NDArray[np.int32]:
    """The places in the table where the lines of a sample begin.

    Args:
        key: 32-bit key of the sample.
        count: numbers of the sample.

    Returns:
        (ceil(count / 64),)
    """
    lines = -(-count // LINE)
    words = random_bits(key, 0, 1, Purpose.NOISE, -(-lines // 2)).astype("<u8").view("<u4")
    return (words[:lines] & np.uint32(_PLACES - 1)).astype(np.int32)


def noise_of_lines(table: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal numbers of samples.

    Args:
        table: `normal_table`.
        places: (B, lines), `line_places` of each sample, on the device of the table.
        shape: (B, ...) of the result.

    Returns:
        Float32, a new tensor.
    """
    lines = table.as_strided((_PLACES, LINE), (1, 1)).index_select(0, places.view(-1))
    return lines.view(len(places), -1)[:, : shape[1:].numel()].view(shape)
