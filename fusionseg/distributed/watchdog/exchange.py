"""Heartbeats and verdicts of the ranks in their store, through a connection that only the watchdog uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from torch.distributed import DistError, Store

from fusionseg.distributed.watchdog.beat import Beat
from fusionseg.distributed.watchdog.verdict import NONE_YET, Verdict

T = TypeVar("T")

_ANSWER_S = 5.0
"""Time that the store is given to answer."""
_ERRORS = (DistError, RuntimeError, TimeoutError)  # a lost connection is a RuntimeError


class _Connection(threading.Thread):
    """A connection to the store in a thread of its own. torch waits without a limit for a store that is stopped."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="watchdog store", daemon=True)
        self._original = store
        self._calls: SimpleQueue[tuple[Callable[[Store], Any], Future[Any]]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        store: Store | None = None
        while True:
            call, answer = self._calls.get()
            try:
                if store is None:
                    store = self._original.clone()  # type: ignore[attr-defined]  # missing in torch's stub
                answer.set_result(call(store))
            except Exception as error:
                answer.set_exception(error)

    def ask(self, call: Callable[[Store], T]) -> T:
        """Call a function with the store and return its result.

        Raises:
            DistError, RuntimeError: the store has failed.
            TimeoutError: it did not answer.
        """
        answer: Future[T] = Future()
        self._calls.put((call, answer))
        return answer.result(_ANSWER_S)


class Exchange:
    """The heartbeats of all ranks, as this rank reads them.

    Args:
        store: of the ranks. A copy of it, with a connection of its own, is used: the training may wait in the store.
        rank: of this process.
        size: number of ranks.
        silence_s: seconds without a new heartbeat after which a rank counts as silent.
    """

    def __init__(self, store: Store, rank: int, size: int, silence_s: float) -> None:
        self._original = store
        self._connection = _Connection(store)
        self.rank, self.size, self.silence_s = rank, size, silence_s
        self._joined: set[int] = set()
        self._last: dict[int, tuple[Beat, float]] = {}
        """The newest heartbeat of each rank, and the time of this host when it was first read."""
        self._reading_since: float | None = None
        self._lost_since: float | None = None
        self._next_try, self._pause_s = 0.0, silence_s
        if rank == 0:
            self.judge(NONE_YET)

    @property
    def lost_s(self) -> float:
        """Seconds since the store stopped to answer; 0 while it answers."""
        return 0.0 if self._lost_since is None else time.monotonic() - self._lost_since

    def send(self, beat: Beat) -> None:
        """Publish a heartbeat of this rank."""
        self._ask(lambda store: store.set(_key(self.rank), beat.dump()))

    def read(self, ranks: range | None = None) -> bool:
        """Read the heartbeats of other ranks; False if the store does not answer.

        Args:
            ranks: the ranks to read; None for all.
        """
        wanted = [rank for rank in ranks or range(self.size) if rank != self.rank]
        texts = self._ask(lambda store: self._read(store, wanted))
        if texts is None:
            return False
        now = time.monotonic()
        self._reading_since = self._reading_since or now
        for rank, text in texts.items():
            beat = Beat.load(text)
            if rank not in self._last or self._last[rank][0].number != beat.number:
                self._last[rank] = beat, now
        return True

    def _read(self, store: Store, wanted: list[int]) -> dict[int, bytes]:
        for rank in wanted:  # reading the heartbeat of a rank that never sent one would wait for it
            if rank not in self._joined and store.check([_key(rank)]):
                self._joined.add(rank)
        joined = [rank for rank in wanted if rank in self._joined]
        return dict(zip(joined, store.multi_get([_key(rank) for rank in joined]), strict=True)) if joined else {}

    def forget(self) -> None:
        """Begin anew after progress: the next reading is the first one again."""
        self._reading_since = None
        self._last.clear()

    def beats(self) -> tuple[list[Beat], dict[int, tuple[Beat | None, float]]]:
        """The newest heartbeats of the other ranks that send them, and those of the ranks that are silent.

        Ranks that have left are in neither.

        Returns:
            The living ranks; and of each silent rank the last heartbeat (None: it never sent one) and the seconds for
            which it is known to be silent.
        """
        now = time.monotonic()
        living: list[Beat] = []
        silent: dict[int, tuple[Beat | None, float]] = {}
        reading_s = now - (self._reading_since or now)
        for rank in range(self.size):
            if rank == self.rank:
                continue
            beat, since = self._last.get(rank, (None, now - reading_s))
            if beat is not None and beat.left:
                continue
            if now - since >= self.silence_s:
                silent[rank] = beat, now - since
            elif beat is not None:
                living.append(beat)
        return living, silent

    def judge(self, verdict: Verdict) -> None:
        """Publish a verdict for all ranks."""
        self._ask(lambda store: store.set(_VERDICT, verdict.dump()))

    def verdict(self) -> Verdict:
        """The newest verdict; `NONE_YET` if the store does not answer."""
        text = self._ask(lambda store: store.get(_VERDICT))
        return NONE_YET if text is None else Verdict.load(text)

    def _ask(self, call: Callable[[Store], T]) -> T | None:
        """Call a function with the store; None if the store does not answer.

        A connection that did not answer is not used again. A new one is tried from time to time, less and less often.
        """
        if self._lost_since is not None:
            if time.monotonic() < self._next_try:
                return None
            self._connection = _Connection(self._original)
        try:
            answer = self._connection.ask(call)
        except _ERRORS:
            now = time.monotonic()
            self._lost_since = now if self._lost_since is None else self._lost_since
            self._next_try, self._pause_s = now + self._pause_s, min(60.0, 2 * self._pause_s)
            return None
        self._lost_since, self._pause_s = None, self.silence_s
        return answer


_VERDICT = "watchdog/verdict"


def _key(rank: int) -> str:
    return f"watchdog/{rank}"
