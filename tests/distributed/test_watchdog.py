"""Judgement of the watchdog: who is missed, what is known of its process, when it is time to say so."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, TCPStore

from fusionseg.distributed.watchdog.beat import Beat, Progress
from fusionseg.distributed.watchdog.exchange import Exchange
from fusionseg.distributed.watchdog.processes import describe_process, kill_process
from fusionseg.distributed.watchdog.verdict import Verdict, describe, is_over, is_stuck, missed_ranks
from fusionseg.distributed.watchdog.watchdog import Limits, Watchdog
from fusionseg.observability.ranges import annotate, phase_timer, progressed
from fusionseg.utils.machine import process_stat


def beat(rank: int, step: int | None = 11, phase: str = "backward", position: int = 5, **fields: object) -> Beat:
    values = {"waits": False, "idle_s": 61.0, "warn_s": 60.0, "end_s": 900.0, "number": 1} | fields
    return Beat(rank, f"node{rank}", 100 + rank, 7, step=step, phase=phase, position=position, **values)  # type: ignore[arg-type]


def stop(pid: int) -> None:
    """Stop a process, and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    limit = time.monotonic() + 10
    while (stat := process_stat(pid)) is None or stat[0] != "T":
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_rank_without_heartbeats_is_missed() -> None:
    living = [beat(0), beat(1), beat(3)]
    assert missed_ranks(living, [2]) == [2]
    last = beat(2, step=11, phase="forward", position=3)
    message, step = describe(living, {2: (last, "its process is stopped (SIGSTOP)")})
    assert message == (
        "no progress for 61 s: waiting for rank 2 (node2, process 102), last seen in step 12, forward, without a sign"
        " of life since; its process is stopped (SIGSTOP); the others are in step 12, backward"
    )
    assert step == 11


def test_the_rank_furthest_behind_is_missed() -> None:
    assert missed_ranks([beat(0), beat(1, phase="data", position=1), beat(2)], []) == [1]
    assert missed_ranks([beat(0, step=11), beat(1, step=10, position=9)], []) == [1]
    # Rank 0 writes a log after step 11; the others wait in the next step.
    assert missed_ranks([beat(0, step=10, phase="log", position=30), beat(1, position=2), beat(2, position=2)], []) == [
        0
    ]
    # Ranks that wait for others are not missed, wherever they stand.
    waiting = [beat(rank, phase="validate", position=1, waits=True) for rank in (0, 2)]
    assert missed_ranks([*waiting, beat(1, phase="validate", position=50)], []) == [1]


def test_no_rank_is_missed_if_all_stand_at_one_place() -> None:
    living = [beat(rank) for rank in range(4)]
    assert missed_ranks(living, []) == []
    assert describe(living, {})[0] == (
        "no progress for 61 s: all 4 ranks are in step 12, backward, and none is behind (network, file system?)"
    )


def test_the_message_about_a_rank_that_never_came_and_about_many() -> None:
    living = [beat(0, step=None, phase="", waits=True)]
    message, step = describe(living, {1: (None, "")})
    assert message == (
        "no progress for 61 s: waiting for rank 1, which has not joined the others; the others are in start-up"
    )
    assert step == 0
    message, _ = describe([beat(0)], {rank: (beat(rank), "") for rank in range(1, 9)})
    assert "rank 4 (" in message and "rank 5 (" not in message and "and 4 more" in message


def test_a_single_rank_names_itself() -> None:
    message, _ = describe([beat(0, phase="data")], {})
    assert message == "no progress for 61 s: rank 0 (node0, process 100) is in step 12, data"
    after = beat(0, phase="checkpoint")
    assert describe([after], {})[0].endswith("is in checkpoint after step 12")


