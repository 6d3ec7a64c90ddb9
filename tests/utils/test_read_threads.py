"""map_reads: results in order, threads for slow calls only, errors of a call reach the caller."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from fusionseg.utils import read_threads
from fusionseg.utils.read_threads import map_reads

ITEMS = list(range(600))  # two whole blocks and a part of one


def test_quick_calls_stay_in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_threads, "SLOW_SECONDS", 1e6)  # however busy the machine is
    found = list(map_reads(lambda item: (item, threading.get_ident()), ITEMS, 4))
    assert found == [(item, threading.get_ident()) for item in ITEMS]


def test_slow_calls_are_shared_among_threads_and_stay_in_order() -> None:
    def slow(item: int) -> tuple[int, int]:
        time.sleep(0.002)
        return item, threading.get_ident()

    found = list(map_reads(slow, ITEMS, 4))
    assert [item for item, _ in found] == ITEMS
    calls = Counter(thread for _, thread in found)
    assert 2 <= len(calls) <= 5
    assert calls[threading.get_ident()] == 3 * 8  # the timed calls of the blocks


def test_a_disk_that_becomes_slow_is_noticed_in_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_threads, "SLOW_SECONDS", 0.005)

    def later_slow(item: int) -> int:
        if item >= 256:
            time.sleep(0.008 if item < 264 else 0)
        return threading.get_ident()

    found = list(map_reads(later_slow, ITEMS, 2))
    assert threading.get_ident() not in found[264:512]


@pytest.mark.parametrize("bad", [3, 100])
def test_an_exception_ends_the_calls(bad: int) -> None:
    def fails(item: int) -> int:
        if item == bad:
            raise ValueError("cannot be read")
        return item

    with pytest.raises(ValueError, match="cannot be read"):
        list(map_reads(fails, ITEMS, 4))


def test_no_items() -> None:
    assert list(map_reads(str, [], 4)) == []
