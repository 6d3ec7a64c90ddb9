"""Helpers of the tests of a user's own parts: the modules of docs/extending.md, and a training that is killed."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from end_to_end.runs import REPOSITORY, Started, assert_same_run, records, wait_for_step


def extending_blocks(language: str) -> list[str]:
    """Return the fenced blocks of docs/extending.md in a language."""
    text = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_modules(folder: Path, names: Sequence[str]) -> None:
    """Write modules of the page, under the names in their first lines."""
    for name in names:
        (text,) = (block for block in extending_blocks("python") if block.startswith(f"# {name}\n"))
        (folder / name).write_text(text)


def assert_killed_run_continues(start: Callable[[Path], list[Started]], whole: Path, killed: Path, step: int) -> None:
    """Train two runs, of which the second is killed and continued, and assert that both are the same run.

    Args:
        start: starts the ranks of a run in a folder.
        whole: folder of the uninterrupted run.
        killed: folder of the other run.
        step: after which it is killed.
    """
    for rank in start(whole):
        rank.wait().expect(0)
    ranks = start(killed)
    wait_for_step(killed, step, ranks)
    for rank in ranks:
        rank.send(signal.SIGKILL)
        rank.wait()
    assert step <= records(killed)[-1]["step"] < records(whole, "train")[-1]["step"]
    for rank in start(killed):
        rank.wait().expect(0)
    assert_same_run(killed, whole)
