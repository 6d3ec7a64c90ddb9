"""The monitor beside a real training: on a CPU, and told that its device is one of the stand-in's GPUs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.catalogue import assert_seen
from stand_in_nvml import StandIn

from fusionseg.config import dump_config

TRAIN = """
import sys
import fusionseg.training.observers.gpu_watch as watch
from fusionseg.train import main

watch.gpu_uuid = lambda device: sys.argv[1] or None
sys.exit(main(sys.argv[2:]))
"""
UUID = "00000001-0000-0000-0000-000000000001"


@pytest.fixture
def train(nvml: StandIn, balls: Path, tiny_config: Callable, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """`train(settings, uuid, *overrides)` -> the run's folder and what it said; it must complete."""

    def start(settings: str, uuid: str, *overrides: str, library: str = "new") -> tuple[Path, str]:
        config = tmp_path / "tiny.yaml"
        config.write_text(dump_config(tiny_config(balls, tmp_path, log={"gpu_every_s": 0.1, "tensorboard": True})))
        command = [sys.executable, "-c", TRAIN, uuid, "--config", str(config), *overrides]
        environ = nvml.environ(settings, library)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return tmp_path / "tiny", done.stderr

    return start


def end_of(run: Path) -> dict[str, Any]:
    end: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return end


def test_the_gpu_of_a_run_is_watched_and_advice_is_given(train: Callable[..., tuple[Path, str]]) -> None:
    settings = "devices 2\n0.busy 99\n1.busy 63\n1.power 250000\n1.throttle 4\n1.memory_used 1000000000"
    run, said = train(settings, UUID, "train.steps=150", "validate.every=150", "checkpoint.every=150")
    rows = list(csv.DictReader((run / "gpu.csv").open()))
    assert len(rows) >= 10 and {row["uuid"] for row in rows} == {f"GPU-{UUID}"}
    assert {row["busy_percent"] for row in rows} == {"63"}
    (gpu,) = end_of(run)["gpu"]["gpus"]
    assert (gpu["index"], gpu["busy_percent"], gpu["power_w"]) == ("1", 63.0, 250.0)
    assert gpu["throttled"] == {"power": 1.0}
    assert "GPU 1 throttled by power in 100 % of the samples" in said
    assert "GPU 63 % busy, " in said and " % of the step waits for data" in said
    assert (run / "pictures/gpu.png").stat().st_size > 5000
    events = next(run.glob("events.out.tfevents.*")).read_bytes()
    assert b"z_gpu/busy_percent/1" in events and b"z_gpu/power_w/1" in events


@pytest.mark.fault("gpu-monitor-ends")
def test_a_driver_that_goes_away_does_not_touch_the_run(train: Callable[..., tuple[Path, str]]) -> None:
    run, said = train("devices 2\ngone 60 999", UUID, "train.steps=100")
    assert_seen("gpu-monitor-ends", said, run)
    assert end_of(run)["status"] == "completed" and end_of(run)["gpu"]["gpus"][0]["samples"] >= 1


@pytest.mark.parametrize(
    ("uuid", "library", "options", "said"),
    [
        (UUID, "none", (), "no GPU monitor: "),  # no driver
        ("99999999-0000-0000-0000-000000000001", "new", (), "no GPU monitor: "),  # no such GPU
        ("", "new", (), ""),  # no GPU at all
        (UUID, "new", ("log.gpu_every_s=null",), ""),
    ],
)
def test_without_a_monitor(
    train: Callable[..., tuple[Path, str]], uuid: str, library: str, options: tuple[str, ...], said: str
) -> None:
    run, shown = train("devices 2", uuid, *options, library=library)
    assert said in shown and shown.count("GPU monitor") == bool(said)
    assert not (run / "gpu.csv").exists() and "gpu" not in end_of(run)
