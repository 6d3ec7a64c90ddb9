"""Standard output that is closed, full, disconnected or not read: the program keeps its own exit status."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINTS = """
import sys
from fusionseg.utils import streams
streams.protect({patience})
for number in range({lines}):
    print("line", number)
    print("problem", number, file=sys.stderr)
open({log!r}, "w").write(f"{{streams.lost_output()}} {{streams.reader_has_left()}}")
sys.exit(7)
"""


def program(log: Path, lines: int = 1000, patience: float | None = None) -> list[str]:
    """Return a program that prints to both streams, records lost output in a file, and exits with status 7."""
    return [sys.executable, "-c", PRINTS.format(lines=lines, patience=patience, log=str(log))]


def shell(log: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell with a redirection; return its status and output."""
    command = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", command, "bash", *program(log)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "lost"),
    [
        (">/dev/full", "No space left on device False"),
        (">/dev/full 2>/dev/full", "No space left on device False"),
        ("2>&1 | true", "None True"),
        ("2>&1 | head -n 1", "None True"),
        (">&-", "None False"),
        ("2>&-", "None False"),
        (">&- 2>&- <&-", "None False"),
    ],
)
def test_exit_status_is_that_of_the_program(tmp_path: Path, redirection: str, lost: str) -> None:
    ended = shell(tmp_path / "log", redirection)
    assert ended.returncode == 7
    # Printed text must not go to the next file that is opened: it gets the descriptor of a closed stream.
    assert (tmp_path / "log").read_text() == lost
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    if "head" in redirection:
        assert ended.stdout == "line 0\n" or ended.stdout.startswith("problem 0")
    if redirection == "2>&-":
        assert ended.stdout.count("\n") == 1000


def test_reader_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """Only once, for the given time. Lost bytes are reported when the reader reads again."""
    read, write = os.pipe()
    command = program(tmp_path / "log", lines=20_000, patience=0.2)
    process = subprocess.Popen(command, stdout=write, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.wait(timeout=60) == 7
    os.close(write)
    with open(read, "rb") as pipe:
        shown = pipe.read()
    assert shown.startswith(b"line 0\nline 1\n") and shown.count(b"\n") < 20_000

    read, write = os.pipe()
    script = (
        "import sys\nfrom fusionseg.utils import streams\nstreams.protect(0.1)\n"
        "for n in range(40_000): print('line', n)\nsys.stdin.read(1)\nprint('the end')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=write, cwd=ROOT)
    os.close(write)
    time.sleep(1.0)
    chunks: list[bytes] = []
    with open(read, "rb") as pipe:
        reader = threading.Thread(target=lambda: chunks.append(pipe.read()))
        reader.start()
        time.sleep(0.3)
        process.communicate(b".", timeout=60)
        reader.join()
    text = chunks[0].decode()
    assert "bytes were not shown: nobody read them)" in text and text.endswith("the end\n")


def test_disconnected_terminal(tmp_path: Path) -> None:
    """Every write to the terminal fails with EIO."""
    ours, theirs = pty.openpty()
    script = (
        "import sys\nfrom fusionseg.utils import streams\nstreams.protect()\nassert sys.stdout.isatty()\n"
        "print('here', flush=True)\n"
        "sys.stdin.read(1)\nfor n in range(99): print('line', n)\n"
        f"open({str(tmp_path / 'log')!r}, 'w').write(str(streams.lost_output()))\nsys.exit(7)\n"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"here")
    os.close(ours)
    process.communicate(b".", timeout=60)
    assert process.returncode == 7
    assert (tmp_path / "log").read_text() == "Input/output error"


def test_characters_outside_of_the_encoding_are_escaped() -> None:
    script = "from fusionseg.utils import streams\nstreams.protect()\nprint('19 °, \\ud800')"
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "19 \\xb0, \\ud800\n"


def test_command_reports_lost_output() -> None:
    """`schema > file` on a full disk fails; `schema | head` succeeds."""
    command = [sys.executable, "-m", "fusionseg", "schema"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: standard output: No space left on device: what the command printed there is incomplete\n"
    )
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
