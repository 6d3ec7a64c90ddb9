"""Accumulation steps that follow from the global batch, the micro-batch and the world size."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import counted


def accumulation_steps(config: RunConfig, world_size: int) -> int:
    """Return the number of micro-batches that each rank computes in one optimizer step.

    Args:
        config: its `train.global_batch` must be a multiple of `train.micro_batch` * world_size.
        world_size: number of ranks.

    Raises:
        UserError: the global batch is no such multiple; the message lists the values that are.
    """
    train = config.train
    micro_batch = train.micro_batch_samples
    steps, remainder = divmod(train.global_batch, micro_batch * world_size)
    if remainder or steps < 1:
        candidates = range(1, train.global_batch + 1)
        micro_batches = [n for n in candidates if train.global_batch % (n * world_size) == 0]
        world_sizes = [n for n in candidates if train.global_batch % (n * micro_batch) == 0]
        global_batches = [micro_batch * world_size * n for n in (1, 2, 4)]
        raise UserError(
            f"train.global_batch: {train.global_batch} samples cannot be divided among {world_size} ranks with"
            f" train.micro_batch {micro_batch} (expected a multiple of {micro_batch * world_size}); "
            + (f"set train.micro_batch to one of {micro_batches}, " if micro_batches else "")
            + f"start {' or '.join(map(str, world_sizes))} ranks, or set train.global_batch to"
            + f" {' or '.join(map(str, global_batches))}"
        )
    return steps


def possible_micro_batches(config: RunConfig, world_size: int) -> list[int]:
    """List the numbers that `train.micro_batch: auto` can become, the largest first; the last one is 1.

    Args:
        config: its `train.global_batch` must be a multiple of world_size.
        world_size: number of ranks.

    Raises:
        UserError: the global batch is no such multiple; the message lists the values that are.
    """
    total = config.train.global_batch
    samples, remainder = divmod(total, world_size)
    if remainder or samples < 1:
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        raise UserError(
            f"train.global_batch: {total} samples cannot be divided among {world_size} ranks (expected a multiple of"
            f" {world_size}); start {' or '.join(map(str, divisors))} ranks, or set train.global_batch to"
            f" {' or '.join(str(world_size * n) for n in (1, 2, 4))}"
        )
    return [n for n in range(samples, 0, -1) if samples % n == 0]


def check_batch(config: RunConfig, world_size: int) -> None:
    """Make sure that the global batch can be divided among the ranks.

    Args:
        config: its `train.global_batch` and `train.micro_batch` are read.
        world_size: number of ranks.

    Raises:
        UserError: it cannot; the message lists the values that can.
    """
    if config.train.chooses_micro_batch:
        possible_micro_batches(config, world_size)
    else:
        accumulation_steps(config, world_size)


def batch_arithmetic(config: RunConfig, world_size: int) -> str:
    """Return the equation "global 8 = micro-batch 2 x 2 ranks x accumulation 2" for the log.

    With `train.micro_batch: auto` the equation lacks the numbers that are not known yet.

    Args:
        config: its `train.global_batch` and `train.micro_batch` are read.
        world_size: number of ranks.

    Raises:
        UserError: the global batch cannot be divided, see `accumulation_steps`.
    """
    train = config.train
    if train.micro_batch == "auto":
        samples, ranks = possible_micro_batches(config, world_size)[0], counted(world_size, "rank")
        return f"global {train.global_batch} = {ranks} x {samples} (micro-batch auto x accumulation)"
    steps = accumulation_steps(config, world_size)
    return (
        f"global {train.global_batch} = micro-batch {train.micro_batch} x {counted(world_size, 'rank')}"
        f" x accumulation {steps}"
    )
