"""map_cases: an item that kills its worker or raises an exception does not affect the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from fusionseg.utils.parallel import WorkerDied, map_cases

ITEMS = list(range(12))


class OddError(Exception):
    """Cannot be unpickled: unpickling calls it with one argument."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")


def work(folder: Path, item: int) -> int:
    """Return the square and record item and process; 5 kills its process, 7 and 8 raise exceptions."""
    (folder / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if item == 5:
        os._exit(1)
    if item == 7:
        raise ValueError("seven is broken")
    if item == 8:
        raise OddError("odd", "eight is broken")
    return item * item


@pytest.mark.fault("killed-worker-of-the-preparation")
def test_killed_worker_and_exception_affect_only_their_items(tmp_path: Path) -> None:
    outcomes = dict(map_cases(partial(work, tmp_path), ITEMS, workers=2))
    assert sorted(outcomes) == ITEMS
    assert isinstance(outcomes[5], WorkerDied)
    assert_seen("killed-worker-of-the-preparation", str(outcomes[5]))
    assert isinstance(outcomes[7], ValueError) and str(outcomes[7]) == "seven is broken"
    assert isinstance(outcomes[8], RuntimeError) and str(outcomes[8]) == "OddError: odd eight is broken"
    good = {item: outcome for item, outcome in outcomes.items() if item not in (5, 7, 8)}
    assert good == {item: item * item for item in good}


def test_only_active_items_are_repeated(tmp_path: Path) -> None:
    outcomes = dict(map_cases(partial(work, tmp_path), range(40), workers=2))
    assert len(outcomes) == 40
    begun = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sum(item == "5" for item, *_ in begun) == 2
    assert len(begun) <= 40 + 4  # two for each worker
    # Two workers, one that repeats item 5 and dies, one for the other active items, two for the rest.
    assert len({pid for _, pid, _ in begun}) <= 6


def kill_some(item: int) -> int:
    if item in (0, 1, 6):
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_several_killed_workers(tmp_path: Path) -> None:
    outcomes = dict(map_cases(kill_some, range(8), workers=2))
    assert {item for item, outcome in outcomes.items() if isinstance(outcome, WorkerDied)} == {0, 1, 6}
    assert [outcomes[item] for item in (2, 3, 4, 5, 7)] == [2, 3, 4, 5, 7]


def broken_initializer() -> None:
    os._exit(1)


def test_workers_that_cannot_start() -> None:
    outcomes = dict(map_cases(kill_some, [3, 4, 5], workers=2, initializer=broken_initializer))
    assert all(isinstance(outcome, WorkerDied) for outcome in outcomes.values()) and len(outcomes) == 3


def test_result_that_cannot_be_pickled() -> None:
    outcomes = dict(map_cases(lambda_for_even, [1, 2, 3], workers=2))
    assert (outcomes[1], outcomes[3]) == (1, 3)
    assert isinstance(outcomes[2], Exception) and not isinstance(outcomes[2], WorkerDied)


def lambda_for_even(item: int) -> object:
    return item if item % 2 else lambda: item


def process(item: int) -> int:
    return os.getpid()


@pytest.mark.parametrize(("items", "workers"), [([1, 2, 3], 1), ([1], 4), ([], 4)])
def test_one_item_or_one_worker_uses_no_process(items: list[int], workers: int) -> None:
    assert dict(map_cases(process, items, workers=workers)) == dict.fromkeys(items, os.getpid())


def test_closing_the_iterator_ends_the_workers(tmp_path: Path) -> None:
    results: Iterator[tuple[int, object]] = map_cases(partial(work, tmp_path), ITEMS[:4] * 10, workers=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    begun = len(list(tmp_path.iterdir()))
    assert begun <= 6
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == begun


SLOW = """
import sys, time
from pathlib import Path
from fusionseg.utils.parallel import map_cases

def work(item):
    import os
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(120)

if __name__ == "__main__":
    list(map_cases(work, [1, 2], workers=2))
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed by SIGKILL cannot signal its workers; they would hold memory and locks forever."""
    script, seen = tmp_path / "slow.py", tmp_path / "seen"
    script.write_text(SLOW)
    seen.mkdir()
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, str(script), str(seen)], env={**os.environ, "PYTHONPATH": root})
    try:
        wait_until(lambda: len(list(seen.iterdir())) == 2)
    finally:
        process.kill()
        process.wait()
    workers = [Path("/proc", entry.name) for entry in seen.iterdir()]
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def is_running(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.05)


def test_workers_do_not_run_the_script_again(tmp_path: Path) -> None:
    """A script that has no `if __name__ == "__main__"` is run once."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fusionseg.utils.parallel import map_cases\n"
        "print('started', flush=True)\n"
        "print(dict(map_cases(str.upper, ['a', 'b', 'c'], workers=2)), __file__)\n"
    )
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.count("started") == 1
    assert "'A'" in said and "'B'" in said and "'C'" in said and str(script) in said
