"""`fusionseg monitor`: alone, beside a command, on a terminal, and where there is no GPU."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in_nvml import StandIn

from fusionseg.observability.gpu import progress as gpu_progress
from fusionseg.observability.gpu.progress import GpuProgress, gpu_line
from fusionseg.observability.gpu.samples import Sample

MONITOR = [sys.executable, "-m", "fusionseg", "monitor"]
SETTINGS = "devices 2\n0.busy 40\n1.busy 60\n1.power !3"
# Counts the signals it gets, and says when it is ready for them.
LISTENER = """
import signal, sys, time
from pathlib import Path
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: got.append(number))
Path("ready").touch()
while not got:
    time.sleep(0.01)
time.sleep(0.3)
print("got", *got, flush=True)
sys.exit(3)
"""


def monitor(
    nvml: StandIn, *arguments: str, library: str = "new", settings: str = SETTINGS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MONITOR, *arguments],
        env=nvml.environ(settings, library),
        cwd=nvml.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def test_beside_a_command(nvml: StandIn, tmp_path: Path) -> None:
    program = "import sys, time; time.sleep(1.5); print(sys.argv[1:]); sys.exit(7)"
    done = monitor(
        nvml, "--output", "gpu.csv", "--interval", "0.1", "--picture", "gpu.png",
        "--", sys.executable, "-c", program, "--output", "its own", "--", "-x",
    )  # fmt: skip
    assert done.returncode == 7
    assert done.stdout == "['--output', 'its own', '--', '-x']\n"  # nothing but the command's
    assert "| 0   | Stand-in |" in done.stderr and "GPUs 50 % busy" in done.stderr
    assert len((tmp_path / "gpu.csv").read_text().splitlines()) > 20
    assert (tmp_path / "gpu.png").stat().st_size > 1000


def test_a_command_without_options_needs_no_dashes(nvml: StandIn) -> None:
    assert monitor(nvml, "echo", "hello").stdout == "hello\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signals_go_to_the_command(nvml: StandIn, tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [*MONITOR, "--", sys.executable, "-c", LISTENER],
        env=nvml.environ(SETTINGS),
        cwd=tmp_path,
        start_new_session=True,  # no terminal whose keys would reach the command too
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((tmp_path / "ready").exists)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert out == f"got {number}\n" and process.returncode == 3
    assert "| Stand-in |" in errors


def test_a_command_that_is_killed(nvml: StandIn) -> None:
    done = monitor(nvml, "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == 128 + 9


def test_without_a_gpu_the_command_runs_all_the_same(nvml: StandIn, tmp_path: Path) -> None:
    done = monitor(nvml, "--output", "gpu.csv", "--", sys.executable, "-c", "print('ran'); exit(5)", library="none")
    assert (done.returncode, done.stdout) == (5, "ran\n")
    assert done.stderr.count("\n") == 1 and "no GPU monitor: no NVIDIA driver here" in done.stderr
    assert not (tmp_path / "gpu.csv").exists()


def test_without_a_gpu_alone(nvml: StandIn) -> None:
    done = monitor(nvml, library="none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_alone_until_interrupted(nvml: StandIn, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*MONITOR, "--output", "gpu.csv", "--interval", "0.1"],
        env=nvml.environ(SETTINGS),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (tmp_path / "gpu.csv").exists() and (tmp_path / "gpu.csv").read_text().count("\n") > 25)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""
    lines = out.splitlines()
    assert lines[0].startswith("| GPU | name") and len(lines) == 5
    assert "| 40     |" in lines[2] and "| - of 300 " in lines[3]
    assert lines[4].startswith("GPUs 50 % busy")


def test_it_ends_when_the_driver_goes(nvml: StandIn) -> None:
    done = monitor(nvml, "--interval", "0.1", settings="gone 40 999")
    assert done.returncode == 1
    assert "no longer answers" in done.stderr and "| Stand-in |" in done.stdout


def test_what_is_wrong_is_told_at_once(nvml: StandIn) -> None:
    done = monitor(nvml, "--interval", "0", "--picture", "gpu.png", "--", "true")
    assert done.returncode == 2
    assert "--interval: expected 0.1 to 3600 seconds, got 0" in done.stderr and "add --output" in done.stderr
    assert monitor(nvml, "--interval", "nan").returncode == 2
    missing = monitor(nvml, "--", "no-such-program")
    assert missing.returncode == 2 and "no-such-program: cannot be started" in missing.stderr
    assert monitor(nvml, "--outptu", "gpu.csv").returncode == 2


def test_a_picture_that_cannot_be_drawn_does_not_hide_the_status(nvml: StandIn) -> None:
    done = monitor(nvml, "--output", "gpu.csv", "--picture", "/proc/gpu.png", "--", "false")
    assert done.returncode == 1 and "no picture" in done.stderr


def on_a_terminal(nvml: StandIn, arguments: list[str], ready: Callable[[bytes], bool]) -> tuple[bytes, int]:
    """Run in the foreground of a terminal of its own, press Ctrl-C when ready; what it showed, and its status."""
    environ = nvml.environ(SETTINGS, TERM="xterm", COLUMNS="120")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(nvml.folder)
        os.execvpe(sys.executable, [*MONITOR, *arguments], environ)
    shown, pressed = b"", False
    while True:
        if not select.select([terminal], [], [], 60)[0]:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"it says nothing more, after {shown!r}")
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not pressed and ready(shown):
            os.write(terminal, b"\x03")
            pressed = True
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_ctrl_c_reaches_the_command_once(nvml: StandIn) -> None:
    listener = LISTENER.replace('Path("ready").touch()', 'print("ready", flush=True)')
    shown, status = on_a_terminal(nvml, ["--", sys.executable, "-c", listener], lambda shown: b"ready" in shown)
    assert b"got 2\r\n" in shown and status == 3
    assert b"| Stand-in |" in shown


def test_a_live_line_on_a_terminal(nvml: StandIn) -> None:
    line = "GPU 0 40 % 4.0/16 GB 100 W 60 °C  |  GPU 1 60 % 4.0/16 GB 60 °C".encode()
    shown, status = on_a_terminal(nvml, ["--interval", "0.1"], lambda shown: line in shown)
    assert line in shown and status == 0
    assert b"| Stand-in |" in shown


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample("GPU-a", "0", busy_percent=12.4, power_w=99.6)]
    with GpuProgress(live=True) as progress:
        progress.samples(samples)  # the last line is not ten seconds ago
        monkeypatch.setattr(gpu_progress, "PLAIN_EVERY_S", 0.0)
        progress.samples(samples)
    assert capsys.readouterr().err == "GPU 0 12 % 100 W\n"


def test_a_line_of_a_mig_instance() -> None:
    assert gpu_line([Sample("MIG-a", "0:1", memory_used_gb=1.25, memory_total_gb=5)]) == "GPU 0:1 1.2/5 GB"
