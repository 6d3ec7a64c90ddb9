"""The global batch is given, the accumulation follows."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.utils.errors import UserError


def accumulation_steps(config: RunConfig, world_size: int) -> int:
    """Micro-steps of an optimizer step on each rank.

    Raises:
        UserError: the global batch cannot be dealt over the ranks.
    """
    train = config.train
    accumulation_steps, rest = divmod(train.global_batch, train.micro_batch * world_size)
    if rest or accumulation_steps < 1:
        fits = [n for n in range(1, train.global_batch + 1) if train.global_batch % (n * world_size) == 0]
        worlds = [n for n in range(1, train.global_batch + 1) if train.global_batch % (n * train.micro_batch) == 0]
        batches = [train.micro_batch * world_size * n for n in (1, 2, 4)]
        raise UserError(
            f"train.global_batch: {train.global_batch} samples cannot be dealt over {world_size} ranks with"
            f" train.micro_batch {train.micro_batch}: "
            + (f"set train.micro_batch to one of {fits}, " if fits else "")
            + f"start {' or '.join(map(str, worlds))} ranks, or set train.global_batch to"
            + f" {' or '.join(map(str, batches))}"
        )
    return accumulation_steps


def batch_arithmetic(config: RunConfig, world_size: int) -> str:
    """The derivation of the accumulation, as a line."""
    train, steps = config.train, accumulation_steps(config, world_size)
    return (
        f"global {train.global_batch} = micro-batch {train.micro_batch} x {world_size} rank"
        f"{'s' if world_size > 1 else ''} x accumulation {steps}"
    )
