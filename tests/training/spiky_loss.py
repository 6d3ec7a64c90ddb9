"""A loss that is a spike in some steps of the sample stream, as a user's own part: see `write_spiky_loss`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionseg.data.loading.counter_random import random_bits
from fusionseg.data.loading.purposes import Purpose

_SOURCE = '''
import torch


def spiky(output, target):
    """The cross-entropy, 1000 times as high for the micro-batches with one of the seeds."""
    label = target[:, 0] if target.dim() == output.dim() else target
    loss = torch.nn.functional.cross_entropy(output, label.long())
    return loss * (1000 if torch.initial_seed() in {seeds} else 1)
'''


def write_spiky_loss(path: Path, steps: Sequence[int], *, seed: int = 0, first_sample: int = 0) -> str:
    """Write the module, and return the name of the loss.

    Args:
        path: of the module.
        steps: of the sample stream, whose losses are spikes.
        seed: of the run.
        first_sample: index of the first sample of the micro-batch that has the spike.
    """
    seeds = {int(random_bits(seed, step, first_sample, Purpose.NETWORK, 1)[0] >> 1) for step in steps}
    path.write_text(_SOURCE.replace("{seeds}", repr(seeds)))
    return f"{path}:spiky"
