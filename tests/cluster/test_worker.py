"""A rank of a job, signalled until it has gone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fusionseg.config import dump_config


def test_signals_that_come_while_it_leaves_do_not_kill_it(balls: Path, tiny_config: Callable, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(tiny_config(balls, tmp_path, train={"steps": 100000})))
    process = subprocess.Popen([sys.executable, "-m", "fusionseg.cluster.worker", str(run)], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and '"train"' in (run / "metrics.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    while process.poll() is None and time.monotonic() < limit:
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.002)
    assert process.wait(timeout=10) == 0
    assert '"interrupted"' in (run / "metrics.jsonl").read_text()
