"""The store of torchrun, which outlives the ranks: each start finds an empty part of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import Store, TCPStore

from fusionseg.distributed.torchrun_start import store_of_this_start
from fusionseg.utils.errors import TrainingStopped

TIMEOUT = timedelta(seconds=20)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of torchrun's store."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    server = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    yield server.port


def stores_of(port: int, ranks: list[int], size: int, timeout: timedelta = TIMEOUT) -> list[Store]:
    """The stores of a start, in the order of `ranks`. Each rank has a connection of its own."""

    def start(rank: int) -> Store:
        return store_of_this_start(TCPStore("127.0.0.1", port, is_master=False), rank, size, timeout)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(start, ranks))


def test_a_start_does_not_see_the_keys_of_the_one_before(port: int) -> None:
    first = stores_of(port, [0, 1], 2)
    first[0].set("address", "of a dead rank")
    assert first[1].get("address") == b"of a dead rank"

    again = stores_of(port, [2, 1, 0], 3)  # with another number of ranks, and rank 0 last
    assert not any(store.check(["address"]) for store in again)
    again[2].set("address", "of rank 0")
    assert [store.get("address") for store in again] == [b"of rank 0"] * 3


def test_a_rank_that_died_while_it_started(port: int) -> None:
    """Its call stays in the store. The next start must wait for the new rank 1, and not take that call for its own."""
    with pytest.raises(TrainingStopped, match=r"rank 0 did not start in 0.2 s \(distributed.timeout_s\)"):
        stores_of(port, [1], 2, timedelta(seconds=0.2))
    with pytest.raises(TrainingStopped, match=r"rank 1 did not start in 0.2 s"):
        stores_of(port, [0], 2, timedelta(seconds=0.2))

    one, other = stores_of(port, [1, 0], 2)
    one.set("key", "value")
    assert other.get("key") == b"value"
