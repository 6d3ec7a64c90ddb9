"""The store that all ranks share, opened within a time limit, with a word about ranks that are missing."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from fusionseg.distributed.launch import Launch, check_port
from fusionseg.distributed.torchrun_start import late_text, rank_names, store_of_this_start, uses_store_of_torchrun
from fusionseg.utils.errors import TrainingStopped

log = logging.getLogger("fusionseg")

_POLL_S = 0.05
_CONNECT_S, _PAUSE_S = 5.0, 0.2
_OPERATION = timedelta(minutes=30)
"""Time limit of one operation of the store that states none."""
_ALL = "all ranks"
"""The key that rank 0 sets when all ranks are there."""


def open_store(launch: Launch, timeout: timedelta, warn_s: float) -> Store:
    """Open the store of all ranks, and wait until all ranks have done so. All ranks call it.

    Under torchrun it is the store of torchrun. Otherwise rank 0 opens it.

    Args:
        launch: with several ranks.
        timeout: time that the ranks wait for each other.
        warn_s: seconds between two warnings that ranks are missing.

    Raises:
        UserError: the port of rank 0 is in use.
        TrainingStopped: a rank did not come in this time.
    """
    if uses_store_of_torchrun():
        store, _, _ = next(iter(rendezvous("env://", launch.rank, launch.world_size)))
        missing: set[int] = set()
        with warn_while_waiting(lambda: _waiting(launch, rank_names(missing)), warn_s if launch.rank == 0 else None):
            return store_of_this_start(store, launch.rank, launch.world_size, timeout, missing)
    host, port = launch.master or (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if launch.rank == 0:
        check_port((host, port))
        opened = TCPStore(host, port, launch.world_size, True, timeout, wait_for_workers=False)
        store = PrefixStore(launch.token, opened)
        _call_the_roll(store, launch, timeout, warn_s)
    else:
        store = _join(launch, (host, port), timeout, warn_s)
    store.set_timeout(_OPERATION)
    return store


def _call_the_roll(store: Store, launch: Launch, timeout: timedelta, warn_s: float) -> None:
    """On rank 0: wait for all other ranks.

    Raises:
        TrainingStopped: with the ranks that did not come.
    """
    missing = set(range(1, launch.world_size))
    end = time.monotonic() + timeout.total_seconds()
    with warn_while_waiting(lambda: _waiting(launch, rank_names(missing)), warn_s):
        while missing := {rank for rank in missing if not store.check([_key(rank)])}:
            if time.monotonic() > end:
                raise TrainingStopped(late_text(missing, timeout))
            time.sleep(_POLL_S)
    store.set(_ALL, "here")


def _join(launch: Launch, master: tuple[str, int], timeout: timedelta, warn_s: float) -> Store:
    """On the other ranks: connect to rank 0, and wait until it has seen all ranks.

    Raises:
        TrainingStopped: rank 0 is not there, or another rank did not come.
    """
    where, seconds = f"{master[0]}:{master[1]}", f"{timeout.total_seconds():g} s (distributed.timeout_s)"
    # One rank speaks for all that wait for rank 0.
    with warn_while_waiting(lambda: _waiting(launch, f"rank 0 at {where}"), warn_s if launch.rank == 1 else None):
        try:
            _reach(master, timeout)
            opened = TCPStore(*master, launch.world_size, False, timeout, wait_for_workers=False)
        except (OSError, DistError):
            raise TrainingStopped(
                f"rank 0 could not be reached at {where} in {seconds}: see its log; if it runs, check that MASTER_ADDR"
                " is its host, and that this host may connect to the port"
            ) from None
        store = PrefixStore(launch.token, opened)
        store.set(_key(launch.rank), socket.gethostname())
        try:
            store.wait([_ALL], timeout)
        except DistError:
            raise TrainingStopped(f"a rank did not start in {seconds}: rank 0 at {where} names it") from None
    return store


def _reach(master: tuple[str, int], timeout: timedelta) -> None:
    """Wait until rank 0 listens. The store would wait too, but it writes a page of C++ frames for each minute.

    Raises:
        OSError: it does not listen in this time.
    """
    end = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection(master, timeout=_CONNECT_S).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _key(rank: int) -> str:
    return f"rank {rank}"


def _waiting(launch: Launch, whom: str) -> str:
    return f"rank {launch.rank} ({socket.gethostname()}, process {os.getpid()}) waits for {whom} to start"


@contextmanager
def warn_while_waiting(text: Callable[[], str], every_s: float | None) -> Iterator[None]:
    """Warn while the body waits.

    Args:
        text: the beginning of each warning.
        every_s: seconds between two warnings; None for none.
    """
    if every_s is None:
        yield
        return
    ended = threading.Event()

    def warn() -> None:
        began = time.monotonic()
        while not ended.wait(every_s):
            log.warning("%s, %.0f s so far", text(), time.monotonic() - began)

    thread = threading.Thread(target=warn, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
