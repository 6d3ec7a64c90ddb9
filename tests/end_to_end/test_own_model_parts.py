"""A network, a loss, an optimizer, a schedule and metrics of a user's own, from files outside the package, through a
whole run.

The files and the configuration are those of docs/extending.md.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from end_to_end.conftest import arguments
from end_to_end.own_parts import assert_killed_run_continues, extending_blocks, write_modules
from end_to_end.runs import (
    COMMANDS,
    TRAIN,
    Program,
    Started,
    checkpoint,
    rank_environments,
    records,
)
from fusionseg.config import RunConfig, dump_config, load_config

STEPS, KILL_AT = 16, 6  # the last checkpoint is of step 4
MODULES = ("my_nets.py", "my_losses.py", "my_optimizers.py", "my_schedules.py", "my_metrics.py")


def documented() -> dict[str, Any]:
    """The page's sections about the model."""
    loaded = [yaml.safe_load(block) for block in extending_blocks("yaml")]
    return {
        key: value
        for entry in loaded
        for key, value in entry.items()
        if key in ("model", "loss", "optim", "schedule", "metrics")
    }


def test_parts_of_the_model_from_outside_the_package(
    program: Program,
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir(), elsewhere.mkdir()
    write_modules(own, MODULES)
    nets = own / "my_nets.py"  # with parameters that nothing depends on: no rank waits for their gradients
    nets.write_text(
        nets.read_text().replace("super().__init__()\n", "super().__init__()\n        self.idle = nn.Linear(2, 2)\n")
    )
    assert "idle" in nets.read_text()
    monkeypatch.chdir(own)
    plain = tiny_config(
        balls,
        tmp_path / "runs",
        train={"steps": STEPS, "global_batch": 4},
        validate={"every": 8},
        checkpoint={"every": 4},
    ).to_dict()
    file = own / "config.yaml"
    file.write_text(yaml.safe_dump({**plain, **documented()}))

    def start(run: Path) -> list[Started]:
        words = arguments(file, run)
        return [program.warm(TRAIN, *words, env=env, cwd=own) for env in rank_environments(2)]

    def command(*words: object) -> Any:
        return program.warm(COMMANDS, *words, cwd=elsewhere).wait()

    # Two ranks; the second run is killed and goes on.
    whole, killed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert_killed_run_continues(start, whole, killed, KILL_AT)

    # The parts have done their work: the triangle's rates, and the metrics of the configuration.
    rates = [record["lr"] for record in records(whole, "train")]
    assert rates[STEPS // 2] == max(rates) == pytest.approx(0.005) and rates[0] == pytest.approx(0.001)
    titles = ["volume_error", "volume_error_ml", "SurfaceDiceMetric", "iou"]
    assert list(records(whole, "val")[-1]["metrics"]) == titles

    # The run says what it was made with.
    recorded = checkpoint(whole)["config"]
    for part in (recorded["model"], recorded["loss"], recorded["optim"], recorded["schedule"], recorded["metrics"][0]):
        assert part["version"].startswith("sha256:") and part["found_in"] == str(own)
    assert recorded["metrics"][2]["version"].startswith("monai ")

    # Evaluation and prediction in another working directory.
    table = command("evaluate", whole).expect(0).out
    assert all(f"| {title} " in table for title in [*titles[:-1], "IoU"])
    (summary,) = whole.glob("evaluation*/**/summary.json")
    found = json.loads(summary.read_text())
    assert set(titles) <= set(found["metrics"])
    rows = list(csv.DictReader((summary.parent / "cases.csv").open()))
    for row in rows:
        error = int(row["voxels_predicted"]) - int(row["voxels_true"])
        assert float(row["volume_error"]) == pytest.approx(error / int(row["voxels_true"]))
        dice = float(row["dice"])
        assert float(row["iou"]) == pytest.approx(dice / (2 - dice))
    inputs = tmp_path / "inputs"
    shutil.copytree(balls / "imagesTr", inputs)
    command("predict", whole, "--input", inputs, "--output", tmp_path / "masks").expect(0)
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 5

    # A part that has changed is a warning with both versions; one that is gone is one message.
    nets.write_text(f"{nets.read_text()}\n")
    changed = command("predict", whole, "--input", inputs, "--output", tmp_path / "again").expect(0)
    assert recorded["model"]["version"] in changed.err and "my_nets:SmallNet has changed" in changed.err
    nets.unlink()
    gone = command("predict", whole, "--input", inputs, "--output", tmp_path / "others")
    assert gone.status == 2 and "my_nets" in gone.err and "Traceback" not in gone.err


def test_a_part_of_the_package_is_one_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page's network, as if its module lay in the folder of the networks."""
    from fusionseg.config.registry import networks
    from fusionseg.models import build_model

    networks.built_in()
    monkeypatch.setattr(networks, "_parts", dict(networks.built_in()))
    (text,) = (block for block in extending_blocks("python") if block.startswith("# pointwise.py,"))
    (tmp_path / "pointwise.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("pointwise")
    (tmp_path / "run.yaml").write_text("model: {name: pointwise, width: 3}\n")
    config = load_config(tmp_path / "run.yaml")
    assert dump_config(config).count("pointwise") == 1
    network = build_model(config.model, in_channels=2, out_channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == (2 + 1) * 3 + (3 + 1) * 3
