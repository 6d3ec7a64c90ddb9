"""One name for the ranks of one start under torchrun, whose store outlives the ranks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Collection
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store

from fusionseg.utils.errors import TrainingStopped

_PREFIX = "fusionseg/start"
_CALLS = "calls"
_POLL_S = 0.05


def uses_store_of_torchrun() -> bool:
    """Tell whether the ranks share the store of torchrun. Otherwise rank 0 opens one, which is new at each start."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_this_start(
    store: Store, rank: int, size: int, timeout: timedelta, missing: set[int] | None = None
) -> Store:
    """Return a store without the keys of earlier starts. All ranks call it before they use the store.

    torchrun keeps its store when it starts the ranks again. There the new ranks would find the addresses of the dead
    ones, and the answers to questions that they have not asked.

    Args:
        store: of torchrun.
        rank: of this process.
        size: number of ranks.
        timeout: time that the ranks wait for each other.
        missing: on rank 0, holds the ranks that have not come yet while this function waits.

    Raises:
        TrainingStopped: a rank did not start in this time.
    """
    missing = set() if missing is None else missing
    return PrefixStore(_agree_on_name(PrefixStore(_PREFIX, store), rank, size, timeout, missing), store)


def _agree_on_name(store: Store, rank: int, size: int, timeout: timedelta, missing: set[int]) -> str:
    """Return a name that only the ranks of this start have.

    TORCHELASTIC_RESTART_COUNT cannot be that name: each node counts the restarts that its own ranks have caused. So
    each rank calls with a word of its own, and rank 0 answers each word with the name. It ends when every rank has
    confirmed the name, since the calls of an earlier start are still in the store.
    """
    name = uuid.uuid4().hex
    if rank != 0:
        store.set(f"call of rank {rank}", name)
        store.add(_CALLS, 1)
        answer = f"answer to {name}"
        try:
            store.wait([answer], timeout)
        except DistStoreError:
            raise TrainingStopped(late_text([0], timeout)) from None
        name = store.get(answer).decode()
        store.set(f"{name}: rank {rank}", "ready")
        return name
    end = time.monotonic() + timeout.total_seconds()
    missing.update(range(1, size))
    answered, calls = set[str](), -1
    while True:
        if calls != (calls := store.add(_CALLS, 0)):
            for other in missing:
                if store.check([f"call of rank {other}"]):
                    call = store.get(f"call of rank {other}").decode()
                    if call not in answered:
                        answered.add(call)
                        store.set(f"answer to {call}", name)
        missing -= {other for other in missing if store.check([f"{name}: rank {other}"])}
        if not missing:
            return name
        if time.monotonic() > end:
            raise TrainingStopped(late_text(missing, timeout))
        time.sleep(_POLL_S)


def rank_names(ranks: Collection[int]) -> str:
    """Ranks in words, such as "ranks 1, 3"."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, sorted(ranks)))}"


def late_text(ranks: Collection[int], timeout: timedelta) -> str:
    """The message about ranks that did not start in time."""
    seconds = f"{timeout.total_seconds():g} s (distributed.timeout_s)"
    return f"{rank_names(ranks)} did not start in {seconds}: see the log of its node"
