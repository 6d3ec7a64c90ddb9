"""Cost of the watchdog and of the search for slow ranks, as a share of a training step.

    torchrun --standalone --nproc_per_node=2 profiling/benchmark_watchdog.py [--step-ms 120] [--log-every 50]

The thread of the watchdog looks at the progress once a second and sends a heartbeat. In this time it holds the lock of
Python's interpreter at most, so that its share of a second is the most that a step can lose. The search for slow ranks
is one exchange on a logging step. The step's own time is given: that of `profiling/benchmark.py`, for example.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from fusionseg.distributed.watchdog.watchdog import PERIOD_S, Limits
from fusionseg.distributed.world import World
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.training.observers.stragglers import OWN_PARTS, Stragglers
from fusionseg.utils.tables import markdown_table

ROUNDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=120.0, help="time of a step in milliseconds")
    parser.add_argument("--log-every", type=int, default=50, help="log.every of the training")
    arguments = parser.parse_args()
    world = World.from_environment("cpu", limits=Limits(60, 900))
    try:
        assert world.watchdog is not None
        look = _median_ms(world.watchdog._look)
        stragglers = Stragglers(world, ["host"] * world.size)
        seconds = dict.fromkeys(OWN_PARTS, 0.1)
        exchange = _median_ms(lambda: stragglers.look(1, seconds, 10, 0.6))
        if world.is_rank_zero:
            rows = [
                ["part", "median ms", "share of the time"],
                ["a look and a heartbeat, once a second", f"{look:.3f}", f"{look / (1e3 * PERIOD_S):.4%}"],
                [
                    f"search for slow ranks, every {arguments.log_every} steps of {arguments.step_ms:g} ms",
                    f"{exchange:.3f}",
                    f"{exchange / (arguments.log_every * arguments.step_ms):.4%}",
                ],
            ]
            print(f"{machine_line(machine_info(world.device))}, {world.size} ranks\n\n{markdown_table(rows)}")
    finally:
        world.close()


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


if __name__ == "__main__":
    main()
