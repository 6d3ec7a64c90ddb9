"""The end of independent ranks under torchrun, which ends all ranks as soon as one of them fails."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import torch.distributed as dist

from fusionseg.distributed.launch import Launch
from fusionseg.distributed.torchrun_start import uses_store_of_torchrun

_KEY = "fusionseg/ended/"
_PAUSE_S = 0.2


def end_of_rank(launch: Launch, *, failed: bool) -> None:
    """Announce that this rank has done its work. A rank that failed waits for the others before it returns.

    Without the wait, its exit status would make torchrun end the others. Ranks of srun are independent, and so are
    those whose store is in rank 0: this does nothing for them.

    Args:
        launch: of this rank.
        failed: this rank will end with another exit status than 0.
    """
    if launch.world_size == 1 or not uses_store_of_torchrun():
        return
    key = _KEY + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with suppress(dist.DistError, RuntimeError):  # torchrun itself has ended
        store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.world_size))
        ended = store.add(key, 1)
        while failed and ended < launch.world_size:
            time.sleep(_PAUSE_S)
            ended = store.add(key, 0)