def test_it_is_time_only_if_no_rank_makes_progress() -> None:
    assert is_stuck([beat(0), beat(1)])
    assert not is_stuck([beat(0), beat(1, idle_s=3.0)])  # for example rank 1 still validates
    assert not is_stuck([beat(0), beat(1, warn_s=300.0)])
    assert is_over([beat(0, idle_s=901.0), beat(1, idle_s=900.0)])
    assert not is_over([beat(0, idle_s=901.0), beat(1, idle_s=899.0)])
    assert not is_over([beat(0, idle_s=1e9, end_s=math.inf)])


def test_limits_are_longer_in_slow_phases_and_learnt_from_the_run() -> None:
    limits = Limits(60, 900)
    assert limits.of(slow=False, longest_s=0) == (60, 900)
    assert limits.of(slow=True, longest_s=0) == (300, 4500)
    assert limits.of(slow=False, longest_s=50) == (150, 2250)
    assert Limits(60, None).of(slow=False, longest_s=0) == (60, math.inf)


def test_a_heartbeat_survives_the_store() -> None:
    sent = beat(3, step=None, end_s=math.inf)
    assert Beat.load(sent.dump()) == sent
    verdict = Verdict(2, ends=True, message="no progress: ü", step=7)
    assert Verdict.load(verdict.dump().encode()) == verdict


def test_what_is_known_of_a_process() -> None:
    child = subprocess.Popen(["sleep", "100"])
    try:
        stat = process_stat(child.pid)
        assert stat is not None
        born = stat[1]
        stop(child.pid)
        assert describe_process(child.pid, born) == "its process is stopped (SIGSTOP)"
        assert describe_process(child.pid, born + 1) == "its process has ended"  # another one with this id
        kill_process(child.pid, born + 1)
        assert child.poll() is None
        kill_process(child.pid, born)
        assert child.wait(5) == -signal.SIGKILL
        assert describe_process(child.pid, born) == "its process has ended"
        kill_process(child.pid, born)
    finally:
        child.kill()
        child.wait()


def test_exchange_tells_silent_ranks_from_living_ones() -> None:
    store = PrefixStore("run", TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False))
    ranks = [Exchange(store, rank, 3, silence_s=0.3) for rank in range(3)]
    for rank in (0, 1):
        ranks[rank].send(beat(rank))
    assert ranks[0].verdict().number == ranks[1].verdict().number == 0
    assert ranks[0].read()
    living, silent = ranks[0].beats()
    assert [one.rank for one in living] == [1] and silent == {}
    assert ranks[0].read(range(1)) and ranks[1].read(range(2))  # of a large run only the first ranks are read
    time.sleep(0.4)
    ranks[1].send(beat(1, number=2))
    assert ranks[0].read()
    living, silent = ranks[0].beats()
    assert [one.number for one in living] == [2] and list(silent) == [2]
    assert silent[2][0] is None and silent[2][1] >= 0.4  # rank 2 never came
    time.sleep(0.4)
    assert ranks[0].read() and {rank: one for rank, (one, _) in ranks[0].beats()[1].items()} == {
        1: beat(1, number=2),
        2: None,
    }
    ranks[0].forget()  # after progress, all have their time again
    assert ranks[0].read() and ranks[0].beats()[1] == {}
    ranks[1].send(beat(1, number=3, left=True))
    time.sleep(0.4)
    assert ranks[0].read()
    living, silent = ranks[0].beats()
    assert living == [] and list(silent) == [2]  # nobody waits for a rank that has done its work
    ranks[0].judge(Verdict(1, ends=False, message="stuck", step=3))
    assert ranks[2].verdict().message == "stuck"


