"""The sinks of a run: what they receive over several starts, and what happens to one that fails."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from faults.catalogue import assert_seen
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from fusionseg import train
from fusionseg.config import RunConfig, dump_config, validate

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
MODULE = PAGE.split("```python\n# my_sinks.py\n")[1].split("```")[0]
DOCUMENTED = next(
    block["log"]["sinks"]
    for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    if "sinks" in (block := yaml.safe_load(text)).get("log", {})
)
FAILING = """
from fusionseg.observability.sinks.sink import Sink

class Failing(Sink):
    def __init__(self, method, calls):
        self.method, self.calls = method, calls
        self.call("__init__")
    def call(self, name):
        with open(self.calls, "a") as file:
            file.write(name + "\\n")
        if name == self.method:
            raise RuntimeError(f"{name} cannot\\nbe done")
    def start(self, run):
        self.call("start")
    def record(self, record):
        self.call("record")
    def image(self, name, image, step):
        self.call("image")
    def finish(self, end):
        self.call("finish")

class NoSink:
    pass
"""


def start(config: RunConfig, folder: Path) -> int:
    (folder / "c.yaml").write_text(dump_config(config))
    return train.main(["--config", str(folder / "c.yaml")])


def test_sinks_of_ones_own_and_tensorboard_over_two_starts(
    balls: Path, user_folder: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """The second start resumes from an earlier checkpoint: it records two steps again."""
    (user_folder / "my_sinks.py").write_text(MODULE)
    config = tiny_config(
        balls,
        user_folder,
        train={"steps": 6},
        validate={"every": 2},
        checkpoint={"every": 2},
        log={"tensorboard": True, "sinks": DOCUMENTED[:1]},
    )
    run = user_folder / "tiny"
    assert start(config, user_folder) == 0
    first = (run / "scores.csv").read_text()
    (run / "checkpoints/step_00000006.pt").unlink()
    shutil.copy(run / "checkpoints/step_00000004.pt", run / "checkpoints/last.pt")
    both = config.to_dict()
    both["log"]["sinks"] = DOCUMENTED  # the second table begins with the second start
    assert start(validate(both), user_folder) == 0

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [(record["step"], record["dice"]) for record in records if record["kind"] == "val"]
    assert [step for step, _ in scores] == [2, 4, 6]
    for name in ("scores.csv", "again.csv"):
        with (run / name).open() as table:
            assert [(int(row["step"]), float(row["score"])) for row in csv.DictReader(table)] == scores
    assert (run / "scores.csv").read_text() == first

    board = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    tags = board.Tags()
    assert sorted({tag.partition("/")[0] for tag in tags["scalars"]})[:2] == ["train", "val"]
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert board.Scalars("val/best_dice")[-1].value == pytest.approx(max(score for _, score in scores))
    assert b"name: tiny" in board.Tensors("config/text_summary")[-1].tensor_proto.string_val[0]
    assert b"status: completed" in board.Tensors("result/text_summary")[-1].tensor_proto.string_val[0]
    metadata = board.SummaryMetadata(hparams.SESSION_START_INFO_TAG)
    settings = hparams.parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert settings["train.steps"].number_value == 6 and settings["model.name"].string_value == config.model.name
    assert board.SummaryMetadata(hparams.SESSION_END_INFO_TAG) is not None


@pytest.mark.parametrize("method", ["__init__", "start", "record", "image", "finish"])
@pytest.mark.fault("sink-fails")
def test_a_sink_that_fails_is_one_warning(
    method: str,
    balls: Path,
    user_folder: Path,
    tiny_config: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (user_folder / "failing.py").write_text(FAILING)
    sink = {"name": "failing:Failing", "args": {"method": method, "calls": str(user_folder / "calls")}}
    assert start(tiny_config(balls, user_folder, train={"steps": 2}, log={"sinks": [sink]}), user_folder) == 0
    said = capsys.readouterr().err
    assert_seen("sink-fails", said)
    assert said.count("failing:Failing") == 1 and "Traceback" not in said
    assert f"log.sinks.0 (failing:Failing): RuntimeError: {method} cannot; the run continues without it" in said
    calls = (user_folder / "calls").read_text().split()
    assert calls.count(method) == 1 and set(calls[calls.index(method) + 1 :]) <= {"finish"}


def test_what_is_no_sink_is_refused(
    balls: Path, user_folder: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (user_folder / "failing.py").write_text(FAILING)
    assert start(tiny_config(balls, user_folder, log={"sinks": ["failing:NoSink"]}), user_folder) == 2
    assert "log.sinks.0.name: failing:NoSink is no sink (expected a subclass of fusionseg." in capsys.readouterr().err
    assert not (user_folder / "tiny").exists()
