"""`fusionseg monitor`: GPU counters while a command runs."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionseg.commands.base import Commands, add_command
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED

INTERVALS_S = (0.1, 3600.0)
"""Shortest and longest interval. NVML updates its values about ten times a second."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_KEYBOARD = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A terminal sends these to all processes in its foreground: the command receives them directly."""


def add_monitor(commands: Commands) -> None:
    parser = add_command(
        commands,
        "monitor",
        "sample the GPUs: alone until Ctrl-C, or beside a command until that ends; summary and advice at the end",
        "fusionseg monitor --output gpu.csv --picture gpu.png\n"
        "  fusionseg monitor --output gpu.csv -- python -m fusionseg.train --config demo"
        " data.root=demo/data",
        _monitor,
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the samples to this CSV file")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between samples (default 1)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the CSV file at the end, as PNG")
    parser.add_argument(
        "program", nargs="*", metavar="-- COMMAND", help="to run meanwhile; its exit status becomes this one's"
    )


def _monitor(arguments: argparse.Namespace) -> int:
    from fusionseg.observability.gpu.advice import advise
    from fusionseg.observability.gpu.monitor import GpuMonitor
    from fusionseg.observability.gpu.progress import GpuProgress
    from fusionseg.utils.files import writable_file

    problems = []
    if not INTERVALS_S[0] <= arguments.interval <= INTERVALS_S[1]:
        problems.append(
            f"--interval: expected {INTERVALS_S[0]:g} to {INTERVALS_S[1]:g} seconds, got {arguments.interval:g}"
        )
    if arguments.picture is not None and arguments.output is None:
        problems.append("--picture: needs a file of samples to draw: add --output gpu.csv")
    if problems:
        raise UserError(problems)
    program = arguments.program
    for key, path in (("--output", arguments.output), ("--picture", arguments.picture)):
        if path is not None and not program:  # a command is run even if the samples cannot be written
            writable_file(path, key)
    with GpuProgress(live=not program) as progress:
        monitor = GpuMonitor(arguments.output, interval_s=arguments.interval, on_sample=progress.samples)
        reason = monitor.start()
        if reason is not None:
            print(f"no GPU monitor: {reason}", file=sys.stderr)
            if not program:
                return FAILED
        try:
            status = _run_beside(program) if program else _wait(monitor)
        finally:
            summary = monitor.stop()
    if reason is None:
        # Standard output belongs to the command: another program may read it.
        out = sys.stderr if program else sys.stdout
        print(_table(summary), *advise(summary), sep="\n", file=out)
        if arguments.picture is not None:
            _draw(arguments.output, arguments.picture)
    return status


def _draw(csv: Path, picture: Path) -> None:
    from fusionseg.observability.gpu.figure import plot_gpu_csv

    try:
        plot_gpu_csv(csv, picture)
    except (UserError, OSError) as error:  # a missing picture does not change the exit status of the command
        print(f"no picture: {error}", file=sys.stderr)


def _run_beside(program: Sequence[str]) -> int:
    """Run a command, pass signals on to it, and return its exit status in the shell's convention."""
    process: subprocess.Popen[bytes] | None = None
    before_start: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if number in FROM_KEYBOARD and _in_foreground():
            return
        if process is None:
            before_start.append(number)
        else:
            process.send_signal(number)

    with _handling(pass_on):
        try:
            process = subprocess.Popen(program)
        except OSError as error:
            raise UserError(f"{program[0]}: cannot be started: {error.strerror}: check the command after --") from None
        for number in before_start:
            process.send_signal(number)
        status = process.wait()
    return status if status >= 0 else 128 - status


def _wait(monitor: Any) -> int:
    """Wait for a signal such as Ctrl-C (success) or for a failure of the monitor; return the exit status."""
    stopped = threading.Event()
    with _handling(lambda number, frame: stopped.set()):
        while not stopped.wait(0.2):
            if not monitor.is_running:
                return FAILED
    return DONE


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Handle the signals of `PASSED_ON` during the body."""
    # A signal that is ignored (nohup, a background job of a shell) stays ignored, for the command too.
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    ours = [number for number, old in before.items() if old is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _in_foreground() -> bool:
    """Tell whether the terminal sends the signals of its keys to this process, and so to the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _table(summary: dict[str, Any]) -> str:
    """Format the summary of a monitor as a Markdown table with one row for each GPU."""
    from fusionseg.utils.tables import markdown_table

    def cell(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [("GPU", "name", "samples", "busy %", "memory busy %", "memory GB", "power W", "°C", "throttled %")]
    for gpu in summary["gpus"]:
        throttled = ", ".join(f"{name} {100 * share:.0f}" for name, share in gpu["throttled"].items())
        rows.append(
            (
                gpu["index"] + (" (lost)" if gpu["lost"] else ""),
                gpu["name"],
                str(gpu["samples"]),
                cell(gpu["busy_percent"]),
                cell(gpu["memory_busy_percent"]),
                f"{cell(gpu['memory_used_gb'], 1)} of {cell(gpu['memory_total_gb'], 1)}",
                f"{cell(gpu['power_w'])} of {cell(gpu['power_limit_w'])}",
                cell(gpu["temperature_c"]),
                throttled or "-",
            )
        )
    return markdown_table(rows)
