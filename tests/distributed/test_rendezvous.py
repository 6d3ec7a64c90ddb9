"""The store of ranks without torchrun: ranks that are missing are named, and nobody waits beyond the time limit."""

from __future__ import annotations

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from faults.catalogue import assert_seen
from torch.distributed import Store

from fusionseg.distributed.launch import Launch
from fusionseg.distributed.lost_rank import naming_lost_rank
from fusionseg.distributed.rendezvous import open_store
from fusionseg.utils.errors import TrainingStopped


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    port: int, ranks: list[int], size: int, timeout_s: float, warn_s: float = 60, other: int | None = None
) -> dict[int, Store | Exception]:
    """Open the store on some of the ranks at once, `other` being of another start; the store or the error of each."""

    def one(rank: int) -> Store | Exception:
        try:
            token = "other" if rank == other else "this"
            launch = Launch(rank, size, rank, size, ("127.0.0.1", port), token=token)
            return open_store(launch, timedelta(seconds=timeout_s), warn_s)
        except TrainingStopped as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return dict(zip(ranks, pool.map(one, ranks), strict=True))


def test_all_ranks_share_a_store(port: int) -> None:
    stores = start(port, [2, 1, 0], 3, 60)
    assert all(isinstance(store, Store) for store in stores.values())
    stores[1].set("word", "of rank 1")  # type: ignore[union-attr]
    assert stores[2].get("word") == b"of rank 1"  # type: ignore[union-attr]
    # The time limit of the start is not that of the operations.
    assert stores[0].timeout == timedelta(minutes=30)  # type: ignore[union-attr]


@pytest.mark.fault("rank-does-not-start")
def test_a_missing_rank_is_named_and_ends_the_others(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fusionseg")
    errors = start(port, [0, 1], 3, 2, warn_s=0.3)
    assert_seen("rank-does-not-start", f"{errors[0]} {' '.join(caplog.messages)}")
    assert "rank 2 did not start in 2 s (distributed.timeout_s)" in str(errors[0])
    assert f"a rank did not start in 2 s (distributed.timeout_s): rank 0 at 127.0.0.1:{port} names it" in str(errors[1])
    assert any(text.startswith("rank 0 (") and "waits for rank 2 to start" in text for text in caplog.messages)


def test_a_rank_of_another_start_is_not_taken_for_a_missing_one(port: int) -> None:
    errors = start(port, [0, 1], 2, 2, other=1)
    assert "rank 1 did not start" in str(errors[0]) and "a rank did not start" in str(errors[1])


@pytest.mark.fault("rank-0-does-not-start")
def test_a_missing_rank_0_is_named_by_one_rank(
    port: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, "fusionseg")
    errors = start(port, [1, 2], 3, 1, warn_s=0.3)
    for error in errors.values():
        assert_seen("rank-0-does-not-start", f"{error} {' '.join(caplog.messages)}")
        assert f"rank 0 could not be reached at 127.0.0.1:{port} in 1 s (distributed.timeout_s)" in str(error)
    assert caplog.messages and all(
        text.startswith("rank 1 (") and f"waits for rank 0 at 127.0.0.1:{port} to start" in text
        for text in caplog.messages
    )
    assert "frame #" not in capfd.readouterr().err  # torch's own page of C++ frames


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:53685.", "another rank has ended (Connection"),
        ("gloo/tcp/unbound_buffer.cc:129] Timed out waiting 8000ms", "did not answer within distributed.timeout_s"),
    ],
)  # fmt: skip
def test_errors_of_connections_are_messages(text: str, message: str) -> None:
    with pytest.raises(TrainingStopped) as stopped, naming_lost_rank():
        raise RuntimeError(text)
    assert message in str(stopped.value)
    for other in ("shapes differ", "the tracker's server: Connection reset by peer"):
        with pytest.raises(RuntimeError, match=other) as kept, naming_lost_rank():
            raise RuntimeError(other)
        assert not isinstance(kept.value, TrainingStopped)