def test_store_that_does_not_answer_does_not_hold_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's client waits without a limit for a server that is stopped."""
    command = (
        "import sys, time; from torch.distributed import TCPStore;"
        "store = TCPStore('127.0.0.1', 0, 1, is_master=True, wait_for_workers=False);"
        "print(store.port, flush=True); time.sleep(100)"
    )
    server = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        store = TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
        monkeypatch.setattr("fusionseg.distributed.watchdog.exchange._ANSWER_S", 0.5)
        exchange = Exchange(store, 0, 2, silence_s=0.1)
        assert exchange.verdict().number == 0 and exchange.lost_s == 0
        stop(server.pid)
        began = time.monotonic()
        assert not exchange.read() and not exchange.read() and exchange.verdict().number == 0
        assert exchange.lost_s > 0 and time.monotonic() - began < 5
        server.send_signal(signal.SIGCONT)
        limit = time.monotonic() + 20
        while not exchange.read():  # it is tried again from time to time
            assert time.monotonic() < limit
            time.sleep(0.1)
        assert exchange.lost_s == 0
    finally:
        server.kill()
        server.wait()


def test_progress_is_seen_from_another_thread() -> None:
    progress = Progress()
    seen: list[tuple[str, int]] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append((progress.phase, progress.position)))
        thread.start()
        thread.join()

    progress.begin_step(4)
    look()
    with annotate("step"), annotate("forward"):
        look()
        with annotate("some layer"):
            look()
        progressed()
        look()
    look()
    assert [phase for phase, _ in seen] == ["", "forward", "forward", "forward", ""]
    assert [position for _, position in seen] == [0, 2, 3, 4, 6]
    assert progress.step == 4 and phase_timer().names == []


def test_watchdog_of_a_single_rank_warns_and_notes_progress(caplog: pytest.LogCaptureFixture, tmp_path) -> None:
    progress = Progress()
    for _ in range(3):
        progress.begin_step(20)
    watchdog = Watchdog(progress, Limits(1, None), rank=0, size=1, store=None)
    (tmp_path / "run").mkdir()
    watchdog.place(tmp_path / "run/hangs", lambda step, reason: None)
    with caplog.at_level("WARNING", logger="fusionseg"), annotate("data"):
        watchdog.start()
        limit = time.monotonic() + 30
        while not caplog.messages:
            assert time.monotonic() < limit
            time.sleep(0.1)
        progressed()
        while len(caplog.messages) < 2:
            assert time.monotonic() < limit
            time.sleep(0.1)
    watchdog.close()
    watchdog.join(10)
    assert "is in step 21, data; the stacks of the ranks are in" in caplog.messages[0]
    assert caplog.messages[1].startswith("progress again after")
    assert "test_watchdog.py" in (tmp_path / "run/hangs/rank_00000.txt").read_text()


def test_rank_that_falls_silent_has_its_own_time(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may have waited for hours, for example for a preparation of rank 0, before it falls silent."""
    monkeypatch.setattr("fusionseg.distributed.watchdog.watchdog.kill_process", lambda *_: None)
    store = PrefixStore("run", TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False))
    watchdog = Watchdog(Progress(waits=True), Limits(60, 900), rank=1, size=2, store=store)
    rank0 = Exchange(store, 0, 2, silence_s=5)
    watchdog._changed -= 3 * 3600
    assert watchdog._exchange is not None
    watchdog._exchange.silence_s = 0.2
    rank0.send(beat(0, idle_s=0.5, phase="prepare", warn_s=300.0, end_s=4500.0))
    watchdog._look()
    time.sleep(0.4)
    watchdog._look()
    assert watchdog._warned is None and not watchdog._is_ending  # silent for a moment
    watchdog._exchange._last[0] = (watchdog._exchange._last[0][0], time.monotonic() - 301)
    watchdog._look()
    assert watchdog._warned is not None and not watchdog._is_ending  # a warning comes before the end
    ended: list[str] = []
    monkeypatch.setattr(watchdog, "_leave", lambda message, killed=(): ended.append(message))
    watchdog._look()
    assert not ended
    watchdog._exchange._last[0] = (watchdog._exchange._last[0][0], time.monotonic() - 4501)
    watchdog._look()
    assert len(ended) == 1 and "waiting for rank 0" in ended[0]
