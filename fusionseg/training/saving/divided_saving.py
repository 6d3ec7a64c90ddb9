"""The saving of divided checkpoints (`checkpoint.sharded`): each rank writes its parts of the state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fusionseg.config import RunConfig
from fusionseg.distributed.messages.store_messages import StoreMessages
from fusionseg.distributed.world import World
from fusionseg.models.sharding.network import is_sharded_network
from fusionseg.runs.checkpoint_writer import CheckpointWriter
from fusionseg.runs.divided.content import divide, state_bytes
from fusionseg.runs.divided.other_ranks import PartWriter
from fusionseg.runs.divided.rank_zero import DividedWriter

log = logging.getLogger("fusionseg")

AUTOMATIC_BYTES = 4e9
"""Bytes of a state from which on `checkpoint.sharded: auto` divides it."""
CLOSE_S = 5.0
"""Seconds for which a training that ends with an error lets the ranks write on."""


class DividedSaving:
    """The part of a rank in divided checkpoints. All ranks call each method but `finish` and `close`.

    Args:
        config: the configuration of the run.
        folder: the `checkpoints/` folder, which all ranks see.
        world: the ranks.
        messages: of this rank.
    """

    def __init__(self, config: RunConfig, folder: Path, world: World, messages: StoreMessages) -> None:
        self._least_bytes = AUTOMATIC_BYTES if config.checkpoint.sharded == "auto" else 0
        self._world = world
        self._messages = messages
        self._is_connected = True
        self.writer: DividedWriter | None = None
        """That of rank 0; None on the other ranks."""
        self._parts: PartWriter | None = None
        if world.is_rank_zero:
            self.writer = DividedWriter(folder, messages, config.distributed.timeout_s)
        else:
            self._parts = PartWriter(folder, messages, world.waiting)

    def is_for(self, content: Mapping[str, Any], writer: CheckpointWriter) -> bool:
        """Tell whether a state is to be divided: it is large enough, and the ranks can tell each other of their files.

        It returns when nothing is being written.

        Args:
            content: of the checkpoint, the same on each rank but for the values of its tensors.
            writer: of this rank.
        """
        if state_bytes(content) < self._least_bytes or not self._is_connected:
            return False
        writer.settle()
        self.finish()
        # The store of torchrun ends with torchrun, and the ranks save once more.
        self._is_connected = all(self._world.all_gather_object(self._messages.is_alive()))
        if not self._is_connected:
            log.warning("checkpoint.sharded: the ranks cannot reach their store any more: rank 0 writes one file")
        return self._is_connected

    def save(self, step: int, content: Mapping[str, Any], writer: CheckpointWriter) -> None:
        """Save a checkpoint for which `is_for` is true. The training waits for the copy alone.

        Args:
            step: number of steps that were trained.
            content: see `is_for`.
            writer: of this rank.

        Raises:
            TrainingStopped: the folder is no longer that of the run.
        """
        divided = divide(content, self._world.rank)
        if self._parts is None:
            writer.save_divided(step, divided)
        else:
            self._parts.save(divided.parts)

    def finish(self) -> None:
        """On the other ranks, wait until rank 0 has closed the checkpoint before."""
        if self._parts is not None:
            self._parts.settle()

    def close(self, writer: CheckpointWriter) -> None:
        """End the threads, also after an error. It waits a few seconds for what is being written.

        Args:
            writer: of this rank.
        """
        if self._parts is None:
            writer.close(CLOSE_S)
        else:
            self._parts.close(CLOSE_S)


def open_divided_saving(config: RunConfig, folder: Path, world: World, model: nn.Module) -> DividedSaving | None:
    """Prepare divided checkpoints; None if the run has none.

    Args:
        config: the configuration of the run.
        folder: the `checkpoints/` folder.
        world: the ranks.
        model: the network.
    """
    messages = None
    if is_sharded_network(model):
        messages = world.open_messages() if config.checkpoint.sharded else None
    elif config.checkpoint.sharded is True and world.is_rank_zero:
        log.warning(
            "checkpoint.sharded: true: the network is not divided among ranks (expected distributed.parallel: fsdp, on"
            " several ranks): each checkpoint is one file"
        )
    return None if messages is None else DividedSaving(config, folder, world, messages)
