"""The thread that watches the progress of a rank and, while there is none, the other ranks."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed import Store

from fusionseg.distributed.watchdog.beat import Beat, Progress
from fusionseg.distributed.watchdog.exchange import Exchange
from fusionseg.distributed.watchdog.hooks import before_exit
from fusionseg.distributed.watchdog.processes import (
    describe_process,
    kill_process,
    kill_workers,
    write_stacks,
)
from fusionseg.distributed.watchdog.verdict import Verdict, describe, is_over, is_stuck
from fusionseg.observability.ranges import IN_STEP
from fusionseg.utils.exit_status import FAILED, tell_torchrun
from fusionseg.utils.machine import process_stat

log = logging.getLogger("fusionseg")

PERIOD_S = 1.0
"""Seconds between two looks at the progress, and between two heartbeats."""
SLOW = 5
"""The limits are this many times longer outside of steps, and in the first two steps, which compile a network."""
LEARNT = 3
"""The limits are at least this many times the longest time without progress so far in the same phase."""
_SILENCE_S = 5 * PERIOD_S
_FILES_S = 10.0
_STANDBY = 8  # ranks that are ready to judge; in a large run not all ranks read the heartbeats of all
_PATIENCE_S = 2.5 * PERIOD_S
"""Time between the verdict and the end of the processes. All ranks read the verdict before a connection is lost."""


@dataclass(frozen=True)
class Limits:
    """Seconds without progress in a step: until the ranks are warned of, and until the run is ended (None: never)."""

    warn_s: float
    end_s: float | None

    def of(self, *, slow: bool, longest_s: float) -> tuple[float, float]:
        """The limits of a phase, in seconds.

        Args:
            slow: the phase may take minutes, see `SLOW`.
            longest_s: the longest time without progress so far in the phase.
        """
        warn_s = max(self.warn_s * (SLOW if slow else 1), LEARNT * longest_s)
        return warn_s, math.inf if self.end_s is None else warn_s * self.end_s / self.warn_s


class Watchdog(threading.Thread):
    """The watchdog of a rank.

    Each rank sends heartbeats. A rank without progress reads those of the others. If no rank makes progress, the lowest
    rank that is alive says which ranks are missed, and all ranks write their stacks. After a second time it ends the
    run.

    Args:
        progress: of the training in this process.
        limits: times without progress.
        rank, size: of this process.
        store: of the ranks; None for a single one.
    """

    def __init__(self, progress: Progress, limits: Limits, rank: int, size: int, store: Store | None) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.progress, self.limits, self.rank, self.size = progress, limits, rank, size
        self._exchange = None if store is None else Exchange(store, rank, size, _SILENCE_S)
        self._folder: Path | None = None
        self._on_end: Callable[[int, str], None] | None = None
        self._closed = threading.Event()
        stat = process_stat(os.getpid())
        self._pid, self._born, self._host = os.getpid(), 0 if stat is None else stat[1], socket.gethostname()
        self._longest: defaultdict[str, float] = defaultdict(float)
        self._count = 0
        self._changes, self._phase = progress.timer.changes, progress.phase
        self._looked = self._changed = time.monotonic()
        self._handled = 0
        self._is_ending = False
        self._warned: str | None = None

    def place(self, folder: Path, on_end: Callable[[int, str], None]) -> None:
        """Say where the stacks go, and how the end of a run is recorded.

        Args:
            folder: for the stacks, in the run folder.
            on_end: called by the rank that judges, in the thread of the watchdog, with the steps done and the reason.
        """
        self._folder, self._on_end = folder, on_end

    def run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            self._look()
            self._looked = time.monotonic()

    def close(self) -> None:
        """End the thread, and let the other ranks know that this one has done its work."""
        if not self._closed.is_set():
            self._closed.set()
            if self._exchange is not None:
                self._exchange.send(replace(self._beat(), number=self._count + 1, left=True))

    def hold(self) -> None:
        """Wait for the end of this process if the watchdog is about to end it; return at once otherwise.

        The training calls this after an error: the first ranks that leave break the connections of the others.
        """
        while self._is_ending:
            time.sleep(PERIOD_S)

    def beat(self) -> None:
        """Send a heartbeat. The first one is sent before the others wait for this rank."""
        if self._exchange is not None:
            self._count += 1
            self._exchange.send(self._beat())

    def _look(self) -> None:
        now = time.monotonic()
        asleep = now - self._looked - PERIOD_S
        if asleep > _SILENCE_S:  # the whole process was stopped, for example by a scheduler that suspends jobs
            self._changed += asleep
            if self._exchange is not None:
                self._exchange.forget()
        changes, phase = self.progress.timer.changes, self.progress.phase
        if changes != self._changes:
            gap = now - self._changed
            # The first step compiles the network and fills caches: it says nothing about later ones.
            if self.progress.begun_steps >= 2 or self._phase not in IN_STEP:
                self._longest[self._phase] = max(self._longest[self._phase], gap)
            if self._warned is not None:
                log.warning("progress again after %.0f s (%s)", gap, self._warned)
                self._warned = None
            if self._exchange is not None and gap >= 2 * PERIOD_S:
                self._exchange.forget()
            self._changes, self._changed = changes, now
        self._phase = phase
        self.beat()
        own = self._beat()
        if own.idle_s >= 2 * PERIOD_S and not self._closed.is_set():
            self._look_at_others(own)

    def _beat(self) -> Beat:
        progress = self.progress
        phase = progress.phase
        slow = phase not in IN_STEP or progress.begun_steps <= 2
        warn_s, end_s = self.limits.of(slow=slow, longest_s=self._longest[phase])
        return Beat(
            self.rank,
            self._host,
            self._pid,
            self._born,
            self._count,
            progress.step,
            phase,
            progress.waits,
            progress.position,
            time.monotonic() - self._changed,
            warn_s,
            end_s,
        )

    def _look_at_others(self, own: Beat) -> None:
        exchange = self._exchange
        living = [own]
        silent: dict[int, tuple[Beat | None, float]] = {}
        if exchange is not None:
            verdict = exchange.verdict()
            if verdict.number > self._handled:
                self._obey(verdict)
                return
            if not self._may_judge(own):
                return
            if not exchange.read():
                self._judge_without_store(own)
                return
            others, silent = exchange.beats()
            if any(beat.rank < self.rank for beat in others):  # that rank judges
                return
            living += others
        # The others may have waited for a rank for hours before it fell silent: it has its own time.
        judged = living + [_silent_beat(own, *known) for known in silent.values()]
        ends = self._warned is not None and is_over(judged)
        if not is_stuck(judged) or (self._warned is not None and not ends):
            return
        states = {
            rank: (beat, describe_process(beat.pid, beat.born) if beat and beat.host == self._host else "")
            for rank, (beat, _) in silent.items()
        }
        message, step = describe(sorted(living, key=lambda beat: beat.rank), states)
        verdict = Verdict(self._handled + 1, ends, message, step)
        self._is_ending = ends
        if exchange is not None:
            exchange.judge(verdict)
        self._handled = verdict.number
        if ends:
            self._end(verdict, [beat for beat, _ in silent.values() if beat is not None])
        else:
            self._warned = message
            stacks = "" if self._folder is None else f"; the stacks of the ranks are in {self._folder}"
            _aside(lambda: log.warning("%s%s", message, stacks))
            self._write_stacks(message)

    def _may_judge(self, own: Beat) -> bool:
        """Tell whether this rank reads all heartbeats. Of many ranks only the first ones do, and others after them."""
        if self.rank < _STANDBY:
            return True
        if own.idle_s < own.warn_s + 4 * _SILENCE_S:
            return False
        assert self._exchange is not None
        return not (self._exchange.read(range(_STANDBY)) and self._exchange.beats()[0])

    def _obey(self, verdict: Verdict) -> None:
        """Do what another rank has decided."""
        self._handled = verdict.number
        self._is_ending = verdict.ends
        self._warned = None
        self._write_stacks(verdict.message)
        if verdict.ends:
            self._leave(verdict.message)

    def _judge_without_store(self, own: Beat) -> None:
        """Say that the store is lost. It is in the process of rank 0 under srun, in that of torchrun otherwise."""
        assert self._exchange is not None
        if self._exchange.lost_s < _SILENCE_S or own.idle_s < own.warn_s:
            return
        message = (
            f"no progress for {own.idle_s:.0f} s: rank 0, or the torchrun that holds the store of the ranks, does not"
            f" answer; {own.name} is in {own.place}"
        )
        # The store may have fallen silent while this rank waited for hours.
        ends = self._warned is not None and min(own.idle_s, self._exchange.lost_s) >= own.end_s - own.warn_s
        if self._warned is not None and not ends:
            return
        self._warned = message
        self._is_ending = ends
        if ends and self.rank == 1:
            self._end(Verdict(0, ends=True, message=message, step=own.step or 0), [])
        _aside(lambda: log.warning("%s", message))
        self._write_stacks(message)
        if ends:
            self._leave(message)

    def _end(self, verdict: Verdict, silent: list[Beat]) -> None:
        """End the run: record why, end this process, and kill the silent ranks of this host."""
        advice = "the run goes on from its last checkpoint when it is started again"
        _aside(lambda: log.error("stopped: %s; %s", verdict.message, advice))
        self._write_stacks(verdict.message)
        on_end = self._on_end
        if on_end is not None:
            _aside(lambda: on_end(verdict.step, verdict.message))
        for call in before_exit:
            _aside(call)
        self._leave(verdict.message, [beat for beat in silent if beat.host == self._host])

    def _leave(self, message: str, killed: Sequence[Beat] = ()) -> None:
        """End this process: its main thread waits in a call that nothing can interrupt."""
        try:
            time.sleep(_PATIENCE_S)
            _aside(lambda: tell_torchrun(f"stopped: {message}"))
            kill_workers()
            for beat in killed:
                kill_process(beat.pid, beat.born)
        finally:
            os._exit(FAILED)

    def _write_stacks(self, message: str) -> None:
        """Write the stacks of this rank's threads, and what NCCL has recorded."""
        folder, name = self._folder, f"rank_{self.rank:05d}"
        if folder is None:
            return

        def write() -> None:
            write_stacks(folder, f"{name}.txt", f"{self._beat().place}: {message}")
            if torch.cuda.is_initialized():
                trace = torch._C._distributed_c10d._dump_fr_trace_json()  # type: ignore[attr-defined]  # private
                (folder / f"{name}_nccl.json").write_bytes(trace)

        _aside(write)


def _silent_beat(own: Beat, beat: Beat | None, silent_s: float) -> Beat:
    """The heartbeat that a silent rank would have sent now."""
    if beat is None:
        return replace(own, idle_s=silent_s)
    return replace(beat, idle_s=beat.idle_s + silent_s)


def _aside(call: Callable[[], object]) -> None:
    """Call a function in another thread, and wait some seconds for it. Its errors are ignored.

    It writes files, and the file system may be what the ranks hang in. A lock of the log may be held for the same
    reason.
    """

    def work() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=work, name="watchdog files", daemon=True)
    thread.start()
    thread.join(_FILES_S)
